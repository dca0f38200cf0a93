"""``docs/paper.md``: the claims as a table, generated from results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.host.files import write_whole
from faultinject.claims.evidence import Claim, ClaimAnswer, Results, format_count

__all__ = ["render", "write_page"]

TOP = """\
# The paper's sections 3 and 4, claim by claim

H. V. Ramasamy and M. Schunter, *Architecting Dependable Systems Using Virtualization* (2007).
`trivisor paper` generates this page from the campaigns and experiments in [results](results).
Confidence intervals are at 95 %, simultaneous for all strata of one node.

- *holds*: every interval lies on the claim's side; of counts, no mission contradicts it.
- *holds where decided*: every decided comparison supports the claim; some are undecided.
- *undecided*: the data are compatible with the claim and with its negation.
- *does not hold*: an interval, or a computed counterexample, lies on the other side. The confidence
  level applies to each node, not to many nodes or points together.
- *mechanism shown*: causes that the experiment planted have this effect. How often such causes
  occur in the real world was not measured.
- *follows from the formulas*: computed; other numbers given with it show the precision of the data.

The column *basis* keeps four words apart. *Measured*: counted in missions. *Recombined*: computed
from measured strata with binomial weights; points recombined from the same strata are not
independent confirmations. *Computed*: from formulas alone. *By construction*: enforced by the
injector. Where several p values are given, each is compared with alpha divided by their number
(Bonferroni). The campaigns that force faults (inequality4, oneofn, mofn, liars, poison,
moved-guest, moved-host) test the *voter*; they assume that guests fail independently. In softerrors
the faults of each guest are drawn separately: it tests whether their *consequences* are coupled. In
commoncause one planted cause hits all guests. No campaign tests how often causes are shared in
nature. The method: [statistics.md](statistics.md). The last column reproduces a row.
"""
BOTTOM = """\
- *Dependence makes these values upper bounds*, the paper says. Not always: see the last row.
- *Independence* cannot be measured with faults that are drawn independently. softerrors measures
  whether their consequences depend on each other; the campaigns that force faults test the voter.
"""


def render(answers: Sequence[tuple[Claim, ClaimAnswer]], results: Results) -> str:
    """Return the page."""
    lines = [
        TOP,
        "| where | the paper says | evidence | basis | verdict | see |",
        "|---|---|---|---|---|---|",
    ]
    for claim, answer in answers:
        evidence = answer.evidence + (" (see Validity)" if answer.limits else "")
        cells = (claim.where, claim.text, evidence, ", ".join(answer.basis),
                 f"**{answer.verdict}**", f"`{claim.command}`")  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    validity = list(dict.fromkeys(answer.limits for _, answer in answers if answer.limits))
    if validity:
        lines += ["", "## Validity", "", *validity]
    lines += ["", "## Sources", ""]
    lines += [
        f"- [{name}](results/{name}): {kept.title}, seed {kept.seed}, "
        f"{kept.done:,} of {kept.planned:,} missions ({kept.excluded} excluded), {kept.accel}"
        for name, found in results.items() for kept in [found.campaign]
    ] or ["- no campaign yet"]  # fmt: skip
    lines += [
        f"- [{name}](results/{name}): {kept.title}, seed {kept.seed}, {kept.done:,} of "
        f"{kept.planned:,} trials ({kept.excluded} excluded), {kept.accel}"
        for name, kept in results.experiments.items()
    ]
    if (moved := results.moved) is not None:
        part = "; some planned missions have not been run" if moved.partial else ""
        lines.append(f"- {moved.guest} compared with {moved.host} (`trivisor campaign moved`): "
                     f"{moved.missions:,} missions{part}")  # fmt: skip
    lines += ["", "## Differences between the paper and this system", "", _layer(results)]
    return "\n".join(lines) + "\n" + BOTTOM


def _layer(results: Results) -> str:
    """State what V is here, and what failed with it."""
    parts = [
        "*V is a type-1 hypervisor* in the paper. Here V consists of the host's Linux, QEMU and "
        "the voter; R_V is the reliability of all three"
    ]
    if "commoncause" in results:
        parts += [
            f"a crash of the host failed {format_count(each.voted)} missions of the voted node"
            for each in results["commoncause"].common_causes
            if each.kind == "host-crash"
        ]
    if "inequality4" in results:
        lost = [
            each.failed for each in results["inequality4"].strata
            if each.name in ("g0", "g1") and each.alike is None
        ]  # fmt: skip
        if lost:
            parts.append(
                f"with the voter hit, {sum(each.count for each in lost):,} of "
                f"{sum(each.of for each in lost):,} missions failed (repair off)"
            )
    return f"- {'; '.join(parts)}."


def write_page(path: Path, answers: Sequence[tuple[Claim, ClaimAnswer]], results: Results) -> None:
    """Write the page atomically.  Raises OSError."""
    write_whole(path, render(answers, results).encode())
