"""Section 4 of the paper as formulas: node reliability, bounds, common causes, fault trees.

Pure arithmetic on floats, with the standard library and msgspec only.  Failures are independent
except in ``causes``.  Beyond the paper: ``outcomes`` (guests that lie), ``designs`` (which is best)
and ``repairable`` (failure and repair rates).
"""

__all__: list[str] = []
