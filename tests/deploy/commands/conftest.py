"""Running nodes for the tests of the commands."""

from __future__ import annotations

from tests.deploy.supervisor.conftest import all_end_with_tests, plain_node

__all__ = ["all_end_with_tests", "plain_node"]
