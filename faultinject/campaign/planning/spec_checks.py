"""What a campaign file may not ask for.  All problems are reported together, each with its fix.

Only the file is checked here.  Whether the host can do it (a debug stub, KVM) is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from faultinject.campaign.planning.spec import (
    FORCED,
    CommonCauseSpec,
    DoseSpec,
    Repair,
    Spec,
    StratumSpec,
)
from faultinject.faults import CATALOGUE, FaultKind, FaultLayer
from faultinject.history.workload import KV_MIX, STATIC_MIX
from faultinject.strict_toml import SpecProblems, suggest
from guests.service import SHIPPED
from voter.core.vote import Policy, PolicyError

__all__ = ["POISONED", "check", "is_poisoned", "repairs"]

POISONED = "poisoned"
"""The service with the planted bug (``faultinject/services/poisoned.py``), by name or path."""
MOST = 10_000_000
"""Most missions in one table of a campaign file; more is an error."""
_PLACES = {FaultLayer.FUNCTION: "guest", FaultLayer.RELOCATED: "host"}
"""Where the station must have the function, for faults of these layers."""
MOST_FLIPS = 10_000_000
"""Most flips in each guest of a mission; more is an error."""


def repairs(choice: Repair) -> tuple[bool, ...]:
    """Return the settings of repair that missions run with."""
    return (False, True) if choice == "both" else (choice == "on",)


def is_poisoned(service: str) -> bool:
    """Return whether a service is the one with the planted bug."""
    return Path(service).stem == POISONED


def check(spec: Spec, problems: SpecProblems) -> None:
    """Check everything that the types do not check.  Raises SpecError."""
    _check_station(spec, problems)
    _check_numbers(spec, problems)
    _check_mixes(spec, problems)
    _check_strata(spec, problems)
    _check_doses(spec, problems)
    _check_shots(spec, problems)
    _check_question(spec, problems)
    problems.raise_any()


def _check_station(spec: Spec, problems: SpecProblems) -> None:
    station = spec.station

    def add(key: str, words: str) -> None:
        problems.add(words, table="station", key=key)

    try:
        policy = Policy.parse(station.vote)
    except PolicyError as error:
        add("vote", str(error))
    else:
        if policy.of != station.guests:
            add("guests", f"vote {policy} needs {policy.of} guests, not {station.guests}")
    service = station.service
    if service not in (*SHIPPED, POISONED) and not Path(service).is_file():
        remedy = suggest(service, (*SHIPPED, POISONED))
        add("service", f"no service {service!r}: {remedy}, or a Python file")
    if not 64 <= station.memory <= 1 << 16:
        add("memory", f"memory {station.memory}: 64 to 65536 MiB a guest")
    if not 1 <= station.keys <= 10_000:
        add("keys", f"keys {station.keys}: 1 to 10000")
    if not 0 <= station.size <= 65_536:
        add("size", f"size {station.size}: 0 to 65536 bytes")
    if not station.deadline > 0:
        add("deadline", f"deadline {station.deadline}: above 0 seconds")
    if not 0 < station.hang < station.deadline:
        add(
            "hang",
            f"hang {station.hang}: above 0 and below deadline ({station.deadline} s), so that a "
            "silent guest is detected before requests time out",
        )


def _check_numbers(spec: Spec, problems: SpecProblems) -> None:
    workload = spec.workload
    if not 1 <= workload.length <= 256:
        problems.add(
            f"length {workload.length}: 1 to 256 requests a mission", table="workload", key="length"
        )
    if workload.seed is not None and not 0 <= workload.seed < 1 << 63:
        problems.add(f"seed {workload.seed}: 0 to 2^63 - 1", table="workload", key="seed")
    _check_workload_mix(spec, problems)
    if not 0 <= spec.alike <= 1:
        problems.add(f"alike {spec.alike}: a share, 0 to 1", key="alike")
    if not 0 < spec.alpha <= 0.5:
        problems.add(f"alpha {spec.alpha}: above 0, at most 0.5 (0.05: 95 %)", key="alpha")
    if not 0 <= spec.extension <= 1:
        problems.add(f"extension {spec.extension}: a share of the missions, 0 to 1",
                     key="extension")  # fmt: skip
    if spec.workers is not None and not 1 <= spec.workers <= 1024:
        problems.add(f"workers {spec.workers}: 1 to 1024, or leave it out", key="workers")
    for name in ("rm", "rv", "rh"):
        values = spec.points.axis(name)
        if not values:
            problems.add(f"{name}: no value; give at least one, or leave the key out",
                         table="points", key=name)  # fmt: skip
        for value in values:
            if not 0 <= value <= 1:
                problems.add(f"{name} {value}: a probability, 0 to 1", table="points", key=name)
    margins = spec.margins
    for name, margin in (("u", margins.u), ("rv", margins.rv)):
        if not 0 < margin < 1:
            problems.add(f"{name} {margin}: a margin above 0 and below 1",
                         table="margins", key=name)  # fmt: skip
    low, high = margins.q
    if not 0 < low <= high <= 1:
        problems.add(f"q [{low}, {high}]: a range within 0 to 1, the lower first, above 0",
                     table="margins", key="q")  # fmt: skip


def _check_workload_mix(spec: Spec, problems: SpecProblems) -> None:
    mix, usual = spec.workload.mix, STATIC_MIX if spec.station.service == "static" else KV_MIX
    if spec.station.mix:
        problems.add("mix: it belongs to the workload; put it under [workload]",
                     table="station", key="mix")  # fmt: skip
    for kind, weight in mix.items():
        if kind not in usual:
            problems.add(f"mix: no request {kind!r}: {suggest(kind, usual)}",
                         table="workload", key="mix")  # fmt: skip
        elif not 0 <= weight < float("inf"):
            problems.add(f"mix: {kind} = {weight}: a weight is 0 or more",
                         table="workload", key="mix")  # fmt: skip
    if mix and not any(weight > 0 for weight in mix.values()):
        problems.add("mix: give at least one kind of request a weight above 0",
                     table="workload", key="mix")  # fmt: skip


def _known(
    spec: Spec, kind: str, problems: SpecProblems, *, table: str, number: int = 0, key: str
) -> FaultKind | None:
    """Return a fault, and report why this campaign's station cannot have it, if so."""
    fault = CATALOGUE.get(kind)
    if fault is None:
        problems.add(f"no fault {kind!r}: {suggest(kind, CATALOGUE)}",
                     table=table, number=number, key=key)  # fmt: skip
        return None
    if "ssh" in fault.needs and not spec.station.ssh:
        problems.add(
            f"{kind} acts inside the guest over SSH, which this station does not have: set "
            "ssh = true in [station], or remove it",
            table=table, number=number, key=key,
        )  # fmt: skip
    if "poisoned" in fault.needs and not is_poisoned(spec.station.service):
        problems.add(
            f"{kind} needs the service with the planted bug: set service = {POISONED!r} in "
            "[station], or remove it",
            table=table, number=number, key=key,
        )  # fmt: skip
    if kind == "corrupt-state" and not (
        spec.station.service == "kv" or is_poisoned(spec.station.service)
    ):
        problems.add(
            f"{kind} writes a canary key, which only the service kv accepts (this station runs "
            f"{spec.station.service}): set service = 'kv' in [station], or remove it",
            table=table, number=number, key=key,
        )  # fmt: skip
    if "planted" in fault.needs and spec.station.function != _PLACES[fault.layer]:
        place = _PLACES[fault.layer]
        problems.add(
            f"{kind} needs the function {'F on the host' if place == 'host' else 'f in each guest'}"
            f": set function = {place!r} in [station], or remove it",
            table=table, number=number, key=key,
        )  # fmt: skip
    return fault


