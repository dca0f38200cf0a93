"""The host's apt sources for Debian 12, and no others: what the image is built from.

A host may also have other vendors' sources.  A guest must not hold their packages, and a vendor's
outage must not break the build.  The host's configuration names the mirrors; nothing here does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from guests.image.host import ImageError

__all__ = ["RELEASE", "debian_sources"]

RELEASE = "bookworm"
"""The Debian release (12) of the guests."""

_OTHER_RELEASE = re.compile(r"(bullseye|trixie|forky|sid|stable|testing)(-updates|-security)?")
_SUITES = (RELEASE, f"{RELEASE}-updates", f"{RELEASE}-security")
_ONE_LINE = re.compile(
    r"^deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)$"
)
_OPTION_NAMES = {"arch": "architectures", "lang": "languages", "target": "targets"}


def debian_sources(apt: Path = Path("/etc/apt")) -> str:
    """Return the host's entries for Debian 12's ``main``, as one deb822 text for mmdebstrap.

    A host with another Debian release only: its mirrors have Debian 12 too.  Raises ImageError if
    the host has no source of Debian.
    """
    stanzas: list[dict[str, str]] = []
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".list":
            stanzas += _read_one_line(text)
        elif path.suffix == ".sources":
            stanzas += _read_deb822(text)
    kept = [stanza for stanza in map(_only_debian, stanzas) if stanza is not None]
    kept = kept or [stanza for stanza in map(_other_release, stanzas) if stanza is not None]
    if not kept:
        raise ImageError(
            f"no apt source for Debian 12 ({RELEASE}, main) is configured under {apt}",
            remedy="on Debian, add one in sources.list.d/debian.sources; elsewhere, build the "
            "image on Debian, and copy ~/.cache/trivisor/images",
            error_code="TV0412",
        )
    return "\n".join(map(_write, kept))


def _read_one_line(text: str) -> list[dict[str, str]]:
    stanzas = []
    for line in text.splitlines():
        match = _ONE_LINE.match(line.split("#", 1)[0].strip())
        if match is None:
            continue
        stanza = {
            "types": "deb",
            "uris": match["uri"],
            "suites": match["suite"],
            "components": match["components"],
        }
        for option in (match["options"] or "").split():
            name, _, value = option.partition("=")
            stanza[_OPTION_NAMES.get(name.lower(), name.lower())] = value.replace(",", " ")
        stanzas.append(stanza)
    return stanzas


def _read_deb822(text: str) -> list[dict[str, str]]:
    stanzas: list[dict[str, str]] = []
    stanza: dict[str, str] = {}
    last = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if stanza:
                stanzas.append(stanza)
            stanza, last = {}, ""
        elif line[0].isspace() and last:
            stanza[last] += "\n" + line
        elif ":" in line:
            name, _, value = line.partition(":")
            last = name.strip().lower()
            stanza[last] = value.strip()
    return stanzas


def _only_debian(stanza: Mapping[str, str]) -> dict[str, str] | None:
    """Return the part of a stanza that is Debian's own, or None.

    Vendors use Debian's suite names too, so the path or the key must also be Debian's.
    """
    if (
        stanza.get("enabled", "yes").lower() in ("no", "false")
        or "deb" not in stanza.get("types", "").split()
    ):
        return None
    key = stanza.get("signed-by", "")
    if key and "\n" not in key and "debian-archive" not in key:
        return None
    uris = [
        uri
        for uri in stanza.get("uris", "").split()
        if "debian-archive" in key or _looks_debian(uri)
    ]
    suites = [suite for suite in stanza.get("suites", "").split() if suite in _SUITES]
    if not uris or not suites or "main" not in stanza.get("components", "").split():
        return None
    return {
        **stanza,
        "types": "deb",
        "uris": " ".join(uris),
        "suites": " ".join(suites),
        "components": "main",
    }


def _other_release(stanza: Mapping[str, str]) -> dict[str, str] | None:
    """Return an entry of another Debian release as one of Debian 12, or None."""
    matches = map(_OTHER_RELEASE.fullmatch, stanza.get("suites", "").split())
    suites = [f"{RELEASE}{match[2] or ''}" for match in matches if match]
    return _only_debian({**stanza, "suites": " ".join(suites)})


def _looks_debian(uri: str) -> bool:
    path = PurePosixPath(urlsplit(uri).path)
    return any(part.startswith("debian") for part in path.parts)


def _write(stanza: Mapping[str, str]) -> str:
    return "".join(f"{name.title()}: {value}\n" for name, value in stanza.items())
