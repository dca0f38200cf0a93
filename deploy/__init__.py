"""A node of n guests on one host: the machines, and the supervisor that keeps them as asked.

From the ground up: `spec` and `domain_xml` say what a guest is, `hypervisor` is the one place that
speaks to libvirt, `guest` is one VM and its states, `node` is n of them.
"""

from __future__ import annotations

__all__: list[str] = []
