"""``trivisor service check FILE``: find what would make replicas of a service disagree."""

from __future__ import annotations

import dataclasses
import sys

import click

from guests.service import ServiceError
from voter.commands.parameters import SEED, Integer
from voter.commands.terminal import CommandError, ExitCode, print_json

__all__ = ["service"]


@click.group()
def service() -> None:
    """User-supplied services: a Python file with one subclass of guests.service.Service."""


@service.command()
@click.argument("file")
@click.option("--requests", type=Integer(1, 1_000_000), default=200, show_default=True,
              help="Number of requests to send.")  # fmt: skip
@click.option("--seed", type=SEED, default=0, show_default=True,
              help="Seed of the random requests.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def check(file: str, requests: int, seed: int, as_json: bool) -> int:
    """Run the service FILE (or kv, static) under different hash seeds, starts and clocks.

    Print the first difference for each condition; exit with 1 if there is one.
    """
    from guests.check import check as run_check  # noqa: PLC0415 - slow to import
    from guests.check import format_result  # noqa: PLC0415

    try:
        result = run_check(file, requests=requests, seed=seed)
    except (ServiceError, ValueError) as error:
        code = error.error_code if isinstance(error, ServiceError) else "TV0006"
        raise CommandError(str(error), error_code=code, code=ExitCode.USAGE) from error
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        sys.stdout.write(format_result(result))
    return ExitCode.OK if result.ok else ExitCode.FAILED
