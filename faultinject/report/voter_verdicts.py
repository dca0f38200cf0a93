"""The verdicts on the voter, in words; those on the model are in ``causes``."""

from __future__ import annotations

import re

from faultinject.estimate import (
    Equivalence,
    EstimateError,
    band,
    bound_equivalence,
    combined_verdict,
    failure_equivalence,
    paper_failure,
)
from faultinject.estimate import VoterVerdict as Fit
from faultinject.report.formatting import percent
from faultinject.report.strata import Side
from faultinject.results.findings import Point, Silence, VerdictFinding

__all__ = ["points_verdict", "silence_verdict", "voter_verdict", "explain_silence", "worst_case"]


def voter_verdict(side: Side) -> VerdictFinding:
    """Is U, and is the break-even R_V, what the paper has, within the spec's margins?"""
    found = _agreements(side, given=False)
    verdict, margins = combined_verdict(*found), side.margins()
    repair = ", with repair on" if side.repair else ""
    within = (
        f"U stays within {percent(margins.failure)} of the paper's, and the break-even R_V within "
        f"{margins.bound:g} of Inequality (4), for every R_M from {1 - margins.q_high:.2g} to "
        f"{1 - margins.q_low:.2g}"
    )
    if verdict is Fit.HOLDS:
        return VerdictFinding(
            tone="good", tests="voter",
            answer=f"The voter does what Inequality (4) assumes of it{repair}.",
            words=f"{within}, f_0 measured and not taken for granted.",
        )  # fmt: skip
    if verdict is Fit.VIOLATED:
        better = side.repair and _fails_less(side)
        return VerdictFinding(
            tone="open" if better else "bad", tests="voter",
            answer="With repair on the voted node fails less than Inequality (4), which knows no "
            "repair, has it." if better
            else f"The voter does not do what Inequality (4) assumes of it{repair}.",
            words=" ".join(_sentence(each) for each in found if each.verdict is Fit.VIOLATED),
        )  # fmt: skip
    open_ = " ".join(_sentence(each) for each in found if each.verdict is Fit.UNDECIDED)
    if side.given and combined_verdict(*_agreements(side, given=True)) is Fit.HOLDS:
        return VerdictFinding(
            tone="open", tests="voter",
            answer=f"Given f_0 = 0, the voter does what Inequality (4) assumes of it{repair}.",
            words=f"Then {within}. But how rarely a mission fails with nothing hit is not known "
            f"well enough to say so without: {open_}",
        )  # fmt: skip
    return VerdictFinding(
        tone="open", tests="voter", words=open_,
        answer=f"Undecided: whether the voter does what Inequality (4) assumes{repair}.",
    )  # fmt: skip


def _fails_less(side: Side) -> bool:
    """Whether U is below the paper's, all of its interval, where guests fail most often."""
    q, source = side.margins().q_high, side.source
    known = band(side.strata, source.alpha).failure(q)
    return known.high < paper_failure(q, source.m, source.n)


def _agreements(side: Side, *, given: bool, worst: bool = False) -> tuple[Equivalence, ...]:
    strata = side.given if given and side.given else side.strata
    alpha, m, void = side.source.alpha, side.source.m, "worst" if worst else "excluded"
    found = [failure_equivalence(strata, side.margins(), alpha, m, void)]  # type: ignore[arg-type]
    try:
        found.append(bound_equivalence(strata, side.margins(), alpha, m, void))  # type: ignore[arg-type]
    except EstimateError:  # no R_V below 1 would do anywhere in the margins: nothing to agree with
        pass
    return tuple(found)


def worst_case(side: Side) -> str:
    """The verdict if every mission that was no trial had gone against it, in words."""
    return combined_verdict(*_agreements(side, given=False, worst=True)).value


def _sentence(agreement: Equivalence) -> str:
    words = re.sub(r"\b([fg])(\d+)\b", r"\1_\2", agreement.words)  # f0 as the page writes it
    words = words.replace("measured nan", "nothing measured yet").replace("to inf", "without end")
    return words[:1].upper() + words[1:] + "."


