"""The results of a campaign: one SQLite file, written by one process and read by many."""

__all__: list[str] = []
