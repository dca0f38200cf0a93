"""Of faults that nobody forced to fail: doses of soft errors, and shots that strike all guests."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from faultinject.campaign.store.tally import Tally
from faultinject.estimate import (
    AtFrequency,
    CommonCauseResult,
    CommonCauseTrials,
    DosesVerdict,
    Fit,
    at_frequency,
    compare_doses,
    estimate_common_cause,
    independence_of_failures,
)
from faultinject.estimate import DoseCounts as DoseCounts
from faultinject.report.counting import (
    Source,
    outcomes_of,
    share_of,
    triple,
)
from faultinject.report.formatting import TIMES, percent
from faultinject.report.model_figures import law
from faultinject.results.findings import (
    BreakEvenFinding,
    CommonCauseFinding,
    DoseFinding,
    Share,
    VerdictFinding,
)
from voter.core.vote import Policy

__all__ = ["Doses", "find_breaks", "find_doses", "find_shared", "find_shots", "model_verdicts"]

MARGIN = 0.05
"""The greatest |R_sys - model| still called agreement, absolute: the estimator's own."""
FREQUENCY = 0.05
"""Of shots a mission, assumed where the page shows what shared causes would do."""
CERTAIN_FALL = 0.9  # all guests fall in so many shots: dependence makes no difference
SHOWN_RM = 0.9  # where the page gives numbers of that

Doses = dict[str, tuple[tuple[DoseFinding, ...], DosesVerdict]]


def find_doses(source: Source) -> Doses:
    """By kind: its doses in rising order, and what they say together."""
    tallies = source.store.by_dose(source.prefix)
    found: Doses = {}
    for kind in dict.fromkeys(kind for kind, _, _ in tallies):
        arms = {
            dose: (
                tallies.get((kind, dose, "nv"), Tally()),
                tallies.get((kind, dose, "voted"), Tally()),
            )
            for dose in sorted({dose for each, dose, _ in tallies if each == kind})
        }  # fmt: skip
        judged = _judge(source, arms, source.alpha)
        found[kind] = (_doses(source, kind, arms, judged, shared=False), judged)
    return {
        kind: (tuple(_with_falls(source, each) for each in doses), judged)
        for kind, (doses, judged) in found.items()
    }


def _with_falls(source: Source, dose: DoseFinding) -> DoseFinding:
    """Say of a dose how many guests fell in a mission; beside repair nobody stays fallen."""
    if source.store.spec.repair == "on":
        return dose
    classes = [0] * (source.n - source.m + 2)
    falls = source.store.doses_by_failed_guests(source.prefix).get((dose.kind, dose.flips), {})
    for failed, count in _by_failed(falls, source.m, source.n, lost=False).items():
        classes[min(failed, len(classes) - 1)] += count
    judged = independence_of_failures(classes, source.n)
    return msgspec.structs.replace(
        dose, fell=tuple(classes), fell_expected=judged.expected if judged else (),
        fell_p=judged.p if judged else None,
    )  # fmt: skip


def find_shared(source: Source) -> tuple[DoseFinding, ...]:
    """Each shared cause that was fired at one guest alone too, as a point of the same figure."""
    causes = {
        kind: each
        for kind, each in _shots(source).items()
        if each.plain.trials and not each.own_vote
    }
    found: list[DoseFinding] = []
    for kind, each in causes.items():
        arms = {each.flips: (each.plain, each.voted)}
        judged = _judge(source, arms, source.alpha / len(causes))
        found += _doses(source, kind, arms, judged, shared=True)
    return tuple(found)


Arms = dict[int, tuple[Tally, Tally]]  # by dose: one guest alone, and voted


def _judge(source: Source, arms: Arms, alpha: float) -> DosesVerdict:
    return compare_doses(
        [DoseCounts(dose=dose, nv=nv.counts(), voted=voted.counts())
         for dose, (nv, voted) in arms.items()],
        alpha, MARGIN, source.m, source.n,
    )  # fmt: skip


def _doses(
    source: Source, kind: str, arms: Arms, judged: DosesVerdict, *, shared: bool
) -> tuple[DoseFinding, ...]:
    return tuple(
        DoseFinding(
            kind=kind, flips=dose, label=kind if shared else f"{dose:,}", shared=shared,
            plain=share_of(nv.successes, nv.trials, source.alpha),
            voted=share_of(voted.successes, voted.trials, source.alpha),
            model=triple(each.model), verdict=each.verdict.value, words=each.words,
            outcomes=outcomes_of(voted), plain_outcomes=outcomes_of(nv),
        )
        for (dose, (nv, voted)), each in zip(arms.items(), judged.doses, strict=True)
    )  # fmt: skip


