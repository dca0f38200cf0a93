"""``docs/paper.md``: the claims as a table, made from results and never typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.host.files import write_whole
from faultinject.claims.claim import Claim, ClaimAnswer, Results
from faultinject.claims.sides import share_words

__all__ = ["render", "write_page"]

TOP = """\
# The paper's section 4, claim by claim

H. V. Ramasamy and M. Schunter, *Architecting Dependable Systems Using Virtualization* (2007). This
page is made by `trivisor paper`, from the findings of the campaigns kept beside it in
[results](results): it is not typed. Intervals are at 95 %, for all strata of a node together.

*holds*: all of the interval is on the claim's side, and where a row has counts only, no mission
went otherwise. *holds as far as the data reach*: so wherever the data decide, and they do not
decide everywhere. *undecided*: the data allow both. *does not hold*: all of the interval, or a
computed counterexample, is on the other side; a level is claimed for each node, and none for many
nodes or points together. *is a formula*: it follows from the formulas alone,
and was computed; measured numbers beside it say how far the data reach.

What forced faults (inequality4, oneofn, mofn, liars, poison, moved-guest, moved-host) say is what
the *voter* does; that guests fail independently is put in there, and asked by softerrors and
commoncause alone. The last column does a row again; the kept rows can be asked at once, as by
`trivisor campaign status docs/results/inequality4`.
"""
BOTTOM = """\
- *Dependence makes these values upper bounds*, the paper says. Not always: see the last row.
- *Independence* cannot be measured by faults that are drawn independently. The campaigns that force
  faults test the voter, and say so on their pages.
"""


def render(answers: Sequence[tuple[Claim, ClaimAnswer]], results: Results) -> str:
    """Return the page."""
    lines = [TOP, "| where | the paper says | measured | verdict | see |", "|---|---|---|---|---|"]
    for claim, answer in answers:
        cells = (claim.where, claim.text, answer.measured, f"**{answer.says}**",
                 f"`{claim.command}`")  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "## What it rests on", ""]
    lines += [
        f"- [{name}](results/{name}/report.html): {kept.title}, seed {kept.seed}, "
        f"{kept.done:,} of {kept.planned:,} missions ({kept.void} no trial), {kept.accel}"
        for name, kept in results.items()
    ] or ["- nothing yet"]
    if (moved := results.moved) is not None:
        part = ", some of their missions are still to come" if moved.partial else ""
        lines.append(f"- {moved.guest} and {moved.host} put together (`trivisor campaign moved`): "
                     f"{moved.missions:,} missions{part}")  # fmt: skip
    lines += ["", "## Where the paper is not the machine", "", *_layer(results)]
    return "\n".join(lines) + "\n" + BOTTOM


def _layer(results: Results) -> list[str]:
    """What V is here, and what went with it."""
    words = (
        "*V is a type-1 hypervisor* in the paper. Here V is the host's Linux, QEMU and the voter: "
        "R_V holds the reliability of all three"
    )
    ended = [
        f"the end of the host ended {share_words(shot.voted)} voted missions"
        for shot in (results["commoncause"].shots if "commoncause" in results else ())
        if shot.kind == "host-crash"
    ]
    lost = [
        each.failed
        for each in (results["inequality4"].strata if "inequality4" in results else ())
        if each.name in ("g0", "g1") and each.alike is None
    ]
    if lost:
        ended.append(
            f"with the voter hit {sum(each.count for each in lost):,} of "
            f"{sum(each.of for each in lost):,} were lost (repair off)"
        )
    return [f"- {words}{''.join(f'; {each}' for each in ended)}."]


def write_page(path: Path, answers: Sequence[tuple[Claim, ClaimAnswer]], results: Results) -> None:
    """Write the page: whole or not at all.  Raises OSError."""
    write_whole(path, render(answers, results).encode())
