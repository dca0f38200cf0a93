"""Which service the replicas run: all must run the same one, and the one whose states are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from guests.protocol import wire

__all__ = ["ReplicaIdentities"]


class ReplicaIdentities:
    """Service and state format of each replica, from its last WELCOME.

    ``wanted``: the service that the configuration names, if it does.  ``need``: so many replicas
    with the same identity make it that of a new journal.  ``held``: service and state format whose
    states the journal holds, if known.  ``learn`` stores them in the journal, if there is one.
    """

    def __init__(self, wanted: str | None, need: int) -> None:
        self.held: tuple[str, int] | None = None
        self.learn: Callable[[str, int], None] | None = None
        self._wanted = wanted
        self._need = need
        self._found: dict[int, tuple[str, int]] = {}

    def forget(self, index: int) -> None:
        """Forget what a replica runs that is retired: another one comes in its place."""
        self._found.pop(index, None)

    def check(self, index: int, welcome: wire.Welcome) -> str | None:
        """Return why a replica with this WELCOME cannot be used, or None."""
        if welcome.protocol != wire.PROTOCOL:
            return f"its agent speaks protocol {welcome.protocol}, the voter {wire.PROTOCOL}"
        wanted, held = self._wanted, self.held
        if wanted is not None and welcome.service != wanted:
            return f"it runs service {welcome.service!r}, the configuration says {wanted!r}"
        identity = (welcome.service, welcome.state_format)
        if held is not None and held != identity:
            return (
                f"it runs {identity[0]} with state format {identity[1]}, the journal holds "
                f"states of {held[0]} with {held[1]}"
            )
        self._found[index] = identity
        # The most common identity counts, not the first: the first may be of a faulty replica.
        (common, times), *_ = Counter(self._found.values()).most_common()
        if held is None and self.learn is not None and times >= self._need:
            self.held = common
            self.learn(*common)
        if times > Counter(self._found.values())[identity]:
            return (
                f"it runs {identity[0]} with state format {identity[1]}, the others "
                f"{common[0]} with {common[1]}"
            )
        return None
