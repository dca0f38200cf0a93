"""A node on one host: its machines, its supervisor and the commands on it.

Each layer imports only those below it: ``commands``; ``supervisor`` (keeps a node running);
``watchdog`` (the supervisor's parent process); ``node`` (a node's directory and records) and
``authorizer`` (the function F as a process); ``machine`` (VMs through libvirt); ``host``
(processes, priorities, files); ``errors``.
"""

from __future__ import annotations

__all__: list[str] = []
