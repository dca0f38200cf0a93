"""The flag that writes the scenario files anew: `pytest tests/scenarios --rewrite-scenarios`."""

from __future__ import annotations

import pytest

__all__ = ["pytest_addoption"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --rewrite-scenarios."""
    parser.addoption(
        "--rewrite-scenarios",
        action="store_true",
        help="write into tests/scenarios/*.txt what the engine does now; look at the difference",
    )
