"""The claims of the paper's sections 3 and 4, each compared with what was measured."""

__all__: list[str] = []
