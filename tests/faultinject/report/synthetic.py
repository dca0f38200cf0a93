"""Synthetic findings: numbers made up for tests of the page, never measured."""

from __future__ import annotations

from scipy.stats import beta

from faultinject.campaign.planning.spec import Question
from faultinject.campaign.records import Outcome, StationFacts
from faultinject.results.findings import (
    CommonCauseFinding,
    CurveFinding,
    DoseFinding,
    EffectFinding,
    FaultKindFinding,
    Findings,
    Head,
    LatencyFinding,
    Point,
    PowerFinding,
    Share,
    Silence,
    SilentFinding,
    SpeedFinding,
    StratumFinding,
    VerdictFinding,
    Width,
)

__all__ = [
    "QUIET",
    "bound",
    "curve",
    "exact",
    "head",
    "inequality4",
    "outcomes",
    "points",
    "softerrors",
    "stratum",
]


def exact(count: int, of: int, alpha: float = 0.05) -> Share:
    low = float(beta.ppf(alpha / 2, count, of - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - alpha / 2, count + 1, of - count)) if count < of else 1.0
    return Share(count=count, of=of, low=low, high=high)


def head(question: Question = "inequality4", done: int = 14_200) -> Head:
    facts = StationFacts(
        host="synthetic",
        cpus=2,
        cpu="No Real CPU",
        kernel="6.1",
        python="3.11",
        qemu="7.2",
        libvirt="9.0",
        accel="tcg",
        image="0123abcd",
        build="kv-1",
        trivisor="0.1.0",
    )
    return Head(
        title="Synthetic campaign: nothing here was measured",
        question=question,
        planned=14_200,
        done=done,
        used=done,
        void=7,
        trials=done - 7,
        seed=42,
        confidence=0.95,
        service="kv",
        requests=20,
        m=2,
        n=3,
        workers=2,
        began=1_760_000_000.0,
        ended=1_760_009_000.0,
        spec='title = "Synthetic <campaign>"\n',
        spec_hash="ab" * 32,
        facts=(facts,),
        versions=(("Trivisor", "0.1.0"),),
        directory="results",
    )


def outcomes(
    correct: int, detected: int = 0, timeout: int = 0, lost: int = 0, silent: int = 0
) -> dict[Outcome, int]:
    return {
        Outcome.CORRECT: correct,
        Outcome.DETECTED: detected,
        Outcome.TIMEOUT: timeout,
        Outcome.VOTER_LOST: lost,
        Outcome.SILENT: silent,
    }


def stratum(
    label: str,
    found: dict[Outcome, int],
    *,
    paper: float | None,
    voter: bool = False,
    alike: bool | None = None,
) -> StratumFinding:
    trials = sum(found.values())
    failed = trials - found[Outcome.CORRECT]
    return StratumFinding(
        name=label.replace("_", ""),
        label=label,
        k=int(label[2]),
        voter_hit=voter,
        repair=False,
        alike=alike,
        design="voted",
        void=1,
        outcomes=found,
        failed=exact(failed, trials),
        silent=exact(found[Outcome.SILENT], trials),
        paper=paper,
    )


def bound(rm: float) -> float:
    return 1 / (3 * rm - 2 * rm * rm)


def curve() -> CurveFinding:
    grid = tuple(round(0.4 + i / 200, 6) for i in range(120))
    spread = [0.0012 + 0.004 * (1 - x) ** 2 for x in grid]
    wide = tuple((1 - 0.02 / (1 - x) ** 0.5, 1.004, 1 + 0.03 / (1 - x) ** 0.6) for x in grid)
    band = tuple(
        (bound(x) - s, bound(x) + s / 4, bound(x) + s) for x, s in zip(grid, spread, strict=True)
    )
    return CurveFinding(
        repair=False,
        rm=grid,
        paper=tuple(map(bound, grid)),
        breakeven=band,
        relative=wide,
        relative_given=tuple((0.98, 1.004, 1.03) for _ in grid),
        breakeven_given=band,
        relative_margin=0.10,
        breakeven_margin=0.005,
        margin_from=0.5,
        margin_to=0.95,
    )


