"""``trivisor bench``: what voting costs, as ratios of things measured side by side in one run.

``load`` drives, ``peers`` are the things compared with (a plain proxy, HAProxy), ``compare`` measures throughput and
latency, ``disturb`` what a failing guest does to the others' latency, ``idle`` what idle connections cost, ``host``
says what it was measured on.
"""

from __future__ import annotations

__all__: list[str] = []
