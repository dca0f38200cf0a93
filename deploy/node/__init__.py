"""A node's directory: its records and lock, what follows from them, and its leftovers."""

__all__: list[str] = []
