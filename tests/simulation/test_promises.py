"""The observer reports broken promises, and nothing else."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest

from faultinject.simulation.guest import SimGuest, WitnessedService
from faultinject.simulation.loop import Process
from faultinject.simulation.plan import make_plan
from faultinject.simulation.promises import PromiseObserver
from faultinject.simulation.streams import Transport
from faultinject.simulation.world import World
from guests.protocol.message import Request, encode_request
from guests.protocol.wire import EMPTY_HISTORY, FLAG_VOID, Frame, FrameKind, encode, encode_order
from guests.service import Context
from voter.core.events import Changed
from voter.core.replica import State
from voter.native_protocol import encode_response

EPOCH = 77


class _Client:
    """The part of a client's connection that the observer uses."""

    watch = staticmethod(lambda data: None)


def changed(replica: int, after: State) -> Changed:
    return Changed(replica, State.LEARNER, after, "", 0)


def release(observer: PromiseObserver, seq: int, reply: bytes) -> None:
    client = _Client()
    observer.accepted(cast(Transport, client), Process("voter"))
    client.watch(encode(FrameKind.RESPONSE, 0, 0, encode_response(seq, 2, (), reply)))


@pytest.fixture
def world() -> World:
    return World(msgspec.structs.replace(make_plan(3), durability="none"))


def test_release_is_right_when_two_active_replicas_gave_the_reply(world: World) -> None:
    observer = world.observer
    observer.decided([changed(0, State.ACTIVE), changed(1, State.ACTIVE)])
    observer.voted(0, 5, b"yes")
    observer.voted(1, 5, b"yes")
    release(observer, 5, b"yes")
    assert observer.breaches == []


def test_release_is_right_when_replicas_were_active_within_one_event(world: World) -> None:
    """Seed 77009623: admitted, a vote won with them, and expelled by the next vote, all at once."""
    observer = world.observer
    observer.voted(0, 5, b"yes")
    observer.voted(1, 5, b"yes")
    observer.decided(
        [
            changed(0, State.ACTIVE), changed(1, State.ACTIVE),
            changed(0, State.EXPELLED), changed(1, State.EXPELLED),
        ]
    )  # fmt: skip
    release(observer, 5, b"yes")
    assert observer.breaches == []


@pytest.mark.parametrize(
    "states",
    [
        [changed(0, State.ACTIVE)],
        [changed(0, State.ACTIVE), changed(0, State.EXPELLED), changed(1, State.ACTIVE)],
        [changed(0, State.ACTIVE), changed(1, State.LEARNER)],
    ],
    ids=["one", "never-at-once", "a-learner"],
)
def test_release_is_a_breach_when_fewer_than_two_active_replicas_gave_the_reply(
    world: World, states: list[Changed]
) -> None:
    observer = world.observer
    observer.voted(0, 5, b"yes")
    observer.voted(1, 5, b"yes")
    observer.decided(states)
    release(observer, 5, b"yes")
    assert [breach.promise for breach in observer.breaches] == ["Agreement"]


# ------------------------------------------------------------------ voided writes


class _Orders:
    """A stand-in for a voter that orders writes, and for guests that apply them."""

    def __init__(self, world: World) -> None:
        self.observer = world.observer
        self.history = EMPTY_HISTORY
        self.frames: list[Frame] = []

    def order(self, *guests: SimGuest) -> Frame:
        """Send the next write to these guests."""
        seq = len(self.frames) + 1
        after = seq.to_bytes(8)
        request = encode_request("PUT", "/kv/a", [("x-op", str(seq))], b"1")
        payload = encode_order(seq, self.history, after, b"me", request)
        frame = Frame(FrameKind.ORDER, 0, EPOCH, seq, payload)
        self.history = after
        self.frames.append(frame)
        for guest in guests:
            self.observer.ordered(frame, guest)
        return frame

    def void(self, frame: Frame, guest: SimGuest) -> None:
        """Send a write to a guest as one that is voided."""
        self.observer.ordered(frame._replace(flags=FLAG_VOID), guest)

    def apply(self, frame: Frame, guest: SimGuest) -> None:
        """Have a guest apply a write."""
        service = guest.service
        assert service is not None
        context = Context(frame.seq, frame.seq, frame.seq.to_bytes(8), "me")
        WitnessedService.apply(service, Request("PUT", "/kv/a", b"1"), context)


@pytest.fixture
def orders(world: World) -> _Orders:
    for guest in world.guests:
        guest.boot()
        assert guest.incarnation is not None
        guest.incarnation._epoch = EPOCH
        world.observer.greeted(guest, EPOCH)
    return _Orders(world)


def test_write_applied_after_it_was_voided_is_no_part_of_the_order(
    world: World, orders: _Orders
) -> None:
    """Seed 15514525: a guest that hung takes what was in its channel, then is rebuilt."""
    one, two, late = world.guests
    first = orders.order(one, two, late)
    orders.void(first, one)
    second = orders.order(one, two)
    orders.apply(first, late)
    orders.apply(second, one)
    assert world.observer.breaches == []
    assert [write.seq for write in world.observer.applied_order] == [2]


def test_sending_a_write_to_a_guest_that_applied_a_voided_one_is_a_breach(
    world: World, orders: _Orders
) -> None:
    one, _, late = world.guests
    first = orders.order(one, late)
    orders.apply(first, late)
    orders.void(first, one)
    orders.order(late)
    assert [breach.promise for breach in world.observer.breaches] == ["Order"]
    assert "voided" in world.observer.breaches[0].text


# ------------------------------------------------------------------- independence


def test_corrupted_guests_hold_different_values(world: World) -> None:
    """Seed 77000912: two replicas that are wrong in the same way outvote the third."""
    values = set()
    for guest in world.guests:
        guest.boot()
        service = guest.service
        assert service is not None
        service.table.entries[b"a"] = (b"1", 1)
        assert guest.corrupt_state()
        values.add(service.table.entries[b"a"][0])
    assert len(values) == 3
