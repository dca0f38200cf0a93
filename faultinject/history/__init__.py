"""Workloads and the checkers of what clients saw: oracles and linearizability."""

__all__: list[str] = []
