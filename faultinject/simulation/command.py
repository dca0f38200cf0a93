"""``trivisor simulate``: hunt for seeds that break a promise, shrink them, run one again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from voter.commands.terminal import ExitCode, console, print_json, quiet_logs, warn

if TYPE_CHECKING:
    from faultinject.simulation.hunt import Summary
    from faultinject.simulation.plan import Plan
    from faultinject.simulation.world import Result

__all__ = ["simulate"]

NIGHTLY = range(1, 100_001)
"""Seeds of the nightly size."""
DEFECT_SEEDS = 400
"""Seeds within which each planted defect must be caught."""
SHOWN = 5
"""Failing seeds that are shrunk and shown at most."""


def _read_numbers(
    ctx: click.Context, option: click.Parameter, value: str | None
) -> list[int] | None:
    """Read ``0-3,8``, or ``none``."""
    from faultinject.simulation.shrink import parse_numbers  # noqa: PLC0415

    try:
        return None if value is None else parse_numbers(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not like 0-3,8 (or none)", ctx, option) from error


def _read_range(ctx: click.Context, option: click.Parameter, value: str) -> range:
    """Read ``A..B``: all seeds from A to B."""
    first, dots, last = value.partition("..")
    if not (dots and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise click.BadParameter(f"{value!r} is not like 1..200", ctx, option)
    return range(int(first), int(last) + 1)


@click.command()
@click.option("--seeds", callback=_read_range, default="1..500", show_default=True,
              metavar="A..B", help="Seeds to run.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="Run this seed only, and tell of it.")
@click.option("--nightly", is_flag=True, help=f"Run {len(NIGHTLY):,} seeds.")
@click.option("--size", type=click.IntRange(1, 20), default=1, show_default=True,
              help="Multiply operations and faults of each seed.")  # fmt: skip
@click.option("--faults", callback=_read_numbers, metavar="NUMBERS",
              help="With --seed: only these faults of its plan.")  # fmt: skip
@click.option("--operations", callback=_read_numbers, metavar="NUMBERS",
              help="With --seed: only these operations.")  # fmt: skip
@click.option("--defect", help="Plant this defect first (see --defects).")
@click.option("--defects", is_flag=True,
              help=f"Plant each known defect: caught within {DEFECT_SEEDS} seeds?")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 256), default=os.cpu_count() or 1,
              show_default="one a processor", help="Processes to use.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def simulate(  # noqa: PLR0913 - one for each option
    seeds: range,
    seed: int | None,
    nightly: bool,
    size: int,
    faults: list[int] | None,
    operations: list[int] | None,
    defect: str | None,
    defects: bool,
    jobs: int,
    as_json: bool,
) -> ExitCode:
    """Run the whole system under simulated clocks, networks and disks, seed by seed.

    Everything that happens in a run is a function of its seed. Ends with 0 only if all promises
    held in all runs; a seed that breaks one is shrunk, and printed as one command.
    """
    quiet_logs()
    if defects:
        return _try_defects(jobs, as_json)
    if defect is not None:
        from faultinject.simulation.breakage import plant  # noqa: PLC0415
        from faultinject.simulation.defects import DEFECTS  # noqa: PLC0415

        if defect not in DEFECTS:
            raise click.BadParameter(f"no defect {defect!r}: {', '.join(DEFECTS)}")
        for module in [name for name in sys.modules if name.partition(".")[0] in _CHANGED]:
            del sys.modules[module]  # a few were imported for the command itself
        plant(DEFECTS[defect])
        jobs = 1
    if seed is not None:
        return _run_one(seed, size, faults, operations, as_json, defect)
    return _hunt(NIGHTLY if nightly else seeds, jobs, size, as_json, defect)


_CHANGED = frozenset({"guests", "voter"})


def _run_one(
    seed: int,
    size: int,
    faults: list[int] | None,
    operations: list[int] | None,
    as_json: bool,
    defect: str | None,
) -> ExitCode:
    """Run one seed, whole or in part, and tell what happened."""
    from faultinject.simulation.hunt import summarize  # noqa: PLC0415
    from faultinject.simulation.plan import make_plan  # noqa: PLC0415
    from faultinject.simulation.world import run  # noqa: PLC0415

    plan = make_plan(seed, size=size).without(faults, operations)
    result = run(plan)
    if as_json:
        import msgspec  # noqa: PLC0415

        print_json(msgspec.to_builtins(summarize(result)))
    else:
        _tell_plan(plan)
        _tell_result(result)
    return ExitCode.FAILED if _failed(result) else ExitCode.OK


def _failed(result: Result | Summary) -> bool:
    return bool(result.breaches or result.problems)


def _tell_plan(plan: Plan) -> None:
    out = console()
    out.print(
        f"seed {plan.seed}: durability {plan.durability}, {len(plan.operations)} operations of "
        f"{plan.clients} clients, links up to {plan.delay * 1000:g} ms"
    )
    for fault in plan.faults:
        out.print(
            f"  fault {fault.index}: {fault.at:.3f} s {fault.kind}, replica {fault.target}, "
            f"for {fault.seconds:g} s, amount {fault.amount}"
        )


def _tell_result(result: Result) -> None:
    out = console()
    for breach in result.breaches:
        out.print(f"[red]{breach.promise}[/] at {breach.time:.4f} s: {breach.text}")
    for problem in result.problems:
        out.print(f"[yellow]fault in the code[/]: {problem}")
    out.print(
        f"{result.answered} answered, {result.seconds:.2f} s simulated, {result.steps} steps, "
        f"voter started {result.restarts} times, trace {result.trace}"
    )


def _hunt(seeds: range, jobs: int, size: int, as_json: bool, defect: str | None) -> ExitCode:
    """Run many seeds; shrink and show the first that fail."""
    from rich.progress import Progress, TimeElapsedColumn  # noqa: PLC0415

    from faultinject.simulation.hunt import hunt  # noqa: PLC0415

    began = time.monotonic()
    failed: list[Summary] = []
    count = answered = faults = 0
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), disable=as_json) as progress:
        task = progress.add_task("seeds", total=len(seeds))
        for summary in hunt(seeds, jobs=jobs, size=size):
            count += 1
            answered += summary.answered
            faults += len(summary.faults)
            if _failed(summary):
                failed.append(summary)
            progress.update(task, advance=1, description=f"seeds, {len(failed)} failed")
    failed.sort(key=lambda summary: summary.seed)
    commands = [_shrink(summary, size, defect) for summary in failed[:SHOWN]]
    seconds = time.monotonic() - began
    if as_json:
        print_json(
            {
                "seeds": count,
                "failed": [summary.seed for summary in failed],
                "commands": commands,
                "answered": answered,
                "faults": faults,
                "seconds": round(seconds, 1),
            }
        )
    else:
        out = console()
        for summary, command in zip(failed, commands, strict=False):
            first = summary.breaches[0] if summary.breaches else summary.problems[0]
            words = str(first).strip().splitlines()[-1]
            out.print(f"[red]seed {summary.seed}[/]: {words}\n  {command}")
        if len(failed) > SHOWN:
            out.print("also: " + ", ".join(str(summary.seed) for summary in failed[SHOWN:]))
        out.print(
            f"{count} seeds, {len(failed)} failed; {answered} requests answered, {faults} faults, "
            f"{seconds:.1f} s"
        )
    return ExitCode.FAILED if failed else ExitCode.OK


def _shrink(summary: Summary, size: int, defect: str | None) -> str:
    from faultinject.simulation.plan import make_plan  # noqa: PLC0415
    from faultinject.simulation.shrink import command_of, shrink  # noqa: PLC0415

    whole = make_plan(summary.seed, size=size)
    plan = whole
    if summary.breaches:
        plan, _ = shrink(whole, summary.breaches[0].promise)
    return command_of(plan, whole, size=size, defect=defect or "")


def _try_defects(jobs: int, as_json: bool) -> ExitCode:
    """Plant each defect in a process of its own; print which promise caught it, and where."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    from rich.table import Table  # noqa: PLC0415

    from faultinject.simulation.defects import DEFECTS  # noqa: PLC0415

    with ThreadPoolExecutor(jobs) as pool:
        found = dict(zip(DEFECTS, pool.map(_try_defect, DEFECTS), strict=True))
    if as_json:
        print_json(found)
    else:
        table = Table("defect", "what it does", "promise", "seed", "seen")
        for name, said in found.items():
            seed = str(said["seed"]) if said else "[red]not caught[/]"
            table.add_row(name, DEFECTS[name].what, said.get("promise"), seed, said.get("text"))
        console().print(table)
    missed = [name for name, said in found.items() if not said]
    if missed:
        warn(f"not caught in {DEFECT_SEEDS} seeds: {', '.join(missed)}")
    return ExitCode.FAILED if missed else ExitCode.OK


def _try_defect(name: str) -> dict[str, Any]:
    """Return seed, promise and text of the first breach with this defect, of a seed that breaks
    nothing without it; empty: none.
    """
    first = 1
    while first <= DEFECT_SEEDS:
        said = _hunt_apart(name, first, DEFECT_SEEDS)
        if not said or not _hunt_apart("-", said["seed"], said["seed"]):
            return said
        first = said["seed"] + 1
    return {}


def _hunt_apart(name: str, first: int, last: int) -> dict[str, Any]:
    """Hunt in a process of its own, in which a defect is planted."""
    command = [sys.executable, "-m", "faultinject.simulation.breakage", name, f"{first}..{last}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"defect {name} cannot be planted: {done.stderr.strip()[-300:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said