def points() -> tuple[Point, ...]:
    found = []
    for rm in (0.45, 0.55, 0.65, 0.75, 0.85, 0.95):
        for rv in (0.9, 0.95, 0.98, 0.999):
            voted = rv * rm * rm * (3 - 2 * rm)
            gap = voted - rm
            paper = "voted better" if gap > 0 else "plain better"
            found.append(
                Point(
                    rm=rm,
                    rv=rv,
                    rh=1.0,
                    repair=False,
                    plain=rm,
                    voted=(voted - 0.004, voted, voted + 0.003),
                    verdict=paper if abs(gap) > 0.004 else "undecided",  # type: ignore[arg-type]
                    paper=paper,  # type: ignore[arg-type]
                )
            )
    return tuple(found)


def inequality4(*, silent: int = 0, done: int = 14_200) -> Findings:
    wrong = tuple(
        SilentFinding(
            mission=100 + i,
            stratum="f2",
            hits="g1 corrupt-reply, g2 corrupt-reply",
            words="GET 5: a wrong value",
        )
        for i in range(silent)
    )
    strata = (
        stratum("f_0", outcomes(5_999), paper=0.0),
        stratum("f_1", outcomes(5_996, timeout=2, lost=1), paper=0.0),
        stratum("f_2", outcomes(3, 930, 40, 6, silent), paper=1.0),
        stratum("f_3", outcomes(0, 190, 9), paper=1.0),
        stratum("g_0", outcomes(0, lost=499), paper=1.0, voter=True),
        stratum("g_1", outcomes(12, lost=480, timeout=7), paper=1.0, voter=True),
    )
    kinds = tuple(
        FaultKindFinding(
            kind=name,
            layer="link",
            hit=hit,
            alone=alone,
            repair=False,
            outcomes=found,
            failed=exact(sum(found.values()) - found[Outcome.CORRECT], sum(found.values())),
            unused=3,
            not_applied=2,
            masked=400,
        )
        for name, hit, alone, found in (
            ("crash", "1 guest", True, outcomes(900)),
            ("hang", "1 guest", True, outcomes(850, timeout=2)),
            ("corrupt-reply", "1 guest", True, outcomes(700)),
            ("corrupt-reply", "2 guests or more", False, outcomes(2, 250, silent=silent)),
            ("crash", "2 guests or more", False, outcomes(1, 250)),
            ("voter-kill", "voter", True, outcomes(0, lost=300)),
        )
    )
    return Findings(
        head=head(done=done),
        strata=strata,
        kinds=kinds,
        silence=Silence(share=exact(silent, done), alike=silent, promised=0, listed=wrong),
        verdicts=(
            VerdictFinding(
                tone="good",
                answer="Synthetic: the voter does what Figure 7 assumes of it.",
                words="U is within 10 % of the paper's for every R_M from .5 to .95.",
                tests="voter",
            ),
            VerdictFinding(
                tone="open",
                answer="Synthetic: voted better at 12 of 24 operating points.",
                words="Wherever the data decide, they decide as Inequality (4) does.",
                tests="voter",
            ),
            VerdictFinding(
                tone="alarm" if silent else "good",
                answer="Synthetic: wrong replies were released."
                if silent
                else "Synthetic: no wrong reply was released.",
                words="At most 0.026 % of missions.",
                tests="voter",
            ),
        ),
        curves=(curve(),),
        points=points(),
        reach=(
            PowerFinding(
                q=0.05, shares=(0.06, 0.02), needed=(3_500, 600), trials=(5_999, 5_999), target=0.1
            ),
            PowerFinding(
                q=0.01,
                shares=(1.3, 0.12),
                needed=(100_000, 7_000),
                trials=(5_999, 5_999),
                target=0.1,
            ),
        ),
        widths=(
            Width(
                q=0.05,
                missions=13_200,
                stratified=0.08,
                given_f0=0.015,
                skipping=0.07,
                natural=0.2,
                needed=2_000_000,
            ),
        ),
        latencies=tuple(
            LatencyFinding(
                label=label,
                requests=100_000,
                p50=base,
                p95=2 * base,
                p99=4 * base,
                worst=tail,
                tail=(*((base * (0.6 + 0.4 * 2**i), 0.5**i) for i in range(12)), (tail, 1e-5)),
            )
            for label, base, tail in (("nothing hit", 0.004, 0.03), ("1 guest hit", 0.0043, 0.9))
        ),
        speeds=(
            SpeedFinding(
                label="one guest hit, QEMU stays",
                missions=5_000,
                an_hour=11_234,
                reset=0.3,
                inject=0.02,
                workload=0.2,
                settle=0.1,
                target=10_000,
            ),
            SpeedFinding(
                label="mixed kinds",
                missions=13_000,
                an_hour=5_120,
                reset=0.9,
                inject=0.05,
                workload=0.3,
                settle=0.1,
                target=4_000,
            ),
        ),
        idle_timeouts=exact(0, 5_999),
        effects=(
            EffectFinding(
                what="Order",
                words="No stratum failed more often early than late (smallest p .41, corrected).",
                p=0.41,
            ),
        ),
    )


