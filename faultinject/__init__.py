"""Fault injection: faults, the campaigns that measure what they cause, models and benchmarks.

``faults`` is the catalogue of faults, as data, and their injection, which proves and undoes them.
``services`` have planted bugs.  ``campaign`` runs missions with faults and counts outcomes.
"""

from __future__ import annotations

__all__: list[str] = []