def points_verdict(points: tuple[Point, ...], *, repair: bool) -> VerdictFinding | None:
    """Where the data have the voted node better, where the plain; None without points."""
    here = [each for each in points if each.repair == repair]
    if not here:
        return None
    by = {name: [p for p in here if p.verdict == name] for name in
          ("voted better", "plain better", "undecided")}  # fmt: skip
    departed = [p for p in here if p.verdict not in ("undecided", p.paper)]
    counts = ", ".join(f"{name} at {len(found)}" for name, found in by.items() if found)
    answer = f"Of {len(here)} operating points: {counts}{', repair on' if repair else ''}."
    if departed and repair and all(p.verdict == "voted better" for p in departed):
        tone = "open"
        words = f"Better than Inequality (4), which knows no repair, has it at {_list(departed)}."
    elif departed:
        tone, words = "bad", "Otherwise than Inequality (4) has it at " + _list(departed) + "."
    elif by["undecided"]:
        tone = "open"
        words = "Wherever the data decide, they decide as Inequality (4) does." if len(
            by["undecided"]) < len(here) else ""  # fmt: skip
    else:
        tone, words = "good", "At every one, as Inequality (4) has it."
    if by["undecided"]:
        words += " Undecided: " + _list(by["undecided"]) + "."
        granted = [p for p in by["undecided"] if p.given]
        if granted:
            words += f" {len(granted)} of these would be decided given f_0 = 0."
    return VerdictFinding(tone=tone, answer=answer, words=words.strip(), tests="voter")  # type: ignore[arg-type]


def _list(points: list[Point], most: int = 6) -> str:
    shown = [f"(R_M {p.rm:g}, R_V {p.rv:g})" for p in points[:most]]
    return ", ".join(shown) + (f" and {len(points) - most} more" if len(points) > most else "")


def silence_verdict(silence: Silence) -> VerdictFinding:
    """Whether a wrong reply was released, in any voted mission, and whether it may have been."""
    share = silence.share
    if not share.count:
        return VerdictFinding(
            tone="good" if share.of else "open", tests="voter",
            answer=f"No wrong reply was released in {share.of:,} voted missions.",
            words=f"With this mix of faults, in at most {percent(share.high)} of missions.",
        )  # fmt: skip
    return VerdictFinding(
        tone="alarm", tests="voter", words=explain_silence(silence),
        answer=f"A wrong reply was released in {share.count:,} of {share.of:,} voted missions.",
    )  # fmt: skip


def explain_silence(silence: Silence) -> str:
    """What stood behind the wrong replies: the injector's choice, or the voter's fault."""
    count, alike, promised = silence.share.count, silence.alike, silence.promised
    rest = count - alike - promised - silence.struck - silence.uncompared
    words = []
    if promised:
        words.append(
            f"In {promised:,} of them no more guests were hit than the vote promises to bear: this "
            "must not be, and is a fault of the voter."
        )
    if alike:
        all_ = "In all of them" if alike == count else f"In {alike:,} of them"
        words.append(
            f"{all_} guests enough for a majority were made to err with the same bytes, which no "
            "vote can tell from right: by lies that the injector made alike, or by a poison that "
            "has all of a build say the same."
        )
    if silence.uncompared:
        words.append(
            f"In {silence.uncompared:,} of them the vote was 1 of n, which compares nothing: what "
            "the first guest says is released."
        )
    if silence.struck:
        words.append(
            f"In {silence.struck:,} of them one cause struck all guests, and enough of these came "
            "to say the same wrong thing, which nobody had arranged."
        )
    if rest:
        words.append(
            f"In {rest:,} more guests were hit than the vote promises to bear, or the voter (or F) "
            "was, and nobody chose that they err alike."
        )
    return " ".join(words)
