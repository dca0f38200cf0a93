"""What the supervisor does with roles: a guest starts in the free slot and takes a voter's place.

The operator makes one exchange after the other, as the supervisor does:

1. It starts a guest in the free slot, and makes its replica a learner or an observer.
2. It waits until the replica has caught up.  If that takes too long, it retires the replica.
3. It makes the replica a voter and retires another one, in one change.  Some plans abandon the
   exchange instead.
4. It ends the guests of all retired replicas.

Each change is repeated until the voter has answered it.  The answer is lost if the voter dies.
Then the next voter's table shows whether the change was made: it must be the table before or after
that change (the promise Roles).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from faultinject.simulation.network import NetworkLoop
from faultinject.simulation.plan import SimFault
from faultinject.simulation.promises import PromiseObserver
from voter.core.events import ChangeRoles, RolesChanged, RolesRefused
from voter.core.membership import Membership
from voter.core.replica import CAUGHT_UP, Role, State
from voter.runner import RolesResult, Runner

__all__ = ["RoleOperator"]

CATCH_UP = 1.0
"""Seconds after which an exchange is abandoned because its replica has not caught up."""
POLL = 0.001
"""Seconds between two polls of the voter."""
REFUSED = 0.05
"""Seconds until a change is tried again that the voter could not journal."""

Table = tuple[int, dict[str, str]]
"""Version and roles by name."""


class OperatedNode(Protocol):
    """What the operator needs of the world."""

    loop: NetworkLoop
    observer: PromiseObserver

    @property
    def runner(self) -> Runner | None:
        """The runner of the living voter, if there is one."""

    def call_in_voter(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call a method of the voter in its own process."""

    def state(self, index: int) -> State:
        """Return a replica's state according to the voter."""

    def power_on(self, index: int) -> None:
        """Start a fresh guest in a free slot."""

    def retire(self, index: int) -> None:
        """End the guest of a slot that is free now, if it runs."""


class RoleOperator:
    """The operator of one run, and what it knows of the table of roles."""

    def __init__(self, node: OperatedNode, roles: dict[str, str]) -> None:
        self.acknowledged: Table = (0, roles)
        """The table that the voter has acknowledged last."""
        self._pending: list[Table] = []
        """Tables that the changes since then would lead to."""
        self._names = list(roles)
        self._node = node
        self._lock = asyncio.Lock()

    # ------------------------------------------------------------------- exchanges

    async def exchange(self, fault: SimFault) -> None:
        """Make one exchange, after those that were begun before."""
        async with self._lock:
            await self._change({})
            free, voters = self._with(Role.RETIRED)[0], self._with(Role.VOTER)
            self._node.power_on(self._names.index(free))
            role = Role.OBSERVER if fault.kind == "exchange-observer" else Role.LEARNER
            if await self._change({free: str(role)}) and await self._caught_up(free):
                await asyncio.sleep(fault.seconds)
                if fault.kind != "abandon-exchange":
                    old = voters[fault.target % len(voters)]
                    await self._change({free: str(Role.VOTER), old: str(Role.RETIRED)})
            await self._finish(fault.seconds)

    async def settle(self) -> None:
        """Abandon what was interrupted: retire all that do not vote, and end their guests."""
        async with self._lock:
            await self._finish()

    async def _finish(self, pause: float = 0.0) -> None:
        """Retire all that do not vote; end their guests after ``pause`` seconds."""
        await self._change({})
        left = [*self._with(Role.LEARNER), *self._with(Role.OBSERVER)]
        if left:
            await self._change(dict.fromkeys(left, str(Role.RETIRED)))
        await asyncio.sleep(pause)
        for name in self._with(Role.RETIRED):
            self._node.retire(self._names.index(name))

    def _with(self, role: Role) -> list[str]:
        return [name for name in self._names if self.acknowledged[1][name] == role]

    async def _caught_up(self, name: str) -> bool:
        """Wait until a replica has caught up; return False if that takes too long."""
        index = self._names.index(name)
        return await self._until(lambda: self._node.state(index) in CAUGHT_UP, CATCH_UP)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        loop = self._node.loop
        until = loop.time() + seconds
        while not condition():
            if loop.time() > until:
                return False
            await asyncio.sleep(POLL)
        return True

    # --------------------------------------------------------------------- changes

    async def _change(self, roles: dict[str, str]) -> bool:
        """Change roles; return False if the voter says that this is impossible."""
        while True:
            result = await self._ask(roles)
            if isinstance(result, RolesChanged):
                self._node.observer.roles_acknowledged(result.version)
                return True
            if isinstance(result, RolesRefused) and result.problem == "roles":
                return False
            await asyncio.sleep(REFUSED if result is not None else POLL)

    async def _ask(self, roles: dict[str, str]) -> RolesResult | None:
        """Ask the voter for a change once; return its answer, None if it died before."""
        node, answers = self._node, list[RolesResult]()
        runner = node.runner
        if runner is None or not runner.reserved.is_set():
            return None
        members = runner.engine.members
        version, table = members.roles_version, members.roles | roles
        wanted = (version + (table != members.roles), table)
        self._pending.append(wanted)
        change = ChangeRoles(0, version, roles, "simulated")
        node.call_in_voter(runner.change_roles, change, answers.append)
        await self._until(lambda: bool(answers) or node.runner is not runner, float("inf"))
        if not answers:
            return None
        if isinstance(answers[0], RolesChanged):
            self.acknowledged = wanted
            self._pending.clear()
        elif isinstance(answers[0], RolesRefused):
            self._pending.remove(wanted)
        return answers[0]

    # -------------------------------------------------------------------- promises

    @property
    def changing(self) -> bool:
        """Whether a change was requested that is not answered."""
        return bool(self._pending)

    def check(self, members: Membership) -> None:
        """Check that there are n voters, and that only voters are electors."""
        voters = [replica for replica in members if replica.role is Role.VOTER]
        electors = [members[index] for index in members.active]
        if len(voters) != members.policy.of or any(r.role is not Role.VOTER for r in electors):
            self._node.observer.breach("Roles", f"the voter has the table {members.roles}")

    def restarted(self, members: Membership) -> None:
        """Check the table of a voter that has started."""
        found = members.roles_version, members.roles
        if found not in (self.acknowledged, *self._pending):
            text = f"after a restart the table is {found}, acknowledged was {self.acknowledged}"
            self._node.observer.breach("Roles", text)
        self.acknowledged = found
        self._pending.clear()
