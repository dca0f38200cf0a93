"""The plan of a campaign: its file, the random draws, the missions, duration and precision."""

__all__: list[str] = []
