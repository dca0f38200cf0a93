"""The documentation site that `./run docs` builds: complete, without broken links, offline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import click
import msgspec
import msgspec.inspect
import pytest

from docs.diagrams import PICTURES, THEMES, picture, sources
from docs.reference.settings import comments, default_of, kind_of
from tests.project.tree import ROOT, tracked
from trivisor import command
from voter.config import Config
from voter.core import Limits

TOCTREE = re.compile(r"^```\{toctree\}\n(?:.+\n)*\n((?:.+\n)+)```$", re.MULTILINE)


class Page(HTMLParser):
    """The ids of an HTML file, its links, and what a browser loads with it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given["id"]} if "id" in given else set()
        self.links += [given["href"]] if "href" in given else []
        if tag == "link" or "src" in given:
            self.loaded.append(given.get("src", given.get("href", "")))


def every_command(of: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield each visible command of a group, and itself, with the words that call it."""
    yield path, of
    if isinstance(of, click.Group):
        context = click.Context(of)
        for name in of.list_commands(context):
            found = of.get_command(context, name)
            assert found is not None
            if not found.hidden:
                yield from every_command(found, f"{path} {name}")


def test_every_page_is_in_one_table_of_contents() -> None:
    entries = "".join(TOCTREE.findall((ROOT / "docs/index.md").read_text())).split("\n")
    listed = [re.sub(r"^.*<(.+)>$", r"\1", entry) for entry in entries if entry]
    pages = [path for path in tracked() if path.suffix == ".md" and path.name != "index.md"]
    wanted = {page for page in pages if page.parent == ROOT or ROOT / "docs" in page.parents}
    assert sorted((ROOT / "docs" / f"{each}.md").resolve() for each in listed) == sorted(wanted)


def test_site_builds_without_warning_and_is_complete(tmp_path: Path) -> None:
    """One test, because the build takes longer than all the rest."""
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", "."]
    # As a user builds it: compiled modules, which have no sources to read, are there.
    environment = {name: each for name, each in os.environ.items() if name != "TRIVISOR_PURE"}
    done = subprocess.run(
        [*words, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env=environment
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: Page(path) for path in tmp_path.rglob("*.html")}

    broken, loaded = [], []
    for path, page in pages.items():
        for link in page.links:
            target, _, anchor = unquote(re.sub(r"\?[^#]*", "", link)).partition("#")
            file = (path.parent / target).resolve() if target else path
            if re.match(r"[a-z]+:", link):
                continue
            if not file.is_file() or (anchor and anchor not in pages[file].ids):
                broken.append(f"{path.relative_to(tmp_path)}: {link}")
        loaded += [each for each in page.loaded if re.match(r"([a-z]+:)?//", each)]
    assert broken == []
    assert loaded == [], "the site has to work offline"

    files = {Path(each).name for page in pages.values() for each in page.loaded}
    pictures = {picture(text, theme).name for text in sources() for theme in THEMES}
    assert pictures <= files
    assert {path.name for path in PICTURES.glob("*")} == pictures, "./run pictures"

    ids = pages[tmp_path / "docs/reference/commands.html"].ids
    missing = []
    for words_of_it, each in every_command(command, "trivisor"):
        name = words_of_it.replace(" ", "-")
        wanted = {name} | {
            f"cmdoption-{name}-{option.lstrip('-')}"
            for parameter in each.params
            if isinstance(parameter, click.Option) and not parameter.hidden
            for option in parameter.opts
        }
        missing += sorted(wanted - ids)
    assert missing == []

    shown = (tmp_path / "docs/reference/configuration.html").read_text()
    for key in (*Config.__struct_fields__, *Limits.__struct_fields__):
        assert f">{key}</span>" in shown


class Example(msgspec.Struct):
    """Stands for a configuration class."""

    first: str  # what it means
    # and more of it
    size: int = 3 << 20  # in bytes
    flag: str | None = None


def test_settings_are_read_from_the_code() -> None:
    assert comments(Example) == {"first": "what it means and more of it", "size": "in bytes",
                                 "flag": ""}  # fmt: skip
    info = msgspec.inspect.type_info(Example)
    assert isinstance(info, msgspec.inspect.StructType)
    assert [default_of(field) for field in info.fields] == ["required", "`3145728` (3 MiB)", ""]
    assert [kind_of(field.type) for field in info.fields] == ["string", "integer", "string"]


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (msgspec.inspect.IntType(ge=1, le=1 << 20), "integer, at least 1, at most 1,048,576"),
        (msgspec.inspect.FloatType(gt=0), "number, more than 0"),
        (msgspec.inspect.LiteralType(("off", "on")), '"off", "on"'),
    ],
)
def test_type_of_a_setting_is_written_with_its_range(of: msgspec.inspect.Type, words: str) -> None:
    assert kind_of(of) == words
