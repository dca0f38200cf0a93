"""What section 4 says of the plain node and of 2-of-3: Inequality (4), Figure 7."""

from __future__ import annotations

from typing import SupportsFloat

from faultinject import model
from faultinject.claims.claim import ClaimAnswer, Results, Says
from faultinject.claims.sides import below, share_words
from faultinject.estimate import Band, BetterRange, Counts, Strata, band, better_range
from faultinject.results.findings_file import FindingsFile

__all__ = ["arbitrary", "hopeless", "plain", "points", "ranges", "voter"]

HOPELESS = [i / 1000 for i in range(1, 500)]
"""R_M below .5, at which R_V = 1 is tried."""


def plain(results: Results) -> ClaimAnswer:
    """The base case: no layer, no voter."""
    strata = {each.name: each for each in results["inequality4"].strata}
    clean, hit = strata["nv0"].failed, strata["nv1"].failed
    sound = not clean.count and hit.count == hit.of
    return ClaimAnswer(
        measured=f"the plain node failed in {share_words(clean)} missions with nothing hit, and in "
        f"{share_words(hit)} with its guest hit",
        says="holds" if sound and hit.of else "undecided",
    )


def voter(results: Results) -> ClaimAnswer:
    """Forced faults in none to all three guests."""
    kept = results["inequality4"]
    strata = {each.name: each for each in kept.strata if each.alike is None}
    counts = (f"{k}: {share_words(strata[f'f{k}'].failed)}" for k in range(4))
    words = f"missions that failed, by guests hit: {', '.join(counts)}"
    tones = {"good": "holds", "bad": "does not hold"}
    verdict = next(v for v in kept.verdicts if "Inequality (4) assumes" in v.answer)
    says: Says = tones.get(verdict.tone, "undecided")  # type: ignore[assignment]
    return ClaimAnswer(measured=f"{words}. {verdict.answer}", says=says)


def points(results: Results) -> ClaimAnswer:
    """Which of the two nodes the data have the better."""
    found = [p for p in results["inequality4"].points if not p.repair]
    agree = sum(p.verdict == p.paper for p in found)
    against = [p for p in found if p.verdict not in ("undecided", p.paper)]
    nearest = min(abs(p.rv - float(model.breakeven_rv_2of3(p.rm))) for p in found)
    return ClaimAnswer(
        measured=f"of {len(found)} operating points {agree} are decided as (4) has it, "
        f"{len(against)} against it, {len(found) - agree - len(against)} not decided (the nearest "
        f"is {nearest:.2g} from the bound in R_V)",
        says="does not hold" if against else "holds" if agree == len(found) and found
        else "holds as far as the data reach" if agree else "undecided",
    )  # fmt: skip


def arbitrary(results: Results) -> ClaimAnswer:
    """One guest that does anything at all: the worst are those that lie."""
    node = next(n for n in results["liars"].nodes if n.vote == "2/3")
    failed, silent = node.failed[1], node.silent[1]
    words = (
        f"one guest lying: failed {share_words(failed)}, wrong replies released "
        f"{share_words(silent)}"
    )
    sound = not failed.count and not silent.count and bool(failed.of)
    if "inequality4" in results:
        mixed = next(s for s in results["inequality4"].strata if (s.name, s.alike) == ("f1", None))
        words += (
            "; one guest crashed, hung, reset, stopped, lying or flooding: failed "
            f"{share_words(mixed.failed)}, wrong replies released {share_words(mixed.silent)}"
        )
        sound = sound and not mixed.failed.count and not mixed.silent.count
    return ClaimAnswer(measured=words, says="holds" if sound else "does not hold")


def hopeless(results: Results) -> ClaimAnswer:
    """Poor guests, and a layer that never fails."""
    box = _box(results["inequality4"])
    gains = {rm: box.gain(rm, 1.0, 1.0) for rm in HOPELESS}
    worse = [rm for rm, gain in gains.items() if gain.high < 0.0]
    better = [rm for rm, gain in gains.items() if gain.low > 0.0]
    words = [
        f"even with R_V = 1 worse than plain for sure at {len(worse)} of {len(gains)} R_M below .5"
        + (f" (from {worse[0]:g} to {worse[-1]:g})" if worse else "")
    ]
    found = [
        p for node in (results["mofn"].nodes if "mofn" in results else ())
        if node.vote == "2/3" and not node.repair for p in node.points if p.rm < 0.5
    ]  # fmt: skip
    if found:
        sides = [below(p.measured, p.plain) for p in found]
        words.append(
            f"by the missions of mofn, worse at {sides.count(True)} of {len(found)} points"
        )
    return ClaimAnswer(
        measured="; ".join(words),
        says="does not hold" if better else "holds" if len(worse) == len(gains)
        else "holds as far as the data reach" if worse else "undecided",
    )  # fmt: skip


def _box(kept: FindingsFile) -> Band:
    """The strata of 2-of-3, repair off, voter not hit."""
    strata = {each.name: each for each in kept.strata if each.alike is None}
    counted = [strata[f"f{k}"].failed for k in range(4)]
    guests = tuple(Counts(trials=each.of, failures=each.count) for each in counted)
    return band(Strata(guests=guests), alpha=1.0 - kept.confidence)


def ranges(results: Results) -> ClaimAnswer:
    """Figure 7 at two heights."""
    box = _box(results["inequality4"])
    wide, narrow = (better_range(box, rv) for rv in (0.98, 0.9))
    words = []
    for found in (wide, narrow):
        paper = model.rm_range_2of3(found.rv)
        assert paper is not None  # both are above 8/9
        words.append(
            f"R_V = {found.rv:g}: R_M {_ends(found.seen)}, for sure {_ends(found.sure)}; computed "
            f"{_ends(paper)}"
        )
    return ClaimAnswer(measured=". ".join(words), says=_wider(wide, narrow))


def _wider(wide: BetterRange, narrow: BetterRange) -> Says:
    if wide.sure is not None:
        most = narrow.possible
        if most is None or _width(wide.sure) > _width(most):
            return "holds"
    if narrow.sure is not None and (
        wide.possible is None or _width(narrow.sure) > _width(wide.possible)
    ):
        return "does not hold"
    return "undecided"


def _width(ends: tuple[float, float]) -> float:
    return ends[1] - ends[0]


def _ends(ends: tuple[SupportsFloat, SupportsFloat] | None) -> str:
    return "nowhere" if ends is None else f"from {float(ends[0]):.4f} to {float(ends[1]):.4f}"
