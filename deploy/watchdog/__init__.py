"""The watchdog: the supervisor's parent process, which restarts it and keeps its sockets."""

__all__: list[str] = []
