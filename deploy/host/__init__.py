"""What the operating system provides: processes, priorities, files."""

__all__: list[str] = []
