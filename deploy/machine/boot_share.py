"""The processor time of one guest's QEMUs: their priority, and a bound while they boot."""

from __future__ import annotations

from deploy.host.cpu_share import FULL_SHARE, Mechanism, lift, limit
from deploy.host.priority import Yielding

__all__ = ["BootShare"]


class BootShare(Yielding):
    """As `Yielding`; a QEMU that starts while `share` is below FULL_SHARE is bounded to it.

    Where no control group can be made, it has the lowest priority instead.
    """

    def __init__(self, nice: int) -> None:
        super().__init__(nice)
        self.share = FULL_SHARE
        """Percent of one processor, 0 to 100, for QEMUs that start from now on."""
        self.how: Mechanism = "none"
        """How the QEMU that started last was bounded."""
        self._bounded: int | None = None  # the pid that has its bound

    async def set(self, pid: int | None, yields: bool) -> None:
        """Lower this QEMU's priority, or raise it again unless its boot is bounded by it."""
        await super().set(pid, yields or (self.how == "priority" and self.share < FULL_SHARE))

    async def begin(self, pid: int | None) -> None:
        """Bound a QEMU that is being started, from its first moment."""
        if pid is not None:
            self._bind(pid)
        await super().begin(pid)

    async def started(self, pid: int) -> None:
        """Bound a new QEMU whose start was not seen (a daemon's), then set its priority."""
        self._bind(pid)
        await super().started(pid)

    async def lift(self, pid: int | None) -> None:
        """End the bound, of this QEMU and of later ones."""
        self.share = FULL_SHARE
        self._bounded = None
        if pid is not None:
            lift(pid)
        if self.how == "priority":
            await self.set(pid, False)

    def _bind(self, pid: int) -> None:
        if self.share < FULL_SHARE and self._bounded != pid:
            self._bounded = pid
            self.how = limit(pid, self.share) or "priority"
