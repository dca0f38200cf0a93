"""Every error and warning that a user meets has a code, an entry in the catalogue, and a test."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict

from deploy.error_catalogue import AREAS, load
from tests.project.tree import PACKAGES, ROOT, Source, sources

CODE = re.compile(r"TV[0-9]{4}")
USED = re.compile(r"(?:error |warning )?(TV[0-9]{4})(?=:|$)")
LOGS = {"warning": "warning", "error": "error", "exception": "error", "critical": "error"}

# Codes without a test that produces them.  The list only shrinks.
UNTESTED = {
    "TV0122", "TV0124", "TV0126", "TV0128", "TV0129", "TV0223", "TV0535", "TV0538", "TV0712",
    "TV0716", "TV0801", "TV0803",
}  # fmt: skip


def product() -> list[Source]:
    """Return the Python files of the product."""
    return [source for source in sources() if source.package in PACKAGES]


def files_of_tests() -> list[Source]:
    """Return the Python files of the tests but for this one."""
    here = ROOT / "tests"
    return [
        source
        for source in sources()
        if here in source.path.parents and source.path.name != "test_error_codes.py"
    ]


def name_of(node: ast.expr) -> str:
    """Return the last part of a name, `c` of `a.b.c`."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def codes_in(node: ast.AST) -> set[str]:
    """Return the codes in the strings of a syntax tree."""
    strings = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
    return {code for text in strings if isinstance(text, str) for code in CODE.findall(text)}


def used_in(node: ast.AST) -> set[str]:
    """Return the codes that a tree uses: strings that are a code, or begin with "error CODE"."""
    strings = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
    found = (USED.match(text) for text in strings if isinstance(text, str))
    return {match[1] for match in found if match}


@functools.cache
def coded_classes() -> dict[str, str]:
    """Return the exception classes below CodedError, by name: the code that each has, or ""."""
    bases: dict[str, list[str]] = {"CodedError": []}
    own: dict[str, str] = {}
    for source in product():
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ClassDef):
                continue
            above = [name_of(base) for base in node.bases]
            bases.setdefault(node.name, [base for base in above if base != node.name])
            for line in node.body:
                if isinstance(line, ast.Assign) and name_of(line.targets[0]) == "error_code":
                    own[node.name] = "".join(codes_in(line))

    def coded(name: str) -> bool:
        return name == "CodedError" or any(map(coded, bases.get(name, [])))

    def code(name: str) -> str:
        inherited = (code(base) for base in bases.get(name, []))
        return own.get(name) or next(filter(None, inherited), "")

    return {name: code(name) for name in bases if coded(name)}


@functools.cache
def sites() -> list[tuple[str, set[str], str]]:
    """Return each place that makes or logs an error: FILE:LINE, its codes, and a log's severity.

    A place that passes on the code of another error has the code "passed on".
    """
    classes = coded_classes()
    found = []
    for source in product():
        path = source.path.relative_to(ROOT)
        if str(path) == "voter/log.py":
            continue  # the log itself
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call):
                continue
            name = name_of(node.func)
            given = next((each.value for each in node.keywords if each.arg == "error_code"), None)
            codes = codes_in(given) if given is not None else set()
            if not codes and given is not None and "code" in ast.unparse(given):
                codes = {"passed on"}
            place = f"{path}:{node.lineno}"
            if name in classes:
                found.append((place, codes or {classes[name]} - {""}, ""))
            elif name in LOGS and isinstance(node.func, ast.Attribute):
                if name_of(node.func.value) in ("_log", "log", "logger", "_logger"):
                    found.append((place, codes, LOGS[name]))
            elif name == "warn" and node.args and "error" in ast.unparse(node.args[0])[:12]:
                found.append((place, codes_in(node.args[0]) or {"passed on"}, ""))
    return found


def test_every_error_and_every_logged_warning_has_a_code() -> None:
    assert [place for place, codes, _ in sites() if not codes] == []


def test_the_catalogue_has_every_code_that_is_used_and_no_other() -> None:
    used = set().union(*(used_in(s.tree) for s in product()))
    entries = load()
    assert used - entries.keys() == set()
    assert {code for code, entry in entries.items() if not entry.retired} - used == set()
    assert {code for code, entry in entries.items() if entry.retired} & used == set()


def test_every_entry_says_what_happened_why_and_what_to_do() -> None:
    for code, entry in load().items():
        assert CODE.fullmatch(code) and code[2:4] in AREAS
        assert entry.severity in ("error", "warning")
        for title, text in entry.sections():
            assert len(text) >= 30, f"{code}: {title}"
    titles = [entry.title for entry in load().values()]
    assert sorted(titles) == sorted(set(titles)), "two codes have one title"


def test_a_logged_error_is_an_error_in_the_catalogue() -> None:
    entries = load()
    wrong = [
        f"{place}: {code} is a {entries[code].severity}"
        for place, codes, severity in sites()
        for code in codes & entries.keys()
        if severity == "error" and entries[code].severity != "error"
    ]
    assert wrong == []


def asserted() -> dict[str, set[str]]:
    """Return the codes that tests assert on errors that the product made: by code, the files.

    They are in a call of `raises` or `logs`, in an `assert`, or in a table of such a test.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for source in files_of_tests():
        for function in ast.walk(source.tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            checks = [
                node
                for node in ast.walk(function)
                if isinstance(node, ast.Assert)
                or (isinstance(node, ast.Call) and name_of(node.func) in ("logs", "raises"))
            ]
            tables = (
                function.decorator_list if any("code" in ast.unparse(c) for c in checks) else []
            )
            for node in [*checks, *tables]:
                for code in codes_in(node):
                    found[code].add(str(source.path.relative_to(ROOT)))
    return found


def test_every_code_has_a_test_that_produces_it() -> None:
    wanted = {code for code, entry in load().items() if not entry.retired}
    assert wanted - asserted().keys() == UNTESTED


def test_no_test_makes_an_error_with_a_code_itself() -> None:
    classes = coded_classes()
    made = [
        f"{source.path.relative_to(ROOT)}:{node.lineno}"
        for source in files_of_tests()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and name_of(node.func) in classes
        if any(keyword.arg == "error_code" for keyword in node.keywords)
    ]
    assert made == []
