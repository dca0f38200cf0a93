"""One mission on one node: requests, fault injection, replies, outcome."""

__all__: list[str] = []
