"""Deployment to another host by SSH: its checks, the plan of changes, their transaction there."""

__all__: list[str] = []
