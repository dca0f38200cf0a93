"""The state of a node's patch, as data and on disk.

    (none) ── start ──> preparing ──> quarantine ──> promoting ──> done
                            │             │              │
                            │             ├─> rejected   └─> reverting ──> aborted
                            └─────────────┴─> aborted

The record is written before the step that it announces, so a supervisor that takes over repeats or
continues that step.  In ``preparing`` and ``quarantine`` all voters run the old image.  In
``promoting`` the voters move to the new image one after another, and in ``reverting`` back.  In the
three final phases all voters run one image.
"""

from __future__ import annotations

import enum
import time
from pathlib import Path
from typing import Annotated

import msgspec

from deploy.errors import DeployError, ForeignState
from deploy.host.files import write_json

__all__ = [
    "FINAL",
    "TRANSITIONS",
    "PatchImage",
    "PatchRecord",
    "Phase",
    "Step",
    "advance",
    "read_patch",
    "write_patch",
]

SCHEMA = 1
KEPT_STEPS = 100
"""Steps that a record lists; the oldest are dropped."""


class Phase(enum.StrEnum):
    """Where a patch is."""

    PREPARING = "preparing"  # the patched copy starts, and catches up
    QUARANTINE = "quarantine"  # it answers every request, and its replies are compared only
    PROMOTING = "promoting"  # voters are replaced by patched ones, one after another
    REVERTING = "reverting"  # patched voters are replaced by unpatched ones, one after another
    DONE = "done"  # all voters are patched
    REJECTED = "rejected"  # the patch failed its quarantine; no voter is patched
    ABORTED = "aborted"  # it was called off; no voter is patched


_P = Phase

FINAL = frozenset({_P.DONE, _P.REJECTED, _P.ABORTED})
"""Phases in which no patch is under way."""

TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    _P.PREPARING: frozenset({_P.QUARANTINE, _P.REJECTED, _P.ABORTED}),
    _P.QUARANTINE: frozenset({_P.PROMOTING, _P.REJECTED, _P.ABORTED}),
    _P.PROMOTING: frozenset({_P.DONE, _P.REVERTING}),
    _P.REVERTING: frozenset({_P.ABORTED}),
    _P.DONE: frozenset(),
    _P.REJECTED: frozenset(),
    _P.ABORTED: frozenset(),
}
"""The legal changes."""


class PatchImage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An image that guests can boot, and which service it holds.

    ``image`` is the SHA-256 of kernel and initramfs.  ``service`` is the setting of `up`: a shipped
    service's name or the path of a file.  ``identity`` differs if the service may answer otherwise
    (``deploy.commands.launch.identify_service``).  ``packages``: further Debian packages in it.
    ``pinned``: the options of `up` do not lead to it, so the node keeps it.
    """

    kernel: str
    initrd: str
    image: str
    manifest: str
    service: str
    identity: str
    packages: tuple[str, ...] = ()
    pinned: bool = False


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that happened to a patch, at ``time`` (seconds since 1970)."""

    time: float
    text: str


class PatchRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One patch of a node.

    ``title`` says what it changes.  The quarantine's goal is ``after`` compared requests, or
    ``seconds``, or both; ``auto``: it is promoted once that is reached without an unexpected
    difference.  ``rules`` is the text of the file of expected differences, ``rules_name`` its name.

    ``slot`` is the guest in which the patched copy runs, or which is to take the next voter's
    place.  ``promoted`` are the voters that run the new image.  ``quarantined`` and ``ended`` are
    times in seconds since 1970, ``compared`` counts the copy's compared replies, ``state`` says
    whether its state was compared too.  ``reason`` says why it was rejected or aborted.
    """

    schema: int = SCHEMA
    number: Annotated[int, msgspec.Meta(ge=1)]
    title: str
    phase: Phase = Phase.PREPARING
    old: PatchImage
    new: PatchImage
    after: Annotated[int, msgspec.Meta(ge=1)] | None = None
    seconds: Annotated[float, msgspec.Meta(gt=0)] | None = None
    auto: bool = False
    rules: str = ""
    rules_name: str = ""
    began: float
    quarantined: float | None = None
    ended: float | None = None
    slot: str | None = None
    promoted: tuple[str, ...] = ()
    compared: int = 0
    state: bool = False
    reason: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def final(self) -> bool:
        """Whether no patch is under way."""
        return self.phase in FINAL

    @property
    def target(self) -> PatchImage:
        """The image that all voters are to run when the patch has ended."""
        return self.new if self.phase in (Phase.PROMOTING, Phase.DONE) else self.old

    def note(self, text: str) -> PatchRecord:
        """Return the record with one more step."""
        steps = (*self.steps, Step(time=time.time(), text=text))[-KEPT_STEPS:]
        return msgspec.structs.replace(self, steps=steps)


def advance(record: PatchRecord, phase: Phase, text: str, *, reason: str = "") -> PatchRecord:
    """Return the record in its next phase, with the step ``text``.

    Raises ValueError for a change that TRANSITIONS does not have.
    """
    if phase not in TRANSITIONS[record.phase]:
        raise ValueError(f"a patch that is {record.phase} cannot become {phase}")
    now = time.time()
    changed = msgspec.structs.replace(
        record,
        phase=phase,
        reason=reason or record.reason,
        quarantined=now if phase is Phase.QUARANTINE else record.quarantined,
        ended=now if phase in FINAL else None,
    )
    return changed.note(text)


class _Schema(msgspec.Struct):
    schema: int


def read_patch(path: Path) -> PatchRecord | None:
    """Return the node's last patch, or None if there was none.  Raises ForeignState."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    try:
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema != SCHEMA:
            raise _unreadable(path, f"it has schema {schema}, not {SCHEMA}")
        return msgspec.json.decode(data, type=PatchRecord)
    except msgspec.MsgspecError as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> ForeignState:
    return ForeignState(
        f"the record of the node's patch, {path}, cannot be read: {why}",
        remedy="restore it from a copy, or move it away: the node then keeps the image of its "
        "voters' majority",
        error_code="TV0779",
    )


def write_patch(path: Path, record: PatchRecord) -> None:
    """Replace the record atomically and durably.  Raises DeployError if it cannot."""
    try:
        write_json(path, record, mode=0o600)
    except OSError as error:
        raise DeployError(
            f"cannot write the record of the patch, {path}: {error.strerror or error}",
            remedy="make room on the disk; the patch then continues",
            error_code="TV0778",
        ) from error
