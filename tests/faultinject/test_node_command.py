"""Commands on a node of a bench or an experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

from faultinject.node_command import run_trivisor
from voter.commands.terminal import CommandError


async def test_command_that_fails_ends_the_run_with_its_message(scratch: Path) -> None:
    with pytest.raises(CommandError, match="no node runs in") as error:
        await run_trivisor(scratch / "none", "dashboard", "--json")
    assert error.value.error_code == "TV0841"


async def test_node_that_never_ran_is_down(scratch: Path) -> None:
    assert await run_trivisor(scratch / "none", "down") == b""
