"""``python -m guests.check FILE``: the check as a command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from guests.check import check, format_result
from guests.service import ServiceError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Check a service; return 0 (no difference), 1 (a difference) or 2 (it cannot be loaded)."""
    parser = argparse.ArgumentParser(prog="guests.check", description="find non-determinism")
    parser.add_argument("service", help="kv, static, or a Python file")
    parser.add_argument("--requests", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    try:
        result = check(options.service, requests=options.requests, seed=options.seed)
    except (ServiceError, ValueError) as error:
        sys.stderr.write(f"trivisor: {error}\n")
        return 2
    if options.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    else:
        sys.stdout.write(format_result(result))
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
