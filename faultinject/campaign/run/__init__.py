"""Whole runs of a campaign: progress, status, interim results, replay and comparison."""

__all__: list[str] = []
