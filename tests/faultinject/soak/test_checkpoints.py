"""The audit accepts a checkpoint that holds the model's state, and reports every other one."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import pytest

from faultinject.history.model import ServiceModel
from faultinject.soak.checkpoints import CheckpointAudit
from guests.protocol.message import encode_request
from voter.core.entries import FORMAT, Base
from voter.journal.format import CheckpointHead, checkpoint_pieces
from voter.journal.recovery import IDENTITY, VoterIdentity, checkpoint_name

IDENTITY_OF_JOURNAL = VoterIdentity(format=FORMAT, node="n", vote="2/3", secret="ab" * 32).checked()


def put(value: bytes, key: str = "k") -> bytes:
    return encode_request("PUT", f"/kv/{key}", [], value)


def state_after(*requests: bytes) -> bytes:
    model = ServiceModel()
    for place, request in enumerate(requests, start=1):
        model.apply(request, place)
    return model.state()


@pytest.fixture
def journal(scratch: Path) -> Path:
    """Make a journal's directory with an identity and nothing else."""
    path = scratch / "journal"
    path.mkdir()
    (path / IDENTITY).write_bytes(msgspec.json.encode(IDENTITY_OF_JOURNAL))
    return path


def store(journal: Path, place: int, state: bytes) -> Path:
    """Write a checkpoint as the voter does, its digest that of its state."""
    owner = IDENTITY_OF_JOURNAL.owner
    fields: dict[str, Any] = dict.fromkeys(CheckpointHead.__struct_fields__, 1) | {
        "format": FORMAT,
        "node": owner.node,
        "journal": owner.journal,
        "size": len(state),
    }
    head = CheckpointHead(**fields)
    base = Base(seq=place, digest=blake2b(state, digest_size=32).digest())
    path = journal / checkpoint_name(place)
    path.write_bytes(b"".join(checkpoint_pieces(head, base, state)))
    return path


def audit_of(journal: Path, *requests: bytes) -> CheckpointAudit:
    audit = CheckpointAudit(journal)
    for place, request in enumerate(requests, start=1):
        audit.execute(place, request, False)
    return audit


def test_right_checkpoint_is_compared_once_all_before_it_is_known(journal: Path) -> None:
    requests = [put(b"one"), put(b"two")]
    audit = audit_of(journal, *requests)
    store(journal, 3, state_after(*requests))
    audit.collect()
    audit.compare(3)
    assert audit.compared == 0
    audit.compare(4)
    audit.collect()
    audit.compare(9)
    assert (audit.compared, audit.wrong, audit.complaints) == (1, 0, [])


def test_checkpoint_of_a_corrupted_state_is_reported_although_its_digest_is_right(
    journal: Path,
) -> None:
    audit = audit_of(journal, put(b"one"), put(b"two"))
    store(journal, 3, state_after(put(b"one"), put(b"twp")))
    audit.collect()
    audit.compare(4)
    assert (audit.compared, audit.wrong) == (1, 1)
    assert "the voted digest is" in audit.complaints[0]


def test_checkpoint_that_cannot_be_read_is_reported(journal: Path) -> None:
    audit = audit_of(journal, put(b"one"))
    path = store(journal, 2, state_after(put(b"one")))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    audit.collect()
    audit.compare(3)
    assert audit.wrong == 1
    assert "cannot be read" in audit.complaints[0]


def test_journal_that_is_not_there_yet_has_no_checkpoints(scratch: Path) -> None:
    audit = CheckpointAudit(scratch / "journal")
    audit.collect()
    audit.compare(1)
    assert audit.compared == 0
