"""Campaigns: many missions with faults, each checked, and what they show about reliability.

``spec`` (a file) and a seed give the ``plan``; a ``station`` runs one mission of it on its own
node; the ``runner`` spreads missions over stations and has the ``store`` write each row as it
ends; ``report`` tells what they show, by ``faultinject.estimate`` and ``faultinject.model``.
"""

from __future__ import annotations

__all__: list[str] = []
