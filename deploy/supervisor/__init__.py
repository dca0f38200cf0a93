"""The supervisor: keeps guests and voter of one node running, repairs them, answers commands."""

__all__: list[str] = []
