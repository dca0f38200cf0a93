"""The dashboard: a page that shows a node as it runs, served by its supervisor."""

__all__: list[str] = []
