"""Campaign files: strict TOML, read and checked before anything runs.

Every problem is reported with its line and how to fix it: an unknown key, an unknown fault, a
probability outside [0, 1], an impossible stratum.  ``specs/`` holds the shipped files.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from deploy.strict_toml import SpecError, read_strict, suggest
from faultinject.campaign.planning.spec import Spec, is_file
from faultinject.campaign.planning.spec_checks import check

__all__ = ["load", "parse", "shipped"]


def parse(text: str, name: str = "campaign") -> Spec:
    """Return a campaign from the text of its file.  Raises SpecError with all problems.

    ``name``: the file's path.  A service file is searched for in its directory.
    """
    spec, problems = read_strict(text, name, Spec)
    if is_file(given := spec.station.service):
        if not Path(given).is_absolute() and given != Path(given).name:
            problems.add(f"service {given!r}: copy the file next to the campaign file, and give "
                         "its name alone, or give an absolute path", table="station",
                         key="service")  # fmt: skip
        service = str(Path(name).resolve().parent / given)
        spec = structs.replace(spec, station=structs.replace(spec.station, service=service))
    check(spec, problems)
    return spec


def shipped() -> dict[str, Path]:
    """Return the shipped campaign files by name."""
    folder = Path(__file__).with_name("specs")
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(path: Path | str) -> tuple[Spec, str]:
    """Return a campaign file, or a shipped one by its name, with its text.  Raises SpecError."""
    place, known = Path(path), shipped()
    if not place.exists() and place.parent == Path() and place.stem in known:
        place = known[place.stem]
    try:
        text = place.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        remedy = suggest(place.stem, known)
        raise SpecError(
            f"{path}: no such file, and no shipped campaign: {remedy}", error_code="TV0521"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}", error_code="TV0521") from error
    return parse(text, str(path)), text
