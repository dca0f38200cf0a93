"""Plant a defect: rewrite the source of product modules while they are imported.

``python -m faultinject.simulation.mutation NAME FIRST..LAST`` plants a defect in a process of its
own, runs the seeds until an expected promise breaks, and prints the breach as a JSON object.  The
object is empty if no promise broke.

Theory of operation: a finder at the head of ``sys.meta_path`` supplies the changed source of the
modules that the defect names.  So the defect must be planted before the product is imported, and
this module imports the product only afterwards.  ``plant`` raises if that is violated: a module
that was imported already would run unchanged.  A module that is otherwise used compiled is used as
changed source here, beside the compiled others.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import json
import subprocess
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

from faultinject.simulation.defects import DEFECTS, Defect

__all__ = ["DEFECTS", "DEFECT_SEEDS", "detect", "main", "plant", "run_planted"]

DEFECT_SEEDS = 100
"""Number of seeds within which each planted defect must be detected."""

_WORLD = "faultinject.simulation.world"
"""The module that imports the product.  Once it is imported, a defect has no effect."""


class _Loader(importlib.machinery.SourceFileLoader):
    """A loader that changes the source of one module."""

    def __init__(self, name: str, path: str, edits: Sequence[tuple[str, str]]) -> None:
        super().__init__(name, path)
        self._edits = edits

    def get_code(self, fullname: str) -> CodeType:
        """Compile the changed source.  Raises ImportError if an edit does not fit exactly once."""
        source = self.get_data(self.path).decode()
        for old, new in self._edits:
            times = source.count(old)
            if times != 1:
                raise ImportError(f"{fullname}: {old!r} occurs {times} times, not once")
            source = source.replace(old, new)
        code: CodeType = compile(source, self.path, "exec", dont_inherit=True)
        return code


class _Finder(importlib.abc.MetaPathFinder):
    """A finder of the modules that a defect changes."""

    def __init__(self, defect: Defect) -> None:
        self._edits: dict[str, list[tuple[str, str]]] = {}
        for module, old, new in defect.edits:
            self._edits.setdefault(module, []).append((old, new))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a changed module, None for any other module."""
        edits = self._edits.get(fullname)
        if edits is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            return spec
        spec.loader = _Loader(fullname, spec.origin, edits)
        return spec


def plant(defect: Defect) -> None:
    """Change what will be imported.  Raises RuntimeError if it was imported already."""
    for module in (_WORLD, *(module for module, _, _ in defect.edits)):
        if module in sys.modules:
            raise RuntimeError(f"{module} is imported already")
    importlib.import_module("guests")  # its finder of compiled modules must come after this one
    sys.meta_path.insert(0, _Finder(defect))


def _check_planted(defect: Defect) -> None:
    """Raise RuntimeError if a module that was to be changed runs unchanged."""
    for module in {module for module, _, _ in defect.edits}:
        if not isinstance(sys.modules[module].__loader__, _Loader):
            raise RuntimeError(f"{module} was imported without its changes")


def detect(name: str) -> dict[str, Any]:
    """Return the first breach (seed, promise, text) that a defect causes; empty if there is none.

    A seed that breaks the same promises without the defect does not count.
    """
    first = DEFECTS[name].first
    last = first + DEFECT_SEEDS - 1
    while first <= last:
        breach = run_planted(name, first, last)
        if not breach or not run_planted("-", breach["seed"], breach["seed"]):
            return breach
        first = breach["seed"] + 1
    return {}


def run_planted(name: str, first: int, last: int) -> dict[str, Any]:
    """Run ``main`` in a process of its own; return the breach that it prints."""
    command = [sys.executable, "-m", __spec__.name, name, f"{first}..{last}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"defect {name} cannot be planted: {done.stderr.strip()[-300:]}")
    breach: dict[str, Any] = json.loads(done.stdout)
    return breach


def main(name: str, first: int, last: int) -> None:
    """Run seeds until the defect's breach occurs (``-``: no defect); print it as JSON."""
    if name in DEFECTS:
        plant(DEFECTS[name])
    from faultinject.simulation.plan import make_plan  # noqa: PLC0415 - after the defect
    from faultinject.simulation.promises import PROMISES  # noqa: PLC0415
    from faultinject.simulation.run import run  # noqa: PLC0415

    if name in DEFECTS:
        _check_planted(DEFECTS[name])
    expected = DEFECTS[name].promises if name in DEFECTS else PROMISES
    found = None
    for seed in range(first, last + 1):
        breaches = run(make_plan(seed)).breaches
        found = next((breach for breach in breaches if breach.promise in expected), None)
        if found is not None:
            break
    breach = {"seed": seed, "promise": found.promise, "text": found.text} if found else {}
    sys.stdout.write(json.dumps(breach, allow_nan=False) + "\n")


if __name__ == "__main__":
    first, _, last = sys.argv[2].partition("..")
    main(sys.argv[1], int(first), int(last))
