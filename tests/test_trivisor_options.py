"""Every option of every command: numbers have ranges, and paths are checked when parsed."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

import trivisor
from faultinject.calculator.values import Chance
from voter.commands.parameters import Integer, Number

ABSURD = (
    "nan", "inf", "-inf", "1e400", "-1", "-0.0", str(10**30), str(2**64), "1_000", "\u0661", "",
    " ",
)  # fmt: skip


def parameters(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Parameter]]:
    """Yield all parameters of a command and of the commands below it, with their full names."""
    for each in command.params:
        yield " ".join([*path, (each.opts or [each.name or ""])[0]]), each
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in {*command.list_commands(context), *(trivisor.HIDDEN if not path else ())}:
            below = command.get_command(context, name)
            assert below is not None
            yield from parameters(below, (*path, name))


PARAMETERS = dict(sorted(parameters(trivisor.command)))
NUMBERS = {name: each for name, each in PARAMETERS.items()
           if isinstance(each.type, Integer | Number | Chance)}  # fmt: skip
# Texts that other code reads, with errors of its own: names of files, services, functions, designs.
TEXTS = {"--arm", "--module", "--data", "--defect", "--design", "--function", "--service",
         "--worker-module", "code", "file", "name"}  # fmt: skip


def test_the_walk_finds_the_commands() -> None:
    some = {"up --boot-deadline", "bench transfer --load", "model bound --rm",
            "campaign run --seed", "supervise --report-fd", "service check --requests"}  # fmt: skip
    assert some <= NUMBERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_has_a_type_that_rejects_what_is_wrong(name: str) -> None:
    kind = PARAMETERS[name].type
    assert kind not in (click.INT, click.FLOAT)
    assert type(kind) not in (click.IntRange, click.FloatRange, click.Path, click.File)
    if kind is click.STRING:
        assert name.rsplit(maxsplit=1)[-1] in TEXTS


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_absurd(name: str) -> None:
    option = NUMBERS[name]
    context = click.Context(click.Command("test"))
    for text in ABSURD:
        if name.startswith("model repairable --") and text.isdecimal():
            continue  # a time in any unit may be that long
        with pytest.raises(click.BadParameter, match=r" to \d|at most \d"):
            option.type.convert(text, option, context)


@pytest.mark.parametrize("name", NUMBERS)
def test_number_has_a_default_in_its_range(name: str) -> None:
    option = NUMBERS[name]
    context = click.Context(click.Command("test"))
    values = option.get_default(context)
    for value in values if isinstance(values, tuple) else (values,):
        if isinstance(value, int | float | str):
            option.type.convert(value, option, context)
