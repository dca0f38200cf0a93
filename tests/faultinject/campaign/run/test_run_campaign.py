"""Checks before the first mission of a run."""

from __future__ import annotations

import pytest

from faultinject.campaign.planning.spec_file import parse
from faultinject.campaign.run import run_campaign
from tests.faultinject.campaign.specs import SMALL
from voter.commands.terminal import CommandError, ExitCode

REGISTERS = SMALL.replace("flips = 50", 'flips = 50\nkind = "flip-register"')


def test_check_host_refuses_a_fault_that_needs_a_missing_debug_stub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_campaign, "why_no_stub", lambda: "-gdb: not compiled in")
    with pytest.raises(CommandError, match="flip-register cannot be applied here") as refused:
        run_campaign.check_host(parse(REGISTERS))
    assert refused.value.code is ExitCode.CANNOT_RUN_HERE
    assert "remove it" in refused.value.remedy
    assert refused.value.error_code == "TV0534"
    run_campaign.check_host(parse(SMALL))  # it has no fault that needs one
    monkeypatch.setattr(run_campaign, "why_no_stub", lambda: "")
    run_campaign.check_host(parse(REGISTERS))
