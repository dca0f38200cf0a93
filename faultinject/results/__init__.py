"""Results as data: the findings of campaigns, measured points, relocation, guests on one host."""

__all__: list[str] = []
