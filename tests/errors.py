"""How tests assert that the product made an error with a certain code."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from guests.errors import CodedError

__all__ = ["logs", "raises"]

_TESTS = str(Path(__file__).resolve().parent)


def raises(code: str, match: str | None = None) -> pytest.RaisesExc[CodedError]:
    """Assert that a block raises an error with this code, and that no test raised it.

    ``match`` is a regular expression that the message contains.
    """

    def check(error: CodedError) -> bool:
        last = traceback.extract_tb(error.__traceback__)[-1]
        by_test = last.filename.startswith(_TESTS) and (last.line or "").startswith("raise ")
        assert not by_test, f"{code} was raised by a test: {last.filename}:{last.lineno}"
        assert error.error_code == code, f"{error.error_code or 'no code'}: {error}"
        return True

    return pytest.raises(CodedError, match=match, check=check)


@contextlib.contextmanager
def logs(code: str) -> Iterator[None]:
    """Assert that a block logs an error or warning with this code (by structlog)."""
    with capture_logs() as entries:
        yield
    assert code in {entry.get("error_code") for entry in entries}, entries
