"""The whole system under one seed: real engine, runner, link, journal, front end, client and agent
on a simulated clock, network and disk.

``plan`` says what happens (a pure function of the seed), ``world`` makes it happen, ``promises``
watches.  A run is the same, byte for byte, whenever and wherever it is made again.
"""

from __future__ import annotations

__all__: list[str] = []