QUIET = Silence(share=exact(0, 3600), alike=0, promised=0, listed=())


def softerrors() -> Findings:
    doses = []
    for flips, rm, departs in (
        (500, 0.95, 0),
        (2_000, 0.85, 0),
        (5_000, 0.7, 0.01),
        (10_000, 0.52, 0),
        (20_000, 0.33, 0.09),
        (40_000, 0.12, 0),
    ):
        model = rm * rm * (3 - 2 * rm)
        plain, voted = exact(round(rm * 600), 600), exact(round((model + departs) * 600), 600)
        doses.append(
            DoseFinding(
                kind="flip-ram",
                flips=flips,
                label=f"{flips:,}",
                plain=plain,
                voted=voted,
                model=tuple(x * x * (3 - 2 * x) for x in (plain.low, rm, plain.high)),  # type: ignore[arg-type]
                verdict="departs" if departs > 0.05 else "undecided" if departs else "agrees",
            )
        )
    return Findings(
        head=head("softerrors"),
        doses=tuple(doses),
        silence=QUIET,
        verdicts=(
            VerdictFinding(
                tone="bad",
                answer="Synthetic: the model departs at one dose of six.",
                words="At 20,000 flips.",
                tests="model",
            ),
        ),
        crossing={"flip-ram": "Measured R_sys falls below measured R_M at R_M = .49 (.44 to .53)."},
    )


def commoncause() -> Findings:
    shots = tuple(
        CommonCauseFinding(
            kind=kind,
            fell=tuple(exact(c, 300) for c in fell),
            independent=(0.2, 0.3, 0.3, 0.2),
            fatal=(0.3, 0.4, 0.5),
            fatal_independent=0.5,
            voted=exact(120, 300),
            plain=exact(100, 200),
            silent=0,
        )
        for kind, fell in (("poison", (3, 0, 0, 297)), ("flip-ram", (180, 10, 10, 100)))
    )
    return Findings(
        head=head("commoncause"),
        shots=shots,
        doses=(
            *softerrors().doses,
            *(
                DoseFinding(
                    kind=kind,
                    flips=1,
                    label=kind,
                    shared=True,
                    plain=exact(ok, 100),
                    voted=exact(ok - 1, 100),
                    model=(0.3, 0.35, 0.4),
                    verdict="undecided",
                )
                for kind, ok in (("poison", 1), ("flip-all x 1,000", 90), ("flip-all x 10,000", 45))
            ),
        ),
        silence=QUIET,
        verdicts=(
            VerdictFinding(
                tone="bad",
                answer="Synthetic: a shared cause takes the majority.",
                words="Words.",
                tests="model",
            ),
        ),
    )
