"""The base of all errors that reach a user: each has a stable code.

``deploy/error_catalogue`` has what `trivisor explain CODE` prints.
"""

from __future__ import annotations

__all__ = ["CodedError"]


class CodedError(Exception):
    """An error with a code (``TV0123``), and one sentence on how to fix it, or none.

    A class gives the code if all its errors have one remedy; else the place that raises it does.
    """

    error_code = ""
    remedy = ""

    def __init__(self, problem: str = "", *, remedy: str = "", error_code: str = "") -> None:
        super().__init__(problem)
        if remedy:
            self.remedy = remedy
        if error_code:
            self.error_code = error_code
