"""Find out whether a service is deterministic: ``trivisor service check FILE``.

Runs the service on one seeded sequence of requests in several processes, each under one changed
condition, and compares replies and digests step by step with a plain run.  Changed are, one at
a time: the start (another process), the hash seed, the state of the random module, the clocks.
Then the state is taken by ``snapshot`` and given to a fresh replica, which must go on alike;
requests that only read must not change the state, and leaving some of them out must change
nothing for the others.

What "no difference" does *not* mean: that there is none.  It says that these requests showed
none under these conditions.  Give requests of your own (``CHECK_REQUESTS`` in the service's
file) that reach all its parts.
"""

from __future__ import annotations

from guests.check.compare import check
from guests.check.result import CheckResult, Disagreement, format_result

__all__ = ["CheckResult", "Disagreement", "check", "format_result"]
