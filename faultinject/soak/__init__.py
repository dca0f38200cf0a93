"""``trivisor soak``: hundreds of faults on one real node, under load, with every reply checked.

``plan`` and ``round_plan`` say what is broken when.  ``episodes`` and ``rounds`` carry that out,
by ``injection`` and ``corruption``, and wait for ``recovery`` between faults.  ``view`` reads the
state of the node, ``voter_log`` and ``markers`` what the voter decides.  ``load`` makes the
clients' requests, and the oracle of ``faultinject.history`` checks their replies.  ``checkpoints``
audits the voter's journal.  ``verdict`` judges the promises, ``record`` is what is stored, and
``run`` wires a run together.
"""

from __future__ import annotations

__all__: list[str] = []