def _check_mixes(spec: Spec, problems: SpecProblems) -> None:
    for table, mix, target in (
        ("faults", spec.faults, "guest"),
        ("voter_faults", spec.voter_faults, "voter"),
        ("function_faults", spec.function_faults, "guest"),
        ("host_function_faults", spec.host_function_faults, "function"),
    ):
        if mix and not any(weight > 0 for weight in mix.values()):
            problems.add(f"[{table}]: give at least one kind a weight above 0", table=table)
        for kind, weight in mix.items():
            if not 0 <= weight < float("inf"):
                problems.add(f"{kind} = {weight}: a weight is 0 or more", table=table, key=kind)
            fault = _known(spec, kind, problems, table=table, key=kind)
            if fault is None:
                continue
            in_f = table == "function_faults"
            able = [
                k for k, f in CATALOGUE.items()
                if target in f.targets and f.fails and (f.layer is FaultLayer.FUNCTION) == in_f
            ]  # fmt: skip
            if target in fault.targets and (fault.layer is FaultLayer.FUNCTION) != in_f:
                words = "does not hit f, but the rest of a guest" if in_f else "hits f"
                remedy = "[faults]" if in_f else "[function_faults]"
                problems.add(f"{kind} {words}: put it under {remedy}", table=table, key=kind)
            elif target not in fault.targets:
                problems.add(
                    f"{kind} does not hit a {target} but a {' or '.join(fault.targets)}: give one "
                    f"of {', '.join(able)}",
                    table=table, key=kind,
                )  # fmt: skip
            elif not fault.fails and spec.question in FORCED:
                problems.add(
                    f"{kind} need not make the {target} fail, but the inequalities count a hit "
                    f"{target} as failed: give one of {', '.join(able)}, or {_elsewhere(fault)}",
                    table=table, key=kind,
                )  # fmt: skip


