"""What a campaign file may not ask for.  All problems are reported together, each with its fix.

Only the file is checked here.  Whether the host can do it (a debug stub, KVM) is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from deploy.strict_toml import SpecProblems, suggest
from faultinject.campaign.planning.spec import (
    FORCED,
    CommonCauseSpec,
    DoseSpec,
    Repair,
    Spec,
    StratumSpec,
    is_file,
)
from faultinject.faults import CATALOGUE, FaultKind, FaultLayer
from faultinject.history.workload import KV_MIX, STATIC_MIX
from guests.check.run import own_requests
from guests.service import SHIPPED, ServiceError, load
from voter.core.vote import Policy, PolicyError

__all__ = ["check", "repairs"]

POISONED = "poisoned"
"""The service with the planted bug (``faultinject/services/poisoned.py``), by name or path."""
MOST = 10_000_000
"""Most missions in one table of a campaign file; more is an error."""
MOST_FLIPS = 10_000_000
"""Most flips in each guest of a mission; more is an error."""
MOST_WEIGHT = 1_000_000
"""Largest weight of a kind; more is an error."""
_PLACES = {FaultLayer.GUEST_FUNCTION: "guest", FaultLayer.HOST_FUNCTION: "host"}
"""Where the node must have the function, for faults of these layers."""

_Report = Callable[[str, str], None]
"""Reports a problem (message, key) in one table."""


def repairs(choice: Repair) -> tuple[bool, ...]:
    """Return the settings of repair that missions run with."""
    return (False, True) if choice == "both" else (choice == "on",)


def check(spec: Spec, problems: SpecProblems) -> None:
    """Check everything that the types do not check.  Raises SpecError."""
    _check_node(spec, problems)
    _check_workload(spec, _reporter(problems, "workload"))
    _check_statistics(spec, problems)
    _check_mixes(spec, problems)
    _check_strata(spec, problems)
    _check_doses(spec, problems)
    _check_common_causes(spec, problems)
    _check_question(spec, problems)
    problems.raise_any()


def _reporter(problems: SpecProblems, table: str = "", number: int = 0) -> _Report:
    def report(message: str, key: str) -> None:
        problems.add(message, table=table, number=number, key=key)

    return report


def _check_range(
    report: _Report, key: str, value: float, low: float, high: float, unit: str = ""
) -> None:
    if not low <= value <= high:
        report(f"{key} {value}: {low} to {high}{unit}", key)


def _check_node(spec: Spec, problems: SpecProblems) -> None:
    node, report = spec.station, _reporter(problems, "station")
    policy = _policy(node.vote, report)
    if policy is not None and policy.of != node.guests:
        report(f"vote {policy} needs {policy.of} guests, not {node.guests}", "guests")
    services = (*SHIPPED, POISONED)
    if node.service not in services and not Path(node.service).is_file():
        remedy = suggest(node.service, services)
        report(f"no service {node.service!r}: {remedy}, or a Python file", "service")
    elif is_file(node.service):
        _check_own_service(spec, problems)
    _check_range(report, "memory", node.memory, 64, 1 << 16, " MiB a guest")
    _check_range(report, "keys", node.keys, 1, 10_000)
    _check_range(report, "size", node.size, 0, 65_536, " bytes")
    if not node.deadline > 0:
        report(f"deadline {node.deadline}: above 0 seconds", "deadline")
    if not 0 < node.hang < node.deadline:
        report(
            f"hang {node.hang}: above 0 and below deadline ({node.deadline} s), so that a "
            "silent guest is detected before requests time out",
            "hang",
        )
    if node.mix:
        report("mix: it belongs to the workload; put it under [workload]", "mix")


def _check_own_service(spec: Spec, problems: SpecProblems) -> None:
    """Check a service file, and that ``mix`` does not name requests that it replaces."""
    try:
        own = own_requests(load(spec.station.service))
    except ServiceError as error:
        problems.add(str(error), table="station", key="service")
        return
    if own and spec.workload.mix:
        problems.add(f"mix: the requests are the CHECK_REQUESTS of {spec.station.service}: remove "
                     "mix", table="workload", key="mix")  # fmt: skip


def _check_workload(spec: Spec, report: _Report) -> None:
    workload = spec.workload
    known = STATIC_MIX if spec.station.service == "static" else KV_MIX
    _check_range(report, "length", workload.length, 1, 256, " requests a mission")
    if workload.seed is not None and not 0 <= workload.seed < 1 << 63:
        report(f"seed {workload.seed}: 0 to 2^63 - 1", "seed")
    for kind in workload.mix.keys() - known.keys():
        report(f"mix: no request {kind!r}: {suggest(kind, known)}", "mix")
    _check_weights(workload.mix, lambda message, _: report(f"mix: {message}", "mix"))


def _check_weights(mix: Mapping[str, float], report: _Report) -> None:
    for kind, weight in mix.items():
        if not 0 <= weight <= MOST_WEIGHT:
            report(f"{kind} = {weight}: a weight is 0 or more, at most {MOST_WEIGHT}", kind)
    if mix and not any(weight > 0 for weight in mix.values()):
        report("give at least one kind a weight above 0", "")


def _check_statistics(spec: Spec, problems: SpecProblems) -> None:
    report = _reporter(problems)
    _check_range(report, "alike", spec.alike, 0, 1, " (a share)")
    if not 1e-6 <= spec.alpha <= 0.5:
        report(f"alpha {spec.alpha}: 0.000001 to 0.5 (0.05: 95 %)", "alpha")
    _check_range(report, "extension", spec.extension, 0, 1, " (a share of the missions)")
    if spec.workers is not None:
        _check_range(report, "workers", spec.workers, 1, 1024)
    report = _reporter(problems, "points")
    for name in ("rm", "rv", "rh"):
        values = spec.points.axis(name)
        if not values:
            report(f"{name}: no value; give at least one, or leave the key out", name)
        for value in values:
            _check_range(report, name, value, 0, 1, " (a probability)")
    report = _reporter(problems, "margins")
    for name, margin in (("u", spec.margins.u), ("rv", spec.margins.rv)):
        if not 0 < margin < 1:
            report(f"{name} {margin}: a margin above 0 and below 1", name)
    low, high = spec.margins.q
    if not 0 < low <= high <= 1:
        report(f"q [{low}, {high}]: a range within 0 to 1, the lower first, above 0", "q")


def _known(spec: Spec, kind: str, report: _Report, key: str) -> FaultKind | None:
    """Return a fault, and report why this campaign's node cannot have it, if so."""
    fault = CATALOGUE.get(kind)
    if fault is None:
        report(f"no fault {kind!r}: {suggest(kind, CATALOGUE)}", key)
        return None
    node = spec.station
    poisoned = Path(node.service).stem == POISONED
    if "ssh" in fault.needs and not node.ssh:
        report(f"{kind} acts inside the guest over SSH, which this node does not have: set "
               "ssh = true in [station], or remove it", key)  # fmt: skip
    if "poisoned" in fault.needs and not poisoned:
        report(f"{kind} needs the service with the planted bug: set service = {POISONED!r} in "
               "[station], or remove it", key)  # fmt: skip
    if kind == "corrupt-state" and not (node.service == "kv" or poisoned):
        report(f"{kind} writes a canary key, which only the service kv accepts (this node runs "
               f"{node.service}): set service = 'kv' in [station], or remove it",
               key)  # fmt: skip
    place = _PLACES.get(fault.layer)
    if "planted" in fault.needs and node.function != place:
        where = "F on the host" if place == "host" else "f in each guest"
        report(f"{kind} needs the function {where}: set function = {place!r} in [station], or "
               "remove it", key)  # fmt: skip
    return fault


