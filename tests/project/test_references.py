"""What documents and code refer to exists: documents, sections, files, names, commands, options."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.project.tree import PACKAGES, ROOT, sources, tracked
from trivisor import command

LINK = re.compile(r"\]\(([^)\s]+)\)")
DOCUMENT = re.compile(r"(?<![\w*{}/.-])((?:[\w-]+/|\.\./)*[\w-]+\.md)\b")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
PATH = re.compile(
    r"(?<![\w/.$}~-])((?:docs|examples|faultinject|deploy|guests|locks|tests|voter)/"
    r"[\w./-]*\w\.(?:py|md|toml|json|txt|svg|j2))\b"
)
CLASS = re.compile(r"``([a-z_]\w*(?:\.[a-z_]\w*)*)\.([A-Z][a-z]\w+)(?:\.\w+)?``")
NAME = re.compile(r"^(?:faultinject|deploy|voter|guests)(?:\.(?!json\b|py\b|toml\b)\w+)+$")
OPTION = re.compile(r"^(-{1,2}[A-Za-z][\w-]*)(?:=.*)?$")
ENDS = frozenset({"|", "||", "&&", ";", "&", ">", ">>", "<", "#"})
TOP = frozenset({"docs", "deploy", "examples", "faultinject", "guests", "locks", "tests", "voter"})
OTHERS = frozenset({"README.md"})
"""Documents of every project: a test that invents such a file does not refer to ours."""


def documents() -> list[Path]:
    """Return the tracked Markdown files."""
    return [path for path in tracked() if path.suffix == ".md"]


def mentioned(pattern: re.Pattern[str]) -> Iterator[tuple[str, Path, str]]:
    """Yield (FILE:LINE, file, what is named) for each match in the texts that people write."""
    for path in tracked():
        if path.suffix in (".json", ".jsonl", ".xz", ".svg", ".png") or path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            for found in pattern.findall(line):
                yield f"{path.relative_to(ROOT)}:{number}", path, found


def headings(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in found}


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each `trivisor` and `./run` command in fences or code font."""
    fenced = [line for block in FENCE.findall(text) for line in block.splitlines()[1:-1]]
    inline = [each.replace("\n", " ") for each in CODE.findall(FENCE.sub("", text))]
    for line in fenced + inline:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # not a command of a shell
        if words and words[0].rpartition("/")[2] in ("trivisor", "run"):
            end = next((i for i, word in enumerate(words) if word in ENDS), len(words))
            yield [words[0].rpartition("/")[2], *words[1:end]]


def strings(tree: ast.Module) -> Iterator[str]:
    """Yield the strings of a module, messages and docstrings; a formatted value becomes {}."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [each.value if isinstance(each, ast.Constant) else "{}" for each in node.values]
            yield "".join(map(str, parts))


def jobs() -> set[str]:
    """Return the jobs of ./run."""
    cases = (ROOT / "run").read_text().rpartition("case $job in")[2]
    return set(re.findall(r"^    ([a-z]+)\)", cases, re.MULTILINE)) | {"help"}


def problem_with(words: list[str]) -> str | None:
    """Return why the command line is not one of ours; None: each command and option exists."""
    program, *rest = words
    if program == "run":
        if not rest:
            return None
        if rest[0].isupper():
            return None  # ./run JOB
        if rest[0] not in jobs():
            return f"./run has no job {rest[0]}"
        if rest[0] not in ("campaign", "demo"):
            return None
    group: click.Command = command
    path = ["trivisor"]
    known = options(group)
    while isinstance(group, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name.isupper() or "{" in name:
            return None  # trivisor COMMAND
        found = group.get_command(click.Context(group), name)
        if found is None:
            return f"{' '.join(path)} has no command {name}"
        path.append(name)
        group = found
        known |= options(group)
    if "--" in rest:
        rest = rest[: rest.index("--")]
    for word in rest:
        option = OPTION.match(word)
        if option and option[1] not in known:
            return f"{' '.join(path)} has no option {option[1]}"
    return None


def options(of: click.Command) -> set[str]:
    """Return the option names of a command."""
    found = {"--help", "-h"}
    for parameter in of.params:
        found |= {*parameter.opts, *parameter.secondary_opts}
    return found


def test_every_linked_file_and_section_exists() -> None:
    broken = []
    for path in documents():
        for target in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:", target):
                continue
            place, _, section = target.partition("#")
            file = (path.parent / place).resolve() if place else path
            if not file.exists():
                broken.append(f"{path.relative_to(ROOT)}: no {target}")
            elif section and section not in headings(file):
                broken.append(f"{path.relative_to(ROOT)}: {place} has no section {section}")
    assert broken == []


def test_every_document_that_is_named_exists() -> None:
    broken = [
        f"{where}: {name}"
        for where, path, name in mentioned(DOCUMENT)
        if Path(name).name not in OTHERS
        and not any((base / name).exists() for base in (path.parent, ROOT, ROOT / "docs"))
    ]
    assert broken == []


def test_every_path_that_is_named_exists() -> None:
    broken = [
        f"{where}: {name}"
        for where, _, name in mentioned(PATH)
        if not (ROOT / name).exists() and not re.search(r"[A-Z]{4}", name)  # locks/NAME.txt
    ]
    assert broken == []


def test_every_class_that_a_docstring_names_exists_in_that_module() -> None:
    classes = {
        (source.name, node.name)
        for source in sources()
        for node in source.tree.body
        if isinstance(node, ast.ClassDef)
    }
    broken = [
        f"{source.path.relative_to(ROOT)}: {module}.{name}"
        for source in sources()
        for module, name in CLASS.findall(source.text)
        if not any(name == known and f".{place}".endswith(f".{module}") for place, known in classes)
    ]
    assert broken == []


def test_every_file_and_name_in_code_font_exists() -> None:
    broken = []
    for path in documents():
        if path.name == "CHANGELOG.md":
            continue  # it names what once was
        for code in CODE.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
            first, _, rest = code.partition("/")
            if first in TOP and rest and not re.search(r"[\s<>]|[A-Z]{3}", code):
                file, _, test = code.partition("::")
                if not (any(ROOT.glob(code)) if "*" in code else (ROOT / file).exists()) or (
                    test and f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")
                ):
                    broken.append(f"{path.relative_to(ROOT)}: no {code}")
            elif NAME.match(code) and not exists(code):
                broken.append(f"{path.relative_to(ROOT)}: no {code}")
    assert broken == []


def exists(name: str) -> bool:
    """Whether a dotted name is a module of ours, or something in one."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_every_command_and_option_that_is_shown_exists() -> None:
    shown = [
        (path, path.read_text(encoding="utf-8"))
        for path in documents()
        if path.name != "CHANGELOG.md"
    ]
    shown += [
        (source.path, text)
        for source in sources()
        if source.package in PACKAGES
        for text in strings(source.tree)
    ]
    broken = [
        f"{path.relative_to(ROOT)}: {' '.join(words)}: {found}"
        for path, text in shown
        for words in commands(text)
        if (found := problem_with(words))
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("trivisor campaign plan x --json", None),
        ("trivisor campaign plam x", "no command plam"),
        ("trivisor campaign plan x --jsn", "no option --jsn"),
        ("run campaign report x --quick", "no option --quick"),
        ("run picture", "no job picture"),
    ],
)
def test_a_wrong_command_or_option_is_found(line: str, found: str | None) -> None:
    problem = problem_with(line.split())
    assert problem is None if found is None else problem is not None and found in problem
