"""Patches: what differs between a patched copy and the node, what was expected, and the record.

The supervisor starts the copy and promotes it (``deploy.supervisor.patcher``); the command is
``trivisor patch``.  Here are the parts that need neither: ``differences`` compares two replies,
``rules`` holds the expected differences, ``judgement`` decides whether the quarantine has ended,
``store`` keeps the differences and ``record`` the state of the patch on disk.
"""

from __future__ import annotations

__all__: list[str] = []
