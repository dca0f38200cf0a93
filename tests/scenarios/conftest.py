"""The flag that rewrites the scenario files: `pytest tests/scenarios --rewrite-scenarios`."""

from __future__ import annotations

import pytest

__all__ = ["pytest_addoption"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --rewrite-scenarios."""
    parser.addoption(
        "--rewrite-scenarios",
        action="store_true",
        help="write the engine's present effects into tests/scenarios/*.txt; review the difference",
    )