def _check_mixes(spec: Spec, problems: SpecProblems) -> None:
    for table, mix, target in (
        ("faults", spec.faults, "guest"),
        ("voter_faults", spec.voter_faults, "voter"),
        ("function_faults", spec.function_faults, "guest"),
        ("host_function_faults", spec.host_function_faults, "function"),
    ):
        report = _reporter(problems, table)
        _check_weights(mix, report)
        in_function = table == "function_faults"
        able = ", ".join(
            k for k, f in CATALOGUE.items()
            if target in f.targets and f.fails
            and (f.layer is FaultLayer.GUEST_FUNCTION) == in_function
        )  # fmt: skip
        for kind in mix:
            fault = _known(spec, kind, report, kind)
            if fault is None:
                continue
            if target not in fault.targets:
                hit = " or ".join(fault.targets)
                report(f"{kind} does not hit a {target} but a {hit}: give one of {able}", kind)
            elif (fault.layer is FaultLayer.GUEST_FUNCTION) != in_function:
                what = "does not hit f, but the rest of a guest" if in_function else "hits f"
                remedy = "[faults]" if in_function else "[function_faults]"
                report(f"{kind} {what}: put it under {remedy}", kind)
            elif not fault.fails and spec.question in FORCED:
                flip = "flip" in fault.kind and "guest" in fault.targets
                elsewhere = "as a dose" if flip else 'with question = "softerrors"'
                report(f"{kind} need not make the {target} fail, but the inequalities count a hit "
                       f"{target} as failed: give one of {able}, or use it {elsewhere}",
                       kind)  # fmt: skip


