"""The voter is R_V: what its process loads is counted, and kept small (ARCHITECTURE.md)."""

from __future__ import annotations

import json

from click.testing import CliRunner

from voter.commands.voter import count_loaded, voter

MOST_LINES = 8_510
"""Lines of code of ours that the voter's process may load, the authorizer included."""


def test_the_voter_loads_little_and_nothing_that_boots_or_breaks_guests() -> None:
    found = count_loaded(function=True)
    assert found["ours"]["total"] == sum(found["ours"].values()) / 2
    assert found["ours"]["total"] <= MOST_LINES, found["ours"]
    packages = {"guests", "guests.protocol", "voter"}
    packages |= {"voter.core", "voter.frontend", "voter.journal"}
    assert found["ours"].keys() == packages | {"total"}
    installed = {"setuptools", "typing_extensions"}  # loaded by the environment or msgspec
    assert found["third_party"].keys() - installed == {"h11", "msgspec", "total"}


def test_a_voter_without_a_function_loads_no_authorizer() -> None:
    assert (
        count_loaded(function=False)["ours"]["voter"] < count_loaded(function=True)["ours"]["voter"]
    )


def test_the_command_prints_the_count_as_json() -> None:
    done = CliRunner().invoke(voter, ["--count", "--json"])
    assert json.loads(done.stdout) == count_loaded(function=False)
