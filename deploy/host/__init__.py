"""What the host's operating system gives: processes, files, paths, priorities.  Knows nothing of
nodes."""

__all__: list[str] = []
