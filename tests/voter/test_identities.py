"""Which service the replicas run, when one of them is retired."""

from __future__ import annotations

from guests.protocol import wire
from voter.identities import ReplicaIdentities


def welcome(service: str) -> wire.Welcome:
    return wire.Welcome(
        protocol=wire.PROTOCOL, service=service, state_format=1, build="b", incarnation=1,
        fresh=True, last_seq=0, history=bytes(8), replies_from=0,
    )  # fmt: skip


def test_retired_replica_no_longer_decides_what_the_others_run() -> None:
    identities = ReplicaIdentities(None, 2)
    assert identities.check(0, welcome("old")) is None
    assert identities.check(1, welcome("old")) is None
    assert identities.check(2, welcome("new")) is not None
    identities.forget(0)
    identities.forget(1)
    assert identities.check(2, welcome("new")) is None
