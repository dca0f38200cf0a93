"""This host's pip settings, in a form that another root directory can use.

pip reads its settings from several files and from the environment.  Some settings name files and
directories of this host: constraints, certificates, package indexes.  ``find_host_pip`` returns the
settings as environment variables, with the paths that the other root must contain.  A setting that
names a missing file is omitted, because pip would stop at it.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

__all__ = ["HostPip", "find_host_pip", "local_path", "parse_listing", "resolve"]

# pip's sections, weakest first: a command's section overrides [global], and PIP_* overrides both.
SECTIONS = ("global", "install", ":env:")

# Options whose values name files or directories.  pip splits the repeatable ones at white space.
REQUIREMENTS = {"constraint", "build-constraint", "requirement"}
INDEX = {"index-url", "pypi-url"}
REPEATABLE = REQUIREMENTS | {"extra-index-url", "find-links"}
NAMES_PATHS = REPEATABLE | INDEX | {"cert", "client-cert"}

# What a requirements or constraints file names: further files, indexes and direct references.
NAMED = re.compile(
    r"^[ \t]*(?:-r|-c|-f|-i|--(?:requirement|constraint|find-links|index-url|extra-index-url))"
    r"[ \t=]*(\S+)|^[^#\n]*?@[ \t]*(file:\S+)",
    re.MULTILINE,
)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class HostPip(NamedTuple):
    """pip's settings as environment variables, and the host's paths that they name.

    ``copied`` are files to copy to the same path.  ``shown`` are directories of packages to mount
    read-only at the same path, because they may be large.
    """

    environment: Mapping[str, str]
    copied: tuple[Path, ...] = ()
    shown: tuple[Path, ...] = ()


def find_host_pip(environment: Mapping[str, str] | None = None) -> HostPip:
    """Return pip's settings with the paths that they name."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return resolve(parse_listing(listing), Path.cwd())


def parse_listing(listing: str) -> dict[str, str]:
    """Return each option's value, of the strongest section, in ``pip config list``'s output."""
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        text = str(ast.literal_eval(value)).strip() if section in found else ""
        if text:  # pip ignores an empty value
            found[section][option.lower().replace("_", "-")] = text
    return {option: text for section in SECTIONS for option, text in found[section].items()}


def resolve(settings: Mapping[str, str], base: Path) -> HostPip:
    """Return settings with the paths that they name; relative ones start at ``base``."""
    environment: dict[str, str] = {}
    paths: list[Path] = []
    for option, text in settings.items():
        if option == "config-file":  # its settings are among these
            continue
        kept = []
        for word in text.split() if option in REPEATABLE else [text]:
            path = local_path(word, base) if option in NAMES_PATHS else None
            if path is None or (option in INDEX and not path.exists()):
                kept.append(word)  # a missing index is ignored; without one pip would use PyPI
            elif path.exists():
                kept.append(word if word.startswith("file:") else str(path))
                paths += _with_named([path]) if option in REQUIREMENTS else [path]
        if kept:
            environment[f"PIP_{option.replace('-', '_').upper()}"] = " ".join(kept)
    copied = dict.fromkeys(path for path in paths if path.is_file())
    shown = dict.fromkeys(_whole_index(path) for path in paths if path.is_dir())
    return HostPip(environment, tuple(copied), tuple(shown))


def local_path(word: str, base: Path) -> Path | None:
    """Return the absolute path that a setting's word names; None if it names another host."""
    if word.startswith("file:"):
        url = urlsplit(word)
        if url.netloc not in ("", "localhost"):
            return None
        return Path(os.path.abspath(url2pathname(url.path)))
    if SCHEME.match(word):
        return None
    return Path(os.path.abspath(base / Path(word).expanduser()))


def _with_named(paths: list[Path]) -> list[Path]:
    """Return requirements files with all paths that they name."""
    waiting, found = list(paths), []
    while waiting:
        path = waiting.pop(0)
        if path in found or not path.exists():
            continue
        found.append(path)
        if path.is_file():
            for match in NAMED.finditer(path.read_text(errors="replace")):
                named = local_path(match[1] or match[2], path.parent)
                waiting += [] if named is None else [named]
    return found


def _whole_index(directory: Path) -> Path:
    """Return the directory of a whole index: its pages may link to files in ../../files."""
    nested = directory.name == "simple" and directory.parent != Path("/")
    return directory.parent if nested else directory