def _policy(vote: str, report: _Report) -> Policy | None:
    """Return the policy, or report why the text is none."""
    try:
        return Policy.parse(vote)
    except PolicyError as error:
        report(str(error), "vote")
        return None


def _fits(policy: Policy, guests: int, report: _Report) -> bool:
    """Return whether the node has enough guests; report it if not."""
    if policy.of > guests:
        report(f"vote {policy}: the node has {guests} guests, give it {policy.of}", "vote")
    return policy.of <= guests


def _check_strata(spec: Spec, problems: SpecProblems) -> None:
    seen: dict[tuple[object, ...], int] = {}
    for number, stratum in enumerate(spec.strata):
        report = _reporter(problems, "strata", number)
        most = _most_hit(spec, stratum, report)
        if most is not None:
            _check_hits(stratum, most, report)
        _check_function(spec, stratum, report)
        if stratum.guests_hit and not spec.faults:
            report("guests are hit, but there is no [faults] with kinds and weights: add it", "")
        if stratum.voter_hit and not spec.voter_faults:
            report("the voter is hit, but there is no [voter_faults] with kinds and weights: add "
                   "it", "")  # fmt: skip
        if (stratum.missions is None) == (stratum.bound is None):
            report("give either missions (how many) or bound (how wide its interval may be)", "")
        if stratum.missions is not None:
            _check_range(report, "missions", stratum.missions, 1, MOST)
        if stratum.bound is not None and not 1e-5 <= stratum.bound < 1:
            report(f"bound {stratum.bound}: 0.00001 to below 1", "bound")
        for cell in _cells_of(spec, stratum):
            if cell in seen:
                report(f"the same stratum as number {seen[cell] + 1}: merge them", "")
            seen[cell] = number


def _most_hit(spec: Spec, stratum: StratumSpec, report: _Report) -> int | None:
    """Return how many guests the stratum may hit; report a wrong policy, and return None."""
    if stratum.vote is None:
        return 1 if stratum.design == "nv" else spec.station.guests
    policy = _policy(stratum.vote, report)
    if stratum.design == "nv":
        report("the plain design does not vote: leave vote out", "vote")
    elif policy is not None and _fits(policy, spec.station.guests, report):
        if spec.question == "designs":
            return policy.of
        report(f"question {spec.question} allows one policy, that of [station]: leave vote out, or "
               'set question = "designs"', "vote")  # fmt: skip
    return None


def _check_hits(stratum: StratumSpec, most: int, report: _Report) -> None:
    plain = stratum.design == "nv"
    if not 0 <= stratum.guests_hit <= most:
        whose = "the plain design has one guest" if plain else f"the node has {most} guests"
        report(f"guests_hit {stratum.guests_hit}: {whose}, give 0 to {most}", "guests_hit")
    if stratum.function_hit < 0:
        report(f"function_hit {stratum.function_hit}: 0 or more", "function_hit")
    if plain and stratum.voter_hit:
        report("the plain design has no voter to hit: set voter_hit = false", "voter_hit")
    if plain and stratum.repair in ("on", "both"):
        report("the plain design has no repair: leave repair out", "repair")
    elif stratum.guests_hit <= most < stratum.guests_hit + stratum.function_hit:
        report(f"function_hit {stratum.function_hit}: {stratum.guests_hit} of {most} guests are "
               f"hit already: give 0 to {most - stratum.guests_hit}", "function_hit")  # fmt: skip


def _check_function(spec: Spec, stratum: StratumSpec, report: _Report) -> None:
    """Check what a stratum says about the function f, or F."""
    node = spec.station.function
    for key, hit, place, mix in (
        ("function_hit", stratum.function_hit, "guest", spec.function_faults),
        ("host_function_hit", stratum.host_function_hit, "host", spec.host_function_faults),
    ):
        if hit and node != place:
            report(f"{key}: the node's function is {node!r}; set function = {place!r} in "
                   "[station]", key)  # fmt: skip
        elif hit and not mix:
            table = f"{key.removesuffix('_hit')}_faults"
            report(f"{key}: there is no [{table}] with kinds and weights: add it", key)
        if hit and spec.question != "designs":
            report(f'{key}: question {spec.question} has no function: set question = "designs"',
                   key)  # fmt: skip
    if stratum.design == "nv" and node == "host":
        report("the plain design has no F, and its guest no f: use a campaign with "
               'function = "guest"', "design")  # fmt: skip


