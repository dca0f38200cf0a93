"""Faults: what each kind is (``catalogue``), and how one is injected into a node (``injection``).

The modules form layers, from the top: ``injector`` (the supervisor's fault injector) and
``injection``; one module for the faults of each layer (``machines``, ``memory``, ``inside``,
``functions``, ``processes``, ``common_causes``); ``proxy`` and ``lies`` for faulty links;
``bit_flips`` and ``registers``, which flip bits; ``site`` and ``catalogue``.
"""

from __future__ import annotations

from faultinject.faults.catalogue import CATALOGUE, FaultKind, FaultLayer, Injection, find

__all__ = ["CATALOGUE", "FaultKind", "FaultLayer", "Injection", "find"]
