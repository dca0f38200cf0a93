"""Faults: what each kind is (``catalogue``, data), and how it is carried out (``acts``)."""

from __future__ import annotations

from faultinject.faults.catalogue import CATALOGUE, Fault, Layer, find

__all__ = ["CATALOGUE", "Fault", "Layer", "find"]
