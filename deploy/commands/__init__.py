"""Commands on a node and its host: ``trivisor up``, ``status``, ``logs``, ``down``, ``doctor``,
``function``."""

__all__: list[str] = []
