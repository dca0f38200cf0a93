"""What holds for every file: exports, sizes, error handling, nothing of one machine or registry."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.project.tree import PACKAGES, ROOT, Source, sources, tracked

__all__: list[str] = []

MOST_LINES = 500

# Where the product may sleep, and why; elsewhere it waits for events.
SLEEPS = {
    ".ci/deadline.py": "polls /proc: there is no event for the end of an orphan's orphan",
    "deploy/authorizer.py": "a pause, so that an F that dies at once does not take the processor",
    "faultinject/demo/story.py": "polls the end of processes that are not its children",
    "guests/agent/main.py": "a port whose host end is closed gives no event, nor does sysfs",
}

# Hosts that package indexes and mirrors are known by; in parts, or this file would match itself.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("ftp", "debian", "org"),
        ("snapshot", "debian", "org"),
        ("registry", "npmjs", "org"),
        ("pkg", "dev"),
        ("rubygems", "org"),
        ("crates", "io"),
    )
]
# Directories of the machine the project is written on, which no file of the project may name.
MACHINE = re.compile(r"(?<![\w.~-])/(?:work/|tmp/w/|root/\.|opt/(?:pypi|wheels))")


def product() -> list[Source]:
    """Return the Python files of the product, and the CI's; no tests, no examples."""
    return [s for s in sources() if s.name.lstrip(".").partition(".")[0] in (*PACKAGES, "ci")]


def texts() -> Iterator[tuple[str, str]]:
    """Yield (path inside the project, text) of each file that is text."""
    for path in tracked():
        try:
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def where(source: Source, node: ast.AST) -> str:
    """Return FILE:LINE of a syntax node."""
    return f"{source.path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def test_every_module_says_what_it_exports() -> None:
    without = []
    for source in [*product(), *(source for source in sources() if source.is_test)]:
        names = {
            target.id
            for node in source.tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        script = source.path.name in {"__main__.py", "conftest.py"}
        test = source.is_test and source.path.name.startswith("test_")
        if "__all__" not in names and not script and not test and source.tree.body:
            without.append(str(source.path.relative_to(ROOT)))
    assert without == []


def test_nothing_is_raised_inside_except_star() -> None:
    """Python 3.11.2, Debian 12's own, wraps it into a group that `except` of its type passes by."""
    raised = [
        where(source, inner)
        for source in product()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.TryStar)
        for handler in node.handlers
        for inner in ast.walk(handler)
        if isinstance(inner, ast.Raise) and inner.exc is not None
    ]
    assert raised == []


def test_what_a_module_exports_is_there() -> None:
    missing = []
    for source in product():
        bound: set[str] = set()
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                bound.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound.add(node.id)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        for node in source.tree.body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if value is not None and "__all__" in ast.unparse(node).partition("=")[0]:
                for name in ast.literal_eval(value):
                    # In a package a name may be one of its modules.
                    beside = source.path.parent / name
                    module = beside.exists() or beside.with_suffix(".py").exists()
                    if name not in bound and not module:
                        missing.append(f"{where(source, node)} {name}")
    assert missing == []


def test_every_module_has_a_docstring_and_future_annotations() -> None:
    bad = []
    for source in product():
        if not source.tree.body:
            continue
        if ast.get_docstring(source.tree) is None:
            bad.append(f"{source.path.relative_to(ROOT)}: no docstring")
        defines = any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.walk(source.tree))
        if defines and "from __future__ import annotations" not in source.text:
            bad.append(f"{source.path.relative_to(ROOT)}: no `from __future__ import annotations`")
    assert bad == []


def test_no_file_of_the_product_is_too_long() -> None:
    long = {
        str(source.path.relative_to(ROOT)): count
        for source in product()
        if (count := source.text.count("\n")) > MOST_LINES
    }
    assert long == {}


def test_no_exception_is_swallowed() -> None:
    bad = []
    for source in sources():
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            if node.type is None:
                bad.append(f"{where(source, node)} bare except")
                continue
            caught = ast.unparse(node.type)
            nothing = all(isinstance(inner, ast.Pass | ast.Continue) for inner in node.body)
            if caught in {"BaseException", "Exception"} and nothing:
                bad.append(f"{where(source, node)} except {caught}: nothing")
    assert bad == []


def test_nothing_sleeps_in_place_of_a_condition() -> None:
    sleeping: set[str] = set()
    for source in product():
        imported = any(name == "time.sleep" for _, name in source.imports())
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called == "time.sleep" or (called == "sleep" and imported):
                sleeping.add(str(source.path.relative_to(ROOT)))
    assert sleeping - SLEEPS.keys() == set(), "say why in SLEEPS, or wait for the event itself"


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    hits = []
    for name, text in texts():
        if name == "LICENSE":
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            hits += [f"{name}:{number} {host}" for host in REGISTRIES if host in line]
            if found := MACHINE.search(line):
                hits.append(f"{name}:{number} {found.group()}")
    assert hits == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_a_rag_bag(package: str) -> None:
    bags = {"util", "utils", "helper", "helpers", "misc", "common"}
    names = [source.name for source in product() if source.name.partition(".")[0] == package]
    assert [name for name in names if bags.intersection(name.split("."))] == []
