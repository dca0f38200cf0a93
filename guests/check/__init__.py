"""A search for non-determinism in a service: ``trivisor service check FILE``.

The check runs the service on one seeded sequence of requests in several processes.  Each run
changes one condition: the process, the hash seed, the state of the random module, or the clocks.
The check compares replies and digests step by step with those of a plain run.  Further runs start
from a snapshot, which must lead to the same replies, or leave out read-only requests, which must
not change the state.

"No difference" does *not* prove determinism: these requests showed none under these conditions.
Put requests that reach all parts of the service into its file (``CHECK_REQUESTS``).
"""

from __future__ import annotations

from guests.check.compare import check, describe
from guests.check.result import CheckResult, Disagreement, ServiceFacts, format_result

__all__ = ["CheckResult", "Disagreement", "ServiceFacts", "check", "describe", "format_result"]