def _elsewhere(fault: FaultKind) -> str:
    """Return where a fault can be used that need not make its target fail."""
    if "flip" in fault.kind and "guest" in fault.targets:
        return "use it as a dose"
    return 'use it with question = "softerrors"'


def _policy(vote: str, add: Callable[[str, str], None]) -> Policy | None:
    """Return the policy, or report why the text is none."""
    try:
        return Policy.parse(vote)
    except PolicyError as error:
        add(str(error), "vote")
        return None


def _fits(policy: Policy, guests: int, add: Callable[[str, str], None]) -> bool:
    """Return whether the station has enough guests; report it if not."""
    if policy.of > guests:
        add(f"vote {policy}: the station has {guests} guests, give it {policy.of}", "vote")
    return policy.of <= guests


def _check_strata(spec: Spec, problems: SpecProblems) -> None:
    seen: dict[tuple[object, ...], int] = {}
    for number, stratum in enumerate(spec.strata):

        def add(words: str, key: str = "", number: int = number) -> None:
            problems.add(words, table="strata", number=number, key=key)

        most = 1 if stratum.design == "nv" else spec.station.guests
        if stratum.vote is not None:
            if (policy := _policy(stratum.vote, add)) is None:
                continue
            if stratum.design == "nv":
                add("the plain design does not vote: leave vote out", "vote")
            elif not _fits(policy, spec.station.guests, add):
                pass  # reported
            elif spec.question != "designs":
                add(
                    f"question {spec.question} allows one policy, that of [station]: leave vote "
                    'out, or set question = "designs"',
                    "vote",
                )
            else:
                most = policy.of
        for key, count in (("guests_hit", stratum.guests_hit),
                           ("function_hit", stratum.function_hit)):  # fmt: skip
            if count < 0:
                add(f"{key} {count}: 0 or more", key)
        if not 0 <= stratum.guests_hit <= most:
            plain = stratum.design == "nv"
            whose = "the plain design has one guest" if plain else f"the node has {most} guests"
            add(f"guests_hit {stratum.guests_hit}: {whose}, give 0 to {most}", "guests_hit")
        if stratum.design == "nv" and stratum.voter_hit:
            add("the plain design has no voter to hit: set voter_hit = false", "voter_hit")
        if stratum.design == "nv" and stratum.repair in ("on", "both"):
            add("the plain design has no repair: leave repair out", "repair")
        elif stratum.guests_hit <= most < stratum.guests_hit + stratum.function_hit:
            add(f"function_hit {stratum.function_hit}: of {most} guests {stratum.guests_hit} are "
                f"hit already: give 0 to {most - stratum.guests_hit}",
                "function_hit")  # fmt: skip
        _check_function(spec, stratum, add)
        if stratum.guests_hit and not spec.faults:
            add("guests are hit, but there is no [faults] with kinds and weights: add it")
        if stratum.voter_hit and not spec.voter_faults:
            add("the voter is hit, but there is no [voter_faults] with kinds and weights: add it")
        if (stratum.missions is None) == (stratum.bound is None):
            add("give either missions (how many) or bound (how wide its interval may be)")
        if stratum.missions is not None and not 1 <= stratum.missions <= MOST:
            add(f"missions {stratum.missions}: 1 to {MOST}", "missions")
        if stratum.bound is not None and not 1e-5 <= stratum.bound < 1:
            add(f"bound {stratum.bound}: 0.00001 to below 1", "bound")
        for cell in _cells_of(spec, stratum):
            if cell in seen:
                add(f"the same stratum as number {seen[cell] + 1}: merge them")
            seen[cell] = number


def _check_function(spec: Spec, stratum: StratumSpec, add: Callable[[str, str], None]) -> None:
    """Check what a stratum says about the function f, or F."""
    station = spec.station.function
    for key, hit, place, mix in (
        ("function_hit", stratum.function_hit, "guest", spec.function_faults),
        ("host_function_hit", stratum.host_function_hit, "host", spec.host_function_faults),
    ):
        if hit and station != place:
            add(f"{key}: the station's function is {station!r}; set function = {place!r} in "
                "[station]", key)  # fmt: skip
        elif hit and not mix:
            table = f"{key.removesuffix('_hit')}_faults"
            add(f"{key}: there is no [{table}] with kinds and weights: add it", key)
        if hit and spec.question != "designs":
            add(f'{key}: question {spec.question} has no function: set question = "designs"', key)
    if stratum.design == "nv" and station == "host":
        add("the plain design has no F, and its guest no f: use a campaign with "
            'function = "guest"', "design")  # fmt: skip


