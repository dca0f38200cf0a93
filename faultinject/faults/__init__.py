"""Faults: what each kind is (``catalogue``, data), and how it is carried out (``acts``)."""

from __future__ import annotations

from faultinject.faults.catalogue import CATALOGUE, FaultKind, FaultLayer, find
from faultinject.faults.fault import Injection

__all__ = ["CATALOGUE", "FaultKind", "FaultLayer", "Injection", "find"]
