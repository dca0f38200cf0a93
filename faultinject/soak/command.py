"""``trivisor soak``: the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from voter.commands.parameters import SEED, Integer, Number, output_directory, output_file
from voter.commands.terminal import ExitCode, console, print_json, quiet_logs

__all__ = ["soak"]

MIB = 1 << 20
TOGETHER = "corrupt-state+voter-kill"
"""The choice of ``--together``, as in ``round_plan``, which is imported only when it runs."""


@click.command()
@click.option("--faults", type=Integer(1, 100_000), default=200, show_default=True,
              help="Number of faults, or of rounds with --together.")  # fmt: skip
@click.option(
    "--seed", type=SEED, default=1, show_default=True, help="Seed of faults and requests."
)
@click.option("--clients", type=Integer(1, 200), default=8, show_default=True,
              help="Number of clients.")  # fmt: skip
@click.option("--rate", type=Number(1, 100_000, "requests per second"), default=200.0,
              show_default=True, help="Requests per second, of all clients.")  # fmt: skip
@click.option("--state", type=Number(0, 12, "MiB"), default=1.0, show_default=True,
              help="Size of the service's state in MiB. A larger state takes longer to "
              "transfer.")  # fmt: skip
@click.option("--durability", type=click.Choice(["fsync", "os"]), default="fsync",
              show_default=True, help="Durability of the node's journal.")  # fmt: skip
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto",
              show_default=True, help="Accelerator of the guests.")  # fmt: skip
@click.option("--rejuvenate", is_flag=True,
              help="Also replace guests by fresh ones; kill voter or supervisor then.")  # fmt: skip
@click.option("--together", type=click.Choice([TOGETHER]), default=None,
              help="Run rounds instead of single faults. Each round flips one bit of a stored "
              "value in the memory of one guest, and kills the voter 50 ms before to 200 ms after "
              "the flip. It then checks that no wrong value was released and that no corrupted "
              "state was restored.")  # fmt: skip
@click.option("--json", "result", type=output_file(allow_dash=True),
              help="Store the record as JSON in this file (-: standard output).")  # fmt: skip
@click.option("--out", type=output_directory(),
              help="Store the record and the node's logs in this directory.")  # fmt: skip
def soak(  # noqa: PLR0913 - one for each option
    faults: int,
    seed: int,
    clients: int,
    rate: float,
    state: float,
    durability: Literal["fsync", "os"],
    accel: Literal["auto", "kvm", "tcg"],
    rejuvenate: bool,
    together: str | None,
    result: Path | None,
    out: Path | None,
) -> int:
    """Inject faults into a node of three guests under load, and check every promise.

    Boots a node of its own. While clients make requests, it kills, freezes, slows and corrupts
    voter, supervisor and guests, as planned by the seed. Many of the faults are injected while a
    guest is being repaired. Never more than one replica is faulty at a time, so every request must
    be answered. Every reply is compared with that of a single correct service. The exit code is 0
    only if all promises held.
    """
    import msgspec  # noqa: PLC0415 - heavy, and only needed when it runs

    from faultinject.soak.record import SoakSpec, save  # noqa: PLC0415
    from faultinject.soak.run import soak_node  # noqa: PLC0415
    from faultinject.soak.screen import SoakScreen, show  # noqa: PLC0415

    if rejuvenate and together:
        raise click.UsageError("--rejuvenate and --together exclude each other")
    quiet_logs()
    spec = SoakSpec(
        faults=faults,
        seed=seed,
        clients=clients,
        rate=rate,
        state=int(state * MIB),
        durability=durability,
        accel=accel,
        rejuvenate=rejuvenate,
        together=together or "",
    )
    to_terminal = result is not None and str(result) == "-"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    with SoakScreen(console(stderr=to_terminal), faults) as screen:
        record = soak_node(spec, screen, keep=out)
    if out is not None:
        name = f"together-{seed}-{faults}" if together else f"soak-{seed}-{faults}"
        save(record, out / f"{name}.json")
    if to_terminal:
        print_json(msgspec.to_builtins(record) | {"held": record.held})
    else:
        if result is not None:
            save(record, result)
        show(console(), record)
    return ExitCode.OK if record.held else ExitCode.FAILED
