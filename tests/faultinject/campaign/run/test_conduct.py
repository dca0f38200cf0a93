"""What a run looks at before its first mission."""

from __future__ import annotations

import pytest

from faultinject.campaign.planning.spec import parse
from faultinject.campaign.run import conduct
from tests.faultinject.campaign.specs import SMALL
from voter.commands.terminal import CommandError, ExitCode

REGISTERS = SMALL.replace("flips = 50", 'flips = 50\nkind = "flip-register"')


def test_a_fault_that_this_qemu_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "why_no_stub", lambda: "-gdb: not compiled in")
    with pytest.raises(CommandError, match="flip-register cannot be done here") as refused:
        conduct.refuse_impossible(parse(REGISTERS))
    assert refused.value.code is ExitCode.CANNOT_RUN_HERE
    assert "take it out" in refused.value.remedy
    conduct.refuse_impossible(parse(SMALL))  # it has no fault that needs one


def test_what_this_qemu_can_do_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "why_no_stub", lambda: "")
    conduct.refuse_impossible(parse(REGISTERS))
