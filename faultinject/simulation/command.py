"""``trivisor simulate``: find seeds that break a promise, group and shrink them, trace one.

Most imports are inside functions: ``--defect`` must change the product before it is imported.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from voter.commands.parameters import SEED, Integer, Text, output_file
from voter.commands.terminal import ExitCode, console, print_json, quiet_logs, warn

if TYPE_CHECKING:
    from faultinject.simulation.groups import FailureGroup, Shrunk
    from faultinject.simulation.plan import SimPlan
    from faultinject.simulation.run import RunResult
    from faultinject.simulation.seeds import KnownSeed

__all__ = ["simulate"]

FRESH = 500
"""Number of seeds to run by default."""
SHOWN = 8
"""Most groups of failed seeds of which one seed is shrunk and printed."""
COMPARED = 60
"""Most differences that ``--compare`` prints; ``--json`` has all."""
TIMELINE = 60
"""Most timeline lines of a shrunk run that are printed; ``--trace`` prints all."""
FAILURES = "simulation-failures.jsonl"


class _Numbers(Text):
    """Numbers like ``0-3,8``, or ``none``."""

    name = "NUMBERS"

    def read(self, text: str) -> list[int]:
        """Return the numbers."""
        from faultinject.simulation.notation import parse_numbers  # noqa: PLC0415

        return parse_numbers(text)


class _SeedRange(Text):
    """A..B: all seeds from A to B."""

    name = "A..B"

    def read(self, text: str) -> range:
        """Return the range."""
        found = re.fullmatch(r"([0-9]{1,19})\.\.([0-9]{1,19})", text)
        first, last = map(int, found.groups()) if found else (1, 0)
        if not first <= last < 1 << 63:
            raise ValueError(f"{text!r} is not like 1..200: a seed, two dots, one not below it")
        return range(first, last + 1)


@click.command()
@click.option("--fresh", type=Integer(1, 1_000_000_000), metavar="N",
              help=f"Run N seeds that no earlier run has used.  [default: {FRESH}]")  # fmt: skip
@click.option("--known", "with_known", is_flag=True,
              help="Run every seed that once broke a promise.")  # fmt: skip
@click.option("--seeds", type=_SeedRange(), help="Run the seeds A to B.")
@click.option("--compare", "against", type=_SeedRange(),
              help="With --seeds: report what those reach and A to B do not.")  # fmt: skip
@click.option("--fingerprint", "fingerprints", is_flag=True,
              help="With --seeds: print hashes of each run, to compare two versions.")  # fmt: skip
@click.option("--nightly", is_flag=True,
              help="Run fresh seeds until stopped; append each failure to --log.")  # fmt: skip
@click.option("--log", type=output_file(), default=FAILURES,
              show_default=True, help="With --nightly: the file for failures.")  # fmt: skip
@click.option("--seed", type=SEED, help="Run this seed only, and print its plan and result.")
@click.option("--trace", is_flag=True, help="With --seed: print a timeline of the run.")
@click.option("--faults", type=_Numbers(),
              help="With --seed: inject only these faults of its plan.")  # fmt: skip
@click.option("--operations", type=_Numbers(),
              help="With --seed: make only these operations of its plan.")  # fmt: skip
@click.option("--defect", help="Plant this defect first (see --defects).")
@click.option("--defects", is_flag=True,
              help="Mutation testing: is each planted defect detected in 100 seeds?")  # fmt: skip
@click.option("--jobs", type=Integer(1, 256), default=os.cpu_count() or 1,
              show_default="one per processor", help="Number of worker processes.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def simulate(  # noqa: PLR0913 - one for each option
    fresh: int | None,
    with_known: bool,
    seeds: range | None,
    against: range | None,
    fingerprints: bool,
    nightly: bool,
    log: Path,
    seed: int | None,
    trace: bool,
    faults: list[int] | None,
    operations: list[int] | None,
    defect: str | None,
    defects: bool,
    jobs: int,
    as_json: bool,
) -> ExitCode:
    """Run the whole system with simulated clocks, networks and disks, seed by seed.

    Everything in a run is a function of its seed. A failure does not stop the command: failed seeds
    are grouped by their reports, and one seed of each group is shrunk. It is printed as the command
    that repeats it, with a timeline. The exit code is 0 only if all promises held in all runs.
    """
    quiet_logs()
    if seed is None and (trace or faults is not None or operations is not None):
        raise click.UsageError("--trace, --faults and --operations are about one run: give --seed")
    _require_one({
        "--seed": seed is not None, "--seeds": seeds is not None, "--fresh": fresh is not None,
        "--defects": defects,
    })  # fmt: skip
    _require_one({"--seed": seed is not None, "--nightly": nightly, "--fingerprint": fingerprints,
                  "--compare": against is not None, "--defects": defects})  # fmt: skip
    _require_one({"--seed": seed is not None, "--known": with_known, "--defects": defects})
    _require_one({"--defect": defect is not None, "--defects": defects})
    if against is not None:
        if seeds is None:
            raise click.UsageError("--compare needs two ranges of seeds: give --seeds")
        return _compare(against, seeds, as_json)
    if fingerprints:
        if seeds is None:
            raise click.UsageError("--fingerprint needs a range: give --seeds")
        return _print_fingerprints(seeds, as_json)
    if defects:
        return _detect_defects(jobs, as_json)
    if defect is not None:
        from faultinject.simulation.defects import DEFECTS  # noqa: PLC0415
        from faultinject.simulation.mutation import plant  # noqa: PLC0415

        if defect not in DEFECTS:
            raise click.BadParameter(f"no defect {defect!r}; give one of {', '.join(DEFECTS)}")
        for module in [name for name in sys.modules if name.partition(".")[0] in _CHANGED]:
            del sys.modules[module]  # imported for the command line itself
        plant(DEFECTS[defect])
        jobs = 1
    if seed is not None:
        return _run_one(seed, faults, operations, as_json=as_json, trace=trace)
    chosen = _choose(fresh, seeds, with_known=with_known, nightly=nightly)
    hunt = _Hunt(chosen, jobs, as_json=as_json, defect=defect or "")
    return hunt.run_nightly(log) if nightly else hunt.run()


def _require_one(given: dict[str, bool]) -> None:
    """Raise UsageError if more than one of these options is given."""
    both = [name for name, is_given in given.items() if is_given]
    if len(both) > 1:
        raise click.UsageError(f"{' and '.join(both)} exclude each other: give one of them")


_CHANGED = frozenset({"guests", "voter"})
"""Packages in which defects are planted.  Their modules must be imported again afterwards."""


def _compare(first: range, second: range, as_json: bool) -> ExitCode:
    """Print how much each of two ranges reaches, and what only the second one does."""
    from rich.table import Table  # noqa: PLC0415

    from faultinject.simulation.plan import make_plan  # noqa: PLC0415
    from faultinject.simulation.reach import DIMENSIONS, compare, measure  # noqa: PLC0415

    groups = [measure(map(make_plan, each)) for each in (first, second)]
    found = compare(*groups)
    counts = {
        name: [
            *(len(each.counts[name]) for each in groups),
            sum(each.dimension == name for each in found),
        ]
        for name in DIMENSIONS
    }
    if as_json:
        print_json({"counts": counts, "only_second": [each._asdict() for each in found]})
        return ExitCode.OK
    titles = [f"{each.start}..{each.stop - 1}" for each in (first, second)]
    table = Table("dimension", *titles, f"only {titles[1]}")
    for name, numbers in counts.items():
        table.add_row(name, *map(str, numbers))
    console().print(table)
    table = Table("dimension", f"reached by {titles[1]} only", "runs")
    for each in found[:COMPARED]:
        table.add_row(each.dimension, each.text, str(each.runs))
    console().print(table)
    return ExitCode.OK


def _print_fingerprints(seeds: range, as_json: bool) -> ExitCode:
    """Print a line of hashes for each seed."""
    from faultinject.simulation.fingerprint import fingerprint  # noqa: PLC0415
    from faultinject.simulation.plan import make_plan  # noqa: PLC0415

    found = []
    for seed in seeds:
        each = fingerprint(make_plan(seed))
        found.append(each._asdict())
        if not as_json:
            sys.stdout.write(" ".join(map(str, each)) + "\n")
            sys.stdout.flush()
    if as_json:
        print_json(found)
    return ExitCode.OK


class _Chosen(NamedTuple):
    """The seeds to run: known ones, then a range (``endless``: all from its start on)."""

    known: tuple[KnownSeed, ...]
    range: range
    origin: str  # where the range comes from
    revision: str
    endless: bool = False

    def seeds(self) -> Iterator[int]:
        """Yield all of them."""
        yield from (each.seed for each in self.known)
        yield from count(self.range.start) if self.endless else self.range

    @property
    def total(self) -> int:
        """The number of seeds, unless they are endless."""
        return len(self.known) + len(self.range)


def _choose(number: int | None, seeds: range | None, *, with_known: bool, nightly: bool) -> _Chosen:
    """Return the seeds that the options name."""
    from faultinject.simulation.seeds import fresh, known, source_revision  # noqa: PLC0415

    if seeds is not None and (number is not None or nightly):
        raise click.UsageError("--seeds cannot be combined with --fresh or --nightly")
    old = known() if with_known else ()
    revision, now = source_revision(), time.time_ns()
    if seeds is not None:
        return _Chosen(old, seeds, "given", revision)
    if number is None and with_known and not nightly:
        return _Chosen(old, range(0), "none", revision)
    if number is None:
        number = FRESH
    when = datetime.fromtimestamp(now / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    origin = f"fresh: commit {revision}, {when}"
    return _Chosen(old, fresh(number, revision, now), origin, revision, nightly)


def _run_one(
    seed: int,
    faults: list[int] | None,
    operations: list[int] | None,
    *,
    as_json: bool,
    trace: bool,
) -> ExitCode:
    """Run one seed, with all or some of its plan, and print the result."""
    from faultinject.simulation.plan import make_plan  # noqa: PLC0415
    from faultinject.simulation.run import run  # noqa: PLC0415
    from faultinject.simulation.timeline import Timeline  # noqa: PLC0415

    plan = make_plan(seed).without(faults, operations)
    timeline = Timeline() if trace else None
    if as_json:
        import msgspec  # noqa: PLC0415

        result = run(plan, timeline)
        found = msgspec.to_builtins(result)
        print_json(found | ({"timeline": timeline.lines} if timeline is not None else {}))
    else:
        _print_plan(plan)
        result = run(plan, timeline)
        if timeline is not None:
            sys.stdout.write("".join(f"{line}\n" for line in timeline.lines))
        _print_result(result)
    return ExitCode.FAILED if result.failed else ExitCode.OK


def _print_plan(plan: SimPlan) -> None:
    out = console()
    out.print(
        f"seed {plan.seed}: durability {plan.durability}, {len(plan.operations)} operations of "
        f"{plan.clients} clients, links up to {plan.delay * 1000:.3g} ms"
        + (", two replicas may be faulty at a time" if plan.two_faulty else "")
    )
    for fault in plan.faults:
        out.print(
            f"  fault {fault.index}: {fault.at:.3f} s {fault.kind}, replica {fault.target}, "
            f"for {fault.seconds:.3g} s, amount {fault.amount}"
        )


def _print_result(result: RunResult) -> None:
    out = console()
    for breach in result.breaches:
        out.print(f"[red]{breach.promise}[/] at {breach.time:.4f} s: {breach.text}")
    for problem in result.problems:
        out.print(f"[yellow]unhandled exception[/]: {problem}")
    out.print(
        f"{result.answered} answered, {result.seconds:.2f} s simulated, {result.steps} steps, "
        f"voter started {result.voter_starts} times, trace {result.trace}"
    )


class _Hunt:
    """A run of many seeds, and its report."""

    def __init__(self, chosen: _Chosen, jobs: int, *, as_json: bool, defect: str) -> None:
        self._chosen, self._jobs = chosen, jobs
        self._as_json, self._defect = as_json, defect
        self._began = time.monotonic()
        self._failed: list[RunResult] = []
        self._done = self._answered = self._faults = 0

    def run(self) -> ExitCode:
        """Run all seeds; shrink and print one of each group of failures."""
        for result in self._results():
            if result.failed:
                self._failed.append(result)
        from faultinject.simulation.groups import group, shrink_group  # noqa: PLC0415

        groups = group(self._failed)
        shrunk = [shrink_group(each, defect=self._defect) for each in groups[:SHOWN]]
        if self._as_json:
            self._print_json(groups, shrunk)
        else:
            for each, small in zip_longest(groups, shrunk):
                _show_group(each, small)
            console().print(self._totals())
        return ExitCode.FAILED if self._failed else ExitCode.OK

    def run_nightly(self, log: Path) -> ExitCode:
        """Run until stopped; append a line of JSON to ``log`` for each failure, and at the end."""
        from faultinject.simulation.groups import group, shrink_group  # noqa: PLC0415

        with log.open("a") as file:

            def append(entry: dict[str, Any]) -> None:
                now = datetime.now(UTC).isoformat(timespec="seconds")
                entry = {"time": now, "revision": self._chosen.revision} | entry
                file.write(json.dumps(entry, allow_nan=False) + "\n")
                file.flush()

            try:
                for result in self._results():
                    if not result.failed:
                        continue
                    self._failed.append(result)
                    (each,) = group([result])
                    small = shrink_group(each)
                    append(
                        {"seed": result.seed, "promise": each.promise, "report": small.report,
                         "faults": small.kinds, "command": small.command}
                    )  # fmt: skip
                    warn(f"{each.promise}: {small.report}\n  {small.command}")
            except KeyboardInterrupt:
                pass  # the usual way to stop it
            first = self._chosen.range.start
            append({"first": first, "seeds": self._done, "failed": len(self._failed)})
        console().print(f"{self._totals()}; see {log}")
        return ExitCode.FAILED if self._failed else ExitCode.OK

    def _results(self) -> Iterator[RunResult]:
        """Run the seeds, with a progress bar on a terminal."""
        from rich.progress import Progress, TimeElapsedColumn  # noqa: PLC0415

        from faultinject.simulation.hunt import hunt  # noqa: PLC0415

        chosen, err = self._chosen, console(stderr=True)
        if not self._as_json:  # printed first, so that an interrupted run can be repeated
            err.print(self._which())
        columns = (*Progress.get_default_columns(), TimeElapsedColumn())
        with Progress(*columns, console=err, disable=self._as_json) as progress:
            task = progress.add_task("seeds", total=None if chosen.endless else chosen.total)
            for result in hunt(chosen.seeds(), jobs=self._jobs):
                self._done += 1
                self._answered += result.answered
                self._faults += len(result.faults)
                yield result
                failed = len(self._failed)
                progress.update(task, advance=1, description=f"seeds, {failed} failed")

    def _which(self) -> str:
        chosen = self._chosen
        parts = [f"{len(chosen.known)} known seeds"] if chosen.known else []
        if chosen.endless:
            parts.append(f"seeds from {chosen.range.start} on ({chosen.origin})")
        elif chosen.range:
            parts.append(f"seeds {chosen.range[0]}..{chosen.range[-1]} ({chosen.origin})")
        return ", ".join(parts)

    def _totals(self) -> str:
        seconds = time.monotonic() - self._began
        return (
            f"{self._done} seeds, {len(self._failed)} failed; {self._answered} requests answered, "
            f"{self._faults} faults, {seconds:.1f} s ({self._which()})"
        )

    def _print_json(self, groups: list[FailureGroup], shrunk: list[Shrunk]) -> None:
        import msgspec  # noqa: PLC0415

        chosen, seconds = self._chosen, time.monotonic() - self._began
        print_json(
            {
                "revision": chosen.revision,
                "origin": chosen.origin,
                "first": chosen.range.start,
                "fresh": len(chosen.range),
                "known": len(chosen.known),
                "seeds": self._done,
                "failed": sorted(result.seed for result in self._failed),
                "groups": [
                    msgspec.to_builtins(each)
                    | {"shrunk": None if small is None else msgspec.to_builtins(small)}
                    for each, small in zip_longest(groups, shrunk)
                ],
                "answered": self._answered,
                "faults": self._faults,
                "seconds": round(seconds, 1),
                "seeds_a_second": round(self._done / seconds, 1),
                "jobs": self._jobs,
                "python": sys.version.split()[0],
            }
        )


def _show_group(each: FailureGroup, small: Shrunk | None) -> None:
    out = console()
    some = ", ".join(map(str, each.seeds[:10])) + (", ..." if len(each.seeds) > 10 else "")
    out.print(f"[red]{each.promise}[/]: {each.report}\n  {len(each.seeds)} seeds: {some}")
    if small is None:
        return
    kinds = ", ".join(small.kinds) or "none"
    out.print(f"  shrunk to {small.operations} operations and these faults: {kinds}")
    lines = small.timeline
    if len(lines) > TIMELINE:
        omitted = f"{'':9}  ...       {len(lines) - TIMELINE} lines omitted"
        lines = [*lines[: TIMELINE // 3], omitted, *lines[-2 * TIMELINE // 3 :]]
    sys.stdout.write("".join(f"    {line[:160]}\n" for line in lines))
    sys.stdout.flush()
    out.print(f"  all of it: {small.command} --trace")


def _detect_defects(jobs: int, as_json: bool) -> ExitCode:
    """Plant each defect in a process of its own; print which promise detected it, and where."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    from rich.table import Table  # noqa: PLC0415

    from faultinject.simulation.mutation import DEFECT_SEEDS, DEFECTS, detect  # noqa: PLC0415

    with ThreadPoolExecutor(jobs) as pool:
        found = dict(zip(DEFECTS, pool.map(detect, DEFECTS), strict=True))
    if as_json:
        print_json(found)
    else:
        table = Table("defect", "what it does", "promise", "seed", "report")
        for name, breach in found.items():
            first = DEFECTS[name].first
            seed = str(breach["seed"] - first + 1) if breach else "[red]not detected[/]"
            row = (DEFECTS[name].what, breach.get("promise"), seed, breach.get("text"))
            table.add_row(name, *row)
        console().print(table)
    missed = [name for name, breach in found.items() if not breach]
    if missed:
        warn(f"not detected in {DEFECT_SEEDS} seeds: {', '.join(missed)}")
    return ExitCode.FAILED if missed else ExitCode.OK
