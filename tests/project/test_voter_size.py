"""The voter is R_V: what its process loads is counted, and kept small (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 5650
"""Lines of our own that the voter's process may load, without blank lines, comments, docstrings."""

PROBE = """
import json, sys
import voter.daemon
print(json.dumps({name: getattr(module, "__file__", None) for name, module in sys.modules.items()}))
"""


def _loaded() -> dict[str, str | None]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules: dict[str, str | None] = json.loads(done.stdout)
    return modules


def _code_lines(path: Path) -> int:
    """Count the lines that hold code: each line of a statement that is not a bare string."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.stmt) and not hasattr(node, "body"):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.stmt):
            lines.add(node.lineno)
    return len(lines)


def test_the_voters_process_loads_little_and_nothing_that_boots_or_breaks_guests() -> None:
    loaded = _loaded()
    tops = {name.partition(".")[0] for name in loaded}
    strangers = {"libvirt", "paramiko", "click", "rich", "matplotlib", "deploy", "faultinject"}
    assert not tops & strangers
    assert not {"voter.authorizer", "guests.function"} & loaded.keys(), (
        "a voter without F has none of it"
    )

    ours = {
        name: _code_lines(Path(file))
        for name, file in loaded.items()
        if file is not None and name.partition(".")[0] in {"voter", "guests"}
    }
    total = sum(ours.values())
    print(f"the voter's process loads {len(ours)} modules of ours, {total} lines")
    assert "voter.core.engine" in ours
    assert total <= MOST_LINES, sorted(ours.items(), key=lambda item: -item[1])
