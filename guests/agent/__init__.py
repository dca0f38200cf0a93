"""The agent: the process in a guest that stands between the link and the service."""

__all__: list[str] = []
