"""A node for tests of the patcher: guests, roles and a voter that are plain data."""

from __future__ import annotations

import asyncio
import contextlib
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

from deploy.errors import DeployError
from deploy.machine.spec import GuestState
from deploy.node.records import Layout
from deploy.patching.record import PatchImage, PatchRecord
from deploy.supervisor.membership import RolesRefused
from deploy.supervisor.observer import EventHistory, NodeObserver
from deploy.supervisor.patch_orders import PatchOrder
from deploy.supervisor.patcher import Patcher
from deploy.supervisor.storage import Storage
from deploy.supervisor.voter_control import VoterControl, VoterUnreachable
from guests.protocol.message import Reply, encode_reply, encode_request

__all__ = ["PatchWorld", "image", "order"]

NAMES = ("g1", "g2", "g3", "g4")


def image(name: str) -> PatchImage:
    return PatchImage(
        kernel="/k", initrd=f"/{name}/initrd", image=name, manifest="/m", service=f"{name}.py",
        identity=name,
    )  # fmt: skip


def order(**changes: Any) -> PatchOrder:
    values: dict[str, Any] = {"title": "service new.py", "image": image("new")}
    return PatchOrder(**values | changes)


class PatchWorld:
    """Implements Slots; ``control`` stands for the voter's control socket."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.pid = 100
        self.seq = 0
        self.down = False
        self.table = {"g1": "voter", "g2": "voter", "g3": "voter", "g4": "retired"}
        self.images = dict.fromkeys(NAMES, image("old").initrd)
        self.inactive: set[str] = set()
        self.counters: dict[str, dict[str, float]] = {
            name: {"compared": 0, "differed": 0, "behind_seconds": 0.0} for name in NAMES
        }
        self.crashes = dict.fromkeys(NAMES, 0)
        self.found: list[dict[str, Any]] = []
        self.guests: dict[str, Any] = {
            name: SimpleNamespace(name=name, state=GuestState.READY) for name in NAMES
        }
        self.guests["g4"].state = GuestState.ABSENT
        self.history = EventHistory()
        self.node_image = image("old")
        self.adopted: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.fails = ""
        self.delay = 0.005
        self.busy = ""
        self.changes: list[dict[str, str]] = []
        self.fewest = 3
        self.refused = 0
        self.held = False
        self.differing = False
        self.logged = 0
        self.checkpoint_seq = 0
        self.other_state = False
        self.hold_after = -1
        self.patcher = self.new_patcher()
        self.task: asyncio.Task[None] | None = None

    def new_patcher(self) -> Patcher:
        control = cast(VoterControl, self)
        observer = self.observer = NodeObserver(
            self.guests, control, voter_pid=lambda: self.pid, history=self.history
        )
        return Patcher(
            self.layout, self, self.guests, observer, control,
            Storage(self.layout, self.history, repair_room=0), self.history,
            of=3, need=2, running=lambda: self.node_image, adopt=self.adopt,
        )  # fmt: skip

    # ---- the patcher

    def start(self) -> None:
        self.task = asyncio.create_task(self.patcher.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
            self.task = None

    async def restart(self, *, taken_over: bool = True) -> None:
        """Kill the supervisor and start another one."""
        await self.stop()
        self.patcher = self.new_patcher()
        self.patcher.begin(taken_over=taken_over)
        self.start()

    @property
    def record(self) -> PatchRecord:
        assert self.patcher.record is not None
        return self.patcher.record

    @property
    def phase(self) -> str:
        return str(self.record.phase)

    @property
    def patched(self) -> set[str]:
        """The voters that run the new image."""
        return {
            name
            for name, role in self.table.items()
            if role == "voter" and self.images[name] == image("new").initrd
        }

    def adopt(self, chosen: PatchImage) -> None:
        self.node_image = chosen
        self.adopted.append(chosen.image)

    # ---- the copy

    def compare(self, count: int, slot: str = "g4", behind: float = 0.0) -> None:
        """Have the copy answer so many requests as the node did, or as late."""
        self.counters[slot]["compared"] += count
        self.counters[slot]["behind_seconds"] += behind * count
        self.seq += count
        self.logged += count

    def differ(self, slot: str = "g4", path: str = "/a", **changes: Any) -> None:
        """Have the copy answer a request otherwise."""
        self.differing = True
        self.compare(1, slot)
        self.counters[slot]["differed"] += 1
        request = encode_request("GET", path)
        old, new = encode_reply(Reply(500, b"bug")), encode_reply(Reply(200, b"fixed"))
        self.found.append(
            {
                "id": len(self.found) + 1, "time": 9e9, "replica": slot, "role": "observer",
                "kind": "reply", "seq": self.seq, "behind": 0.0,
                "request": b64encode(request).decode(), "released": b64encode(old).decode(),
                "other": b64encode(new).decode(), "sizes": [len(request), len(old), len(new)],
            } | changes
        )  # fmt: skip

    # ---- Slots

    @property
    def roles(self) -> dict[str, str]:
        return dict(self.table)

    def image(self, slot: str) -> str:
        return self.images[slot]

    def free(self) -> str | None:
        return next((name for name, role in self.table.items() if role == "retired"), None)

    async def begin(self, slot: str) -> None:
        self.held = True

    async def open(self, wanted: PatchImage, slot: str) -> None:
        if self.table[slot] == "observer" and self.images[slot] == wanted.initrd:
            return
        assert self.table[slot] == "retired"
        assert self.held
        await self.hold.wait()
        if self.fails:
            raise DeployError(self.fails)
        self.images[slot] = wanted.initrd
        self.guests[slot].state = GuestState.READY
        self.table[slot] = "observer"

    async def change(self, roles: Mapping[str, str], *, voters: int, active: int) -> None:
        table = self.table | dict(roles)
        voting = {name for name, role in table.items() if role == "voter"}
        assert len(voting) == voters >= 2
        if len(voting - self.inactive) < active:
            self.refused += 1
            raise RolesRefused(f"only {len(voting - self.inactive)} are active")
        if "voter" in roles.values():
            assert self.logged == 0, "no request of another version is in the log"
        self.table = table
        self.changes.append(dict(roles))
        self.fewest = min(self.fewest, voters)
        for name, role in roles.items():
            if role == "retired":
                self.guests[name].state = GuestState.ABSENT
        mixed = voting - self.patched
        if self.differing and self.patched and mixed:  # the minority is expelled at once
            self.inactive = self.patched if len(self.patched) < 2 else mixed
        else:
            self.inactive -= set(roles)
        if len(self.patched) >= self.hold_after > -1:
            self.hold.clear()

    async def finish(self) -> None:
        self.held = False

    async def release(self) -> None:
        """Nothing is held here."""

    async def close(self, slot: str) -> None:
        assert self.table[slot] != "voter"
        self.table[slot] = "retired"
        self.guests[slot].state = GuestState.ABSENT

    # ---- the voter's control socket

    async def status(self) -> dict[str, Any]:
        if self.down:
            raise VoterUnreachable("down")
        replicas = [
            {
                "name": name, "state": "absent" if name in self.inactive else "active",
                "reason": "left", "incarnations_ended": self.crashes[name], **self.counters[name],
            }
            for name in NAMES
        ]  # fmt: skip
        return {
            "pid": self.pid, "seq": self.seq, "replicas": replicas, "journal": None,
            "checkpoint": {"seq": self.checkpoint_seq},
        }  # fmt: skip

    async def checkpoint(self) -> None:
        self.seq += 1
        self.logged = 0
        self.checkpoint_seq = self.seq
        for name in NAMES:
            self.counters[name]["digest_seq"] = self.seq
        if self.other_state:
            self.differ(kind="digest", request="", released=None, other=None)

    async def differences(self, since: int) -> AsyncIterator[dict[str, Any]]:
        while not self.down:
            for document in [each for each in self.found if each["id"] > since]:
                since = document["id"]
                yield document
            await asyncio.sleep(self.delay)  # stands for the voter's stream
        raise VoterUnreachable("down")
