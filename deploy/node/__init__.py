"""A node's directory: what was asked for, what runs, who owns it, and how leftovers are found."""

__all__: list[str] = []
