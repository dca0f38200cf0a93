"""The claims of the paper's section 4, each compared with the results of campaigns."""

__all__: list[str] = []
