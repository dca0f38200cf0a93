"""This host's pip settings, in a form that another root directory can use.

pip reads its settings from several files and from the environment. Some of them name files and
folders of this host: constraints, certificates, package indexes. ``find_host_pip`` returns the
settings as environment variables, with the paths that the other root has to hold. A setting that
names a missing file is left out: pip would stop at it.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

__all__ = ["HostPip", "find_host_pip", "local_path", "named_in", "parse_listing", "resolve"]

# pip's sections, weakest first: a command's section overrides [global], and PIP_* overrides both.
SECTIONS = ("global", "install", ":env:")

# Options whose values name files or folders. pip splits the repeatable ones at white space.
REQUIREMENTS = {"constraint", "build-constraint", "requirement"}  # repeatable
CERTIFICATES = {"cert", "client-cert"}  # one path, which may hold spaces
INDEX = {"index-url", "pypi-url"}  # one place
PLACES = {"extra-index-url", "find-links"}  # repeatable

# find_host_pip merges what this file says into the settings. In the root it would name nothing.
CONFIG_FILE = "config-file"

# What a requirements or constraints file names: further such files, places, and direct references.
NESTED = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[\s=]*(\S+)", re.MULTILINE)
NESTED_PLACE = re.compile(
    r"^\s*(?:-f|--find-links|-i|--index-url|--extra-index-url)[\s=]*(\S+)", re.MULTILINE
)
DIRECT = re.compile(r"^[^#\n]*?@\s*(file:\S+)", re.MULTILINE)

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class HostPip:
    """pip's settings as environment variables, and the host's paths that they name.

    ``copied``: files (and folders of certificates) to copy to the same path. ``shown``: folders of
    packages to mount read-only at the same path, because they may be large.
    """

    environment: Mapping[str, str]
    copied: tuple[Path, ...] = ()
    shown: tuple[Path, ...] = ()


def find_host_pip(environment: Mapping[str, str] | None = None) -> HostPip:
    """Ask pip for its settings, and return them with the paths that they name."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return resolve(parse_listing(listed), Path.cwd())


def parse_listing(listed: str) -> dict[str, str]:
    """Return the value of each option in the output of ``pip config list``.

    Where several sections set an option, the strongest one counts, as it does for `pip install`.
    """
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in found:
            text = str(ast.literal_eval(value)).strip()
            if text:  # pip ignores an empty value
                found[section][option.lower().replace("_", "-")] = text
    return {option: text for section in SECTIONS for option, text in found[section].items()}


def resolve(settings: Mapping[str, str], base: Path) -> HostPip:
    """Find the paths that settings name; ``base`` is where relative ones start."""
    environment: dict[str, str] = {}
    copied: list[Path] = []
    shown: list[Path] = []
    for option, text in settings.items():
        if option == CONFIG_FILE:
            continue
        words = text.split() if option in REQUIREMENTS | PLACES else [text]
        kept = []
        for word in words:
            path = local_path(word, base) if _names_files(option) else None
            if path is None:
                kept.append(word)
            elif path.exists():
                kept.append(word if word.startswith("file:") else str(path))
                files, folders = _needed(option, path)
                copied += files
                shown += folders
            elif option in INDEX:
                # Without its own index pip would use PyPI. It ignores one that is not there.
                kept.append(word)
        if kept:
            environment[f"PIP_{option.replace('-', '_').upper()}"] = " ".join(kept)
    return HostPip(
        environment=environment,
        copied=tuple(dict.fromkeys(copied)),
        shown=tuple(dict.fromkeys(shown)),
    )


def local_path(word: str, base: Path) -> Path | None:
    """Return the absolute path that a setting's word names here; None if it names another host."""
    if word.startswith("file:"):
        url = urlsplit(word)
        if url.netloc not in ("", "localhost"):
            return None
        return Path(os.path.abspath(url2pathname(url.path)))
    if SCHEME.match(word):
        return None
    return Path(os.path.abspath(base / Path(word).expanduser()))


def named_in(requirements: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Return requirements files with all files that they name, and the folders that they name."""
    waiting, files, folders = list(requirements), [], []
    while waiting:
        path = waiting.pop(0)
        if path in files or not path.is_file():
            continue
        files.append(path)
        text = path.read_text(errors="replace")
        waiting += _named_paths(NESTED, text, path.parent)
        for place in _named_paths(NESTED_PLACE, text, path.parent):
            if place.is_dir():
                folders.append(_whole_index(place))
            else:
                waiting.append(place)
        waiting += _named_paths(DIRECT, text, path.parent)
    return files, folders


def _names_files(option: str) -> bool:
    return option in REQUIREMENTS | CERTIFICATES | INDEX | PLACES


def _needed(option: str, path: Path) -> tuple[list[Path], list[Path]]:
    """Return what to copy and what to show so that pip can use a path that is there."""
    if option in REQUIREMENTS:
        return named_in([path])
    if option in CERTIFICATES or not path.is_dir():
        return [path], []
    return [], [_whole_index(path)]


def _whole_index(folder: Path) -> Path:
    """Return the folder that holds all of an index.

    The pages of an index may link to files beside it (../../files/...).
    """
    return folder.parent if folder.name == "simple" and folder.parent != Path("/") else folder


def _named_paths(pattern: re.Pattern[str], text: str, base: Path) -> Iterator[Path]:
    for found in pattern.finditer(text):
        path = local_path(found[1], base)
        if path is not None:
            yield path