def _cells_of(spec: Spec, stratum: StratumSpec) -> Iterator[tuple[object, ...]]:
    settings = (False,) if stratum.design == "nv" else repairs(stratum.repair or spec.repair)
    for repair in settings:
        yield (stratum.design, stratum.vote, stratum.guests_hit, stratum.voter_hit,
               stratum.function_hit, stratum.host_function_hit, repair)  # fmt: skip


def _check_doses(spec: Spec, problems: SpecProblems) -> None:
    for dose, fault, report in _entries(spec, problems, "doses", ("voted", "nv"), least=0):
        if fault is not None and ("guest" not in fault.targets or "flip" not in dose.kind):
            flips = [k for k, f in CATALOGUE.items() if "guest" in f.targets and "flip" in k]
            report(f"{dose.kind} has no dose: give one of {', '.join(flips)}", "kind")


def _check_common_causes(spec: Spec, problems: SpecProblems) -> None:
    for cause, fault, report in _entries(spec, problems, "shots", ("missions", "nv"), least=1):
        if fault is not None and fault.targets == ("voter",):
            shared = [k for k, f in CATALOGUE.items() if {"host", "client"} & set(f.targets)]
            report(f"{cause.kind} hits the voter alone: give one of {', '.join(shared)}", "kind")
        if isinstance(cause, CommonCauseSpec) and cause.vote is not None:
            policy = _policy(cause.vote, report)
            fits = policy is not None and _fits(policy, spec.station.guests, report)
            if fits and not cause.missions:
                report("the plain design does not vote: leave vote out", "vote")


def _entries(
    spec: Spec, problems: SpecProblems, table: str, designs: tuple[str, str], *, least: int
) -> Iterator[tuple[DoseSpec | CommonCauseSpec, FaultKind | None, _Report]]:
    """Check what doses and common causes have in common: kind, flips, missions, no entry twice.

    Yield each entry with its fault, and the function that reports a problem with it.
    """
    seen: set[tuple[str, int, str | None]] = set()
    for number, entry in enumerate(getattr(spec, table)):
        report = _reporter(problems, table, number)
        yield entry, _known(spec, entry.kind, report, "kind"), report
        _check_range(report, "flips", entry.flips, least, MOST_FLIPS)
        for key in designs:
            _check_range(report, key, getattr(entry, key), 0, MOST)
        if not any(getattr(entry, key) for key in designs):
            report(f"no mission at all: give {' or '.join(designs)}", "")
        own = (entry.kind, entry.flips, getattr(entry, "vote", None))
        if own in seen:
            report(f"{entry.kind}, {entry.flips} flips, is there already: merge them", "")
        seen.add(own)


def _check_question(spec: Spec, problems: SpecProblems) -> None:
    """Check that the missions can answer the question."""
    report = _reporter(problems)
    if spec.question == "softerrors" and not any(dose.voted and dose.nv for dose in spec.doses):
        report("question softerrors compares voted missions with plain ones at the same dose: give "
               "[[doses]] with both voted and nv", "question")  # fmt: skip
    if spec.question == "commoncause" and not any(cause.missions for cause in spec.shots):
        report("question commoncause needs [[shots]] with missions", "question")
    if spec.question not in FORCED:
        return
    groups: dict[tuple[str, bool], set[int]] = {}
    for stratum in spec.strata:
        host_target_hit = stratum.voter_hit or stratum.host_function_hit
        if stratum.design == "voted" and not host_target_hit and _is_policy(stratum.vote):
            for repair in repairs(stratum.repair or spec.repair):
                failing = stratum.guests_hit + stratum.function_hit
                groups.setdefault((stratum.vote or "", repair), set()).add(failing)
    if not groups:
        report(f"question {spec.question} needs [[strata]] without voter_hit", "question")
    for (vote, repair), hit in groups.items():
        missing = sorted(set(range(spec.guests_of(vote) + 1)) - hit)
        if missing:
            setting = f"{'on' if repair else 'off'}{f', vote {vote}' if vote else ''}"
            problems.add(
                "the strata cannot be combined without guests_hit (with function_hit) = "
                f"{', '.join(map(str, missing))} (voter not hit, repair {setting}): add them",
                table="strata",
            )


def _is_policy(vote: str | None) -> bool:
    try:
        Policy.parse(vote or "1/1")
    except PolicyError:
        return False  # reported where the stratum is checked
    return True
