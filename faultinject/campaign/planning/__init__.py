"""The plan of a campaign: specification file, checks, random draws, duration, summary."""

__all__: list[str] = []
