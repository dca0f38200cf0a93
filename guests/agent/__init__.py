"""The agent: the process in a guest that connects the link to the service."""

__all__: list[str] = []
