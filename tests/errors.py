"""How tests assert that the product made an error with a certain code."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from guests.errors import CodedError

__all__ = ["raises"]

_TESTS = str(Path(__file__).resolve().parent)


@contextlib.contextmanager
def raises(code: str, match: str = "") -> Iterator[pytest.ExceptionInfo[CodedError]]:
    """Assert that the block raises an error with this code, and that no test raised it.

    ``match`` is a regular expression that the message contains.
    """
    with pytest.raises(CodedError) as caught:
        yield caught
    error = caught.value
    assert error.error_code == code, f"{error.error_code or 'no code'}: {error}"
    assert re.search(match, str(error)), str(error)
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    assert not raised_in.startswith(_TESTS), f"{code} was raised by a test: {raised_in}"