class _Cause(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of shot: what it did to the guests of a node, m of n, and to one alone."""

    kind: str
    flips: int
    m: int
    n: int
    shots: CommonCauseTrials
    voted: Tally
    plain: Tally
    own_vote: bool = False


def _by_failed(
    by_fallen: Mapping[int, Tally], m: int, n: int, *, lost: bool = True
) -> dict[int, int]:
    """Missions by the guests that failed, of those by the guests that fell in the voter's eyes.

    Where a wrong reply was released the guests that the vote went with failed, at least m, and
    what became of those that it fell out with nobody knows: they are not counted.  Where the
    voter was ``lost`` nobody knows anything: all guests, then.
    """
    found: dict[int, int] = {}
    for fallen, tally in by_fallen.items():
        agreed = n - min(fallen, n) if m > 1 else 1  # 1 of n compares nothing
        for failed, count in (
            (min(fallen, n), tally.trials - tally.voter_lost - tally.silent),
            (max(m, agreed), tally.silent),
            (n, tally.voter_lost if lost else 0),
        ):
            found[failed] = found.get(failed, 0) + count
    return found


def _shots(source: Source) -> dict[str, _Cause]:
    """By cause."""
    tallies = source.store.shots(source.prefix)
    found: dict[str, _Cause] = {}
    for (kind, flips, design, vote), by_fallen in tallies.items():
        policy = Policy.parse(vote) if vote else Policy(source.m, source.n)
        counted = _by_failed(by_fallen, policy.need, policy.of)
        failed = [counted.get(k, 0) for k in range(policy.of + 1)]
        if design != "voted" or not sum(failed):
            continue
        voted = sum(by_fallen.values(), Tally())
        plain = sum(tallies.get((kind, flips, "nv", ""), {}).values(), Tally())
        shots = CommonCauseTrials(failed=tuple(failed), system=voted.counts(), nv=plain.counts())
        cause = f"{kind} {TIMES} {flips:,}" if flips > 1 else kind
        name = f"{cause}, {policy.need} of {policy.of}" if vote else cause
        found[name] = _Cause(kind=cause, flips=flips, m=policy.need, n=policy.of, shots=shots,
                             voted=voted, plain=plain, own_vote=bool(vote))  # fmt: skip
    return found


def find_shots(source: Source) -> tuple[tuple[CommonCauseFinding, CommonCauseResult], ...]:
    """Each shared cause, with what the estimator says of it."""
    found = []
    causes = _shots(source)
    falls = {
        kind: independence_of_failures(each.shots.failed, each.n) for kind, each in causes.items()
    }
    ps = {kind: each.p for kind, each in falls.items() if each and each.p is not None}
    for kind, each in causes.items():
        judged = estimate_common_cause(each.shots, source.alpha, each.m)
        voted, plain = each.voted, each.plain
        more = judged.c[-1].value > judged.independent[-1]
        found.append((
            CommonCauseFinding(
                kind=kind,
                fell=tuple(
                    Share(count=count, of=each.shots.total, low=c.low, high=c.high)
                    for count, c in zip(each.shots.failed, judged.c, strict=True)
                ),
                independent=judged.independent,
                fell_p=ps.get(kind),
                together=kind in ps and more and ps[kind] < source.alpha / len(ps),
                fatal=triple(judged.fatal),
                fatal_independent=judged.fatal_if_independent.value,
                voted=share_of(voted.failures, voted.trials, source.alpha),
                plain=share_of(plain.failures, plain.trials, source.alpha)
                if plain.trials else None,
                silent=voted.silent,
                words=judged.words,
            ),
            judged,
        ))  # fmt: skip
    return tuple(found)


def find_breaks(source: Source) -> tuple[BreakEvenFinding, ...]:
    """What each cause would do to R_sys if it came in FREQUENCY of missions."""
    found = []
    for kind, cause in _shots(source).items():
        each = estimate_common_cause(cause.shots, source.alpha, cause.m).each.value

        def at(own: float, cause: _Cause = cause) -> AtFrequency:
            return at_frequency(cause.shots, FREQUENCY, own, m=cause.m, alpha=source.alpha)

        curve = [at(i / 100) for i in range(101)]
        shown = at(min(1.0, SHOWN_RM / (1 - FREQUENCY * each)))
        found.append(
            BreakEvenFinding(
                kind=kind, cause=cause.kind, frequency=FREQUENCY,
                rm=tuple(one.rm.value for one in curve),
                rsys=tuple(triple(one.rsys) for one in curve), at=triple(shown.rsys),
                at_independent=law(SHOWN_RM, cause.m, cause.n), beta=triple(shown.beta),
                m=cause.m, n=cause.n,
            )
        )  # fmt: skip
    return tuple(found)


def model_verdicts(
    doses: Doses, shots: tuple[tuple[CommonCauseFinding, CommonCauseResult], ...]
) -> tuple[VerdictFinding, ...]:
    """The verdicts on the model: of shared causes, then of doses."""
    found = [_of_shots(shots)] if shots else []
    return (*found, *(_of_doses(kind, judged) for kind, (_, judged) in doses.items()))


def _of_doses(kind: str, judged: DosesVerdict) -> VerdictFinding:
    departing = [each for each in judged.doses if each.verdict is Fit.DEPARTS]
    open_ = [each for each in judged.doses if each.verdict is Fit.UNDECIDED]
    count = len(judged.doses)
    points = f"{MARGIN * 100:.0f} points"
    if judged.verdict is Fit.AGREES:
        answer = f"The paper's formula is true of these faults ({kind}), within {points}."
    elif judged.verdict is Fit.DEPARTS:
        answer = f"The paper's formula is not met at {len(departing)} of {count} doses ({kind})."
    else:
        answer = f"Undecided: whether the paper's formula is true of these faults ({kind})."
    words = []
    if not departing and len(open_) < count:
        words.append(
            f"At {count - len(open_)} of {count} doses the measured R_sys is within {points} of "
            "what the formula makes of the measured R_M."
        )
    words += [_sentence(each.words) for each in departing]
    if open_:
        flips = ", ".join(f"{each.dose:,.0f}" for each in open_)
        words.append(f"Undecided at {flips} flips: the intervals are too wide for that margin.")
    if judged.crossing:
        words.append(_sentence(judged.crossing.words))
    if not judged.reaches_f2:
        words.append(
            "The measured R_M does not span .5 to .9, so the data say little of two guests failing."
        )
    tone = {Fit.AGREES: "good", Fit.DEPARTS: "bad", Fit.UNDECIDED: "open"}[judged.verdict]
    return VerdictFinding(tone=tone, answer=answer, words=" ".join(words), tests="model")  # type: ignore[arg-type]


def _over_n(
    shots: tuple[tuple[CommonCauseFinding, CommonCauseResult], ...],
) -> VerdictFinding | None:
    """Of one cause on nodes of several sizes, all of whose guests it takes; None if it is not so.

    No independence can be told from dependence there, and none is needed: more guests do not help.
    """
    causes = {shot.kind.partition(",")[0] for shot, _ in shots}
    ns = sorted(len(shot.fell) - 1 for shot, _ in shots)
    if len(causes) > 1 or len(set(ns)) < 3:
        return None
    all_fell = sum(shot.fell[-1].count for shot, _ in shots)
    if any(judged.c[-1].low < CERTAIN_FALL for _, judged in shots):
        return None
    total = sum(shot.fell[-1].of for shot, _ in shots)
    failed = sum(shot.voted.count for shot, _ in shots)
    return VerdictFinding(
        tone="bad", tests="model",
        answer=f"However many guests there are, {causes.pop()} takes them all.",
        words=f"In {all_fell:,} of {total:,} shots all guests fell, at every n from {ns[0]} to "
        f"{ns[-1]}, and {failed:,} of the missions failed. What all guests of one build have in "
        "common no number of them bears.",
    )  # fmt: skip


def _of_shots(shots: tuple[tuple[CommonCauseFinding, CommonCauseResult], ...]) -> VerdictFinding:
    if over_n := _over_n(shots):
        return over_n
    together = [shot for shot, _ in shots if shot.together]
    certain = [shot for shot, judged in shots if judged.independent[-1] > CERTAIN_FALL]
    count, causes = len(shots), "shared cause" if len(shots) == 1 else "shared causes"
    words = []
    if together:
        words.append("All guests fell at once more often than if they fell independently: "
                     + "; ".join(_contrast(shot) for shot in together) + ".")  # fmt: skip
    if certain:
        words.append(
            f"Under {_names(certain)} nearly every guest falls at every shot, so that independent "
            "guests would be no better off."
        )
    words += _beside_plain([shot for shot, _ in shots])
    return VerdictFinding(
        tone="bad" if together else "open",
        answer=f"Under {len(together)} of {count} {causes} the guests do not fail independently."
        if together
        else f"No dependence is seen under the {count} {causes}.",
        words=" ".join(words),
        tests="model",
    )


def _contrast(shot: CommonCauseFinding) -> str:
    return (
        f"{shot.kind}, all in {percent(shot.fell[-1].point or 0.0)} of shots, not "
        f"{percent(shot.independent[-1])}"
    )


def _beside_plain(shots: list[CommonCauseFinding]) -> list[str]:
    """Whether the voted node came off better than one guest alone: intervals that are apart."""
    pairs = [(shot, shot.voted, shot.plain) for shot in shots if shot.plain and shot.plain.of]
    said = {
        "The voted node failed less often than one guest alone under": [
            shot for shot, voted, plain in pairs if voted.high < plain.low],
        "It failed more often than one guest alone under": [
            shot for shot, voted, plain in pairs if voted.low > plain.high],
        "No difference from one guest alone can be told under": [
            shot for shot, voted, plain in pairs
            if voted.high >= plain.low and voted.low <= plain.high],
    }  # fmt: skip
    return [f"{words} {_names(which)}." for words, which in said.items() if which]


def _names(shots: list[CommonCauseFinding]) -> str:
    names = [shot.kind for shot in shots]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:].rstrip(".") + "."