def _is_policy(vote: str | None) -> bool:
    try:
        Policy.parse(vote or "1/1")
    except PolicyError:
        return False  # reported where the stratum is checked
    return True


def _cells_of(spec: Spec, stratum: StratumSpec) -> Iterator[tuple[object, ...]]:
    settings = (False,) if stratum.design == "nv" else repairs(stratum.repair or spec.repair)
    for repair in settings:
        yield (stratum.design, stratum.vote, stratum.guests_hit, stratum.voter_hit,
               stratum.function_hit, stratum.host_function_hit, repair)  # fmt: skip


def _check_doses(spec: Spec, problems: SpecProblems) -> None:
    for dose, fault, add in _entries(spec, problems, "doses", ("voted", "nv"), least=0):
        if fault is not None and ("guest" not in fault.targets or "flip" not in dose.kind):
            flips = [k for k, f in CATALOGUE.items() if "guest" in f.targets and "flip" in k]
            add(f"{dose.kind} has no dose: give one of {', '.join(flips)}", "kind")


def _check_shots(spec: Spec, problems: SpecProblems) -> None:
    for shot, fault, add in _entries(spec, problems, "shots", ("missions", "nv"), least=1):
        if fault is not None and fault.targets == ("voter",):
            shared = [k for k, f in CATALOGUE.items() if {"host", "client"} & set(f.targets)]
            add(f"{shot.kind} hits the voter alone: give one of {', '.join(shared)}", "kind")
        if isinstance(shot, CommonCauseSpec) and shot.vote is not None:
            if (policy := _policy(shot.vote, add)) is None:
                continue
            _fits(policy, spec.station.guests, add)
            if not shot.missions:
                add("the plain design does not vote: leave vote out", "vote")


def _entries(
    spec: Spec, problems: SpecProblems, table: str, designs: tuple[str, str], *, least: int
) -> Iterator[tuple[DoseSpec | CommonCauseSpec, FaultKind | None, Callable[[str, str], None]]]:
    """Check what doses and shots have in common: kind, flips, missions, no entry twice.

    Yield each entry with its fault, and the function that reports a problem with it.
    """
    seen: set[tuple[str, int, str | None]] = set()
    for number, entry in enumerate(getattr(spec, table)):

        def add(words: str, key: str = "", number: int = number) -> None:
            problems.add(words, table=table, number=number, key=key)

        yield (
            entry,
            _known(spec, entry.kind, problems, table=table, number=number, key="kind"),
            add,
        )
        if not least <= entry.flips <= MOST_FLIPS:
            add(f"flips {entry.flips}: {least} to {MOST_FLIPS} a mission and guest", "flips")
        asked = {key: getattr(entry, key) for key in designs}
        for key, missions in asked.items():
            if not 0 <= missions <= MOST:
                add(f"{key} {missions}: 0 to {MOST} missions", key)
        if not any(asked.values()):
            add(f"no mission at all: give {' or '.join(designs)}")
        own = (entry.kind, entry.flips, getattr(entry, "vote", None))
        if own in seen:
            add(f"{entry.kind}, {entry.flips} flips, is there already: merge them")
        seen.add(own)


def _check_question(spec: Spec, problems: SpecProblems) -> None:
    """Check that the missions can answer the question."""
    if spec.question == "softerrors" and not any(dose.voted and dose.nv for dose in spec.doses):
        problems.add(
            "question softerrors compares voted missions with plain ones at the same dose: give "
            "[[doses]] with both voted and nv",
            key="question",
        )
    if spec.question == "commoncause" and not any(shot.missions for shot in spec.shots):
        problems.add("question commoncause needs [[shots]] with missions", key="question")
    groups: dict[tuple[str, bool], set[int]] = {}
    for stratum in spec.strata:
        layer_hit = stratum.voter_hit or stratum.host_function_hit
        if stratum.design == "voted" and not layer_hit and _is_policy(stratum.vote):
            for repair in repairs(stratum.repair or spec.repair):
                failing = stratum.guests_hit + stratum.function_hit
                groups.setdefault((stratum.vote or "", repair), set()).add(failing)
    forced = spec.question in FORCED
    if forced and not groups:
        problems.add(f"question {spec.question} needs [[strata]] without voter_hit", key="question")
    for (vote, repair), hit in groups.items():
        missing = sorted(set(range(spec.guests_of(vote) + 1)) - hit)
        if missing and forced:
            setting = f"{'on' if repair else 'off'}{f', vote {vote}' if vote else ''}"
            problems.add(
                "the strata cannot be combined without guests_hit (with function_hit) = "
                f"{', '.join(map(str, missing))} (voter not hit, repair {setting}): add them",
                table="strata",
            )
