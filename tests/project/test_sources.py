"""Rules for every file that no linter checks: exports, sizes, error handling, private paths."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

from tests.project.tree import PACKAGES, ROOT, Source, sources, tracked

MOST_LINES = 500

# Files that may call `time.sleep`, and why. All others wait for events.
SLEEPS = {
    "deploy/commands/logs.py": "follows a file: the standard library has no event for its growth",
    "deploy/commands/patch.py": "polls the supervisor: no event reports the steps of a patch",
    "deploy/host/guard.py": "polls /proc: there is no event for a new child, once an orphan",
    "deploy/authorizer.py": "a pause, so that an F that dies at once does not take the processor",
    "faultinject/bench/link.py": "the pause between two messages is part of what is measured",
    "faultinject/bench/link_echo.py": "sysfs gives no event for a new port",
    "faultinject/demo/story.py": "polls the end of processes that are not its children",
    "guests/agent/main.py": "a port whose host end is closed gives no event, nor does sysfs",
}

# Hosts of package indexes and mirrors, in parts, so that this file does not match itself.
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
# Directories of a developer's machine. No file may name them.
MACHINE = re.compile(r"(?<![\w.~-])/(?:work/|tmp/w/|root/\.|opt/(?:pypi|wheels))")


def product() -> list[Source]:
    """Return the Python files of the product and of the CI."""
    return [source for source in sources() if source.package in (*PACKAGES, "ci")]


def texts() -> Iterator[tuple[str, str]]:
    """Yield (relative path, text) of each text file."""
    for path in tracked():
        try:
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def where(source: Source, node: ast.AST) -> str:
    """Return FILE:LINE of a syntax node."""
    return f"{source.path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def test_every_module_declares_its_exports() -> None:
    missing = [
        str(source.path.relative_to(ROOT))
        for source in product()
        if source.path.name != "__main__.py"
        and source.tree.body
        and not any(ast.unparse(node).startswith("__all__") for node in source.tree.body)
    ]
    assert missing == []


def test_no_exception_is_raised_inside_except_star() -> None:
    """Python 3.11.2 of Debian 12 wraps it into a group that `except` does not catch."""
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


def test_no_file_is_too_long() -> None:
    long = {
        str(source.path.relative_to(ROOT)): count
        for source in product()
        if (count := source.text.count("\n")) > MOST_LINES
    }
    assert long == {}


def test_only_listed_files_sleep() -> None:
    sleeping: set[str] = set()
    for source in product():
        imported = any(name == "time.sleep" for _, name in source.imports())
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called == "time.sleep" or (called == "sleep" and imported):
                sleeping.add(str(source.path.relative_to(ROOT)))
    assert sleeping - SLEEPS.keys() == set(), (
        "wait for the event instead, or give the reason in SLEEPS"
    )


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


def test_no_module_has_a_catch_all_name() -> None:
    vague = {"util", "utils", "helper", "helpers", "misc", "common"}
    assert [s.name for s in product() if vague.intersection(s.name.split("."))] == []


def test_guests_import_only_the_standard_library() -> None:
    """What runs in a guest; import-linter knows forbidden libraries only, no allowed ones."""
    strays = [
        f"{source.path.relative_to(ROOT)}:{line} {name}"
        for source in product()
        if source.package == "guests" and not source.name.startswith("guests.image")
        for line, name in source.imports()
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "guests"}
        # For the compiler, under TYPE_CHECKING.
        and (source.name, name.partition(".")[0]) != ("guests.compiled", "mypy_extensions")
    ]
    assert strays == []


def test_no_message_of_a_node_proposes_to_delete() -> None:
    """A node's directory holds its journal: a remedy moves files away."""
    found = []
    for source in sources():
        if source.package not in ("deploy", "voter"):
            continue
        # `deploy --remove` removes a package from a host, and asks first.
        if source.name.startswith(("deploy.remote.", "deploy.commands.deploy")):
            continue
        docs = {id(n.value) for n in ast.walk(source.tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                word = re.search(r"(?i)\b(remove|delete|rm|wipe|empty the|--fresh)\b", node.value)
                if word and len(node.value) > 10 and id(node) not in docs:
                    found.append(f"{where(source, node)}: {node.value}")
    # One file that `down` could not remove; and the option itself, which asks first.
    allowed = (
        "cannot delete ",
        "remove it, or leave it for",
        "with --fresh",
        "With --fresh",
        "Delete this",
        "end and remove them with `trivisor down`",
    )
    assert [each for each in found if not any(word in each for word in allowed)] == []


def test_json_is_written_without_what_json_does_not_have() -> None:
    """NaN and infinity are errors where they are written, not where they are read."""
    found = [
        where(source, node)
        for source in product()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("json.dump", "json.dumps")
        and not any(each.arg == "allow_nan" for each in node.keywords)
        and source.name != "guests.services.table"  # names of keys only
    ]
    assert found == []
