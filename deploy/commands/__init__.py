"""The commands ``up``, ``status``, ``logs``, ``down``, ``doctor`` and ``function``."""

__all__: list[str] = []
