"""The whole system under one seed: the product's own engine, runner, link, journal, front ends,
client library and agent, on a simulated clock, network and disk.

A run is a function of its seed: it is the same, byte for byte, on every host.  The modules form
layers, and each imports only those before it:

1.  The simulated machine: ``loop`` (time and processes), ``streams``, ``network``, ``disk``.
2.  The parties: ``guest``, ``keyed`` and ``clients``; ``plan``, which draws what they do;
    ``seeds``, the recorded seeds; and ``promises``, which observes the parties.
3.  ``world``: the state of one run.
4.  What acts on a world: ``faults`` injects, ``checks`` judges, ``timeline`` describes.
5.  ``run``: makes one run.
6.  Many runs: ``hunt``, ``shrink``, ``reach``, ``fingerprint``; then ``groups``, and ``mutation``
    with its planted ``defects``.
7.  ``command``: the command line.
"""

from __future__ import annotations

__all__: list[str] = []
