"""What one supervisor leaves to the next about slots and roles: ``membership.json``.

The voter's journal decides the roles.  The copy here tells a new start which slots to fill before
the voter can be asked.  An operation is recorded before its first step, so that whoever finds it
knows what was under way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import structlog

from deploy.host.files import write_json

__all__ = ["MembershipRecord", "Operation", "OperationKind", "Step", "read_membership"]

OperationKind = Literal["rejuvenation", "patch"]

Step = Literal["starting", "joining", "holding", "replacing", "ending"]
"""What an operation is doing: a VM starts in the slot; its replica joins and catches up; it stays
as it is, until somebody decides; it takes the place of the old one; the old one's VM is ended."""

SCHEMA = 1

_log = structlog.get_logger(__name__)


class Operation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operation under way: the VM in ``slot`` is to take the place of ``guest``.

    ``role``: what its replica is until then.  ``began`` is in seconds since 1970.  The next
    supervisor continues an operation that ``survives``; others it rolls back, or finds complete.
    """

    kind: OperationKind
    guest: str
    slot: str
    role: Literal["learner", "observer"]
    began: float
    step: Step = "starting"
    survives: bool = False


class MembershipRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The roles by slot, as the voter reported them last, and the operation under way.

    ``lives``: when the VM in each slot was started, in seconds since 1970.
    """

    schema: int = SCHEMA
    version: int = 0
    roles: dict[str, str] = {}
    lives: dict[str, float] = {}
    operation: Operation | None = None

    def write(self, path: Path) -> None:
        """Replace the record atomically and durably.  Raises OSError."""
        write_json(path, self, mode=0o600)


def read_membership(path: Path) -> MembershipRecord:
    """Return the record; an empty one if there is none.

    Nothing depends on a damaged one: the voter knows the roles, and an operation that nobody knows
    is rolled back.
    """
    try:
        record = msgspec.json.decode(path.read_bytes(), type=MembershipRecord)
    except FileNotFoundError:
        return MembershipRecord()
    except (OSError, msgspec.MsgspecError) as error:
        _log.warning(
            "the record of the roles cannot be read",
            path=str(path),
            reason=str(error),
            error_code="TV0747",
        )
        return MembershipRecord()
    return record if record.schema == SCHEMA else MembershipRecord()
