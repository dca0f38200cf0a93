"""Compiled modules: which are loaded, and that two builds are equal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guests import compiled
from guests.image.compile import compile_modules
from tests.errors import raises
from tests.project.tree import ROOT

PROBE = """
import guests.compiled, guests.agent.incarnation, guests.services.kv
for name in guests.compiled.MODULES:
    assert sys.modules[name].__spec__.origin.endswith(".so") == guests.compiled.COMPILED, name
print(guests.compiled.COMPILED, guests.compiled.REASON)
"""


def copy_sources(target: Path) -> Path:
    """Copy the package ``guests`` without builds; return it."""
    ignore = shutil.ignore_patterns("_compiled", "__pycache__")
    return shutil.copytree(ROOT / "guests", target / "guests", ignore=ignore)


def probe(package: Path, pure: str | None = None) -> subprocess.CompletedProcess[str]:
    """Import the modules in a process of its own; it prints whether they are compiled."""
    environment = {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    if pure is not None:
        environment["TRIVISOR_PURE"] = pure
    return subprocess.run(
        [sys.executable, "-P", "-c", f"import sys\n{PROBE}"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of ``guests`` with its compiled modules."""
    package = copy_sources(tmp_path_factory.mktemp("compiled"))
    compile_modules(package)
    return package


@pytest.fixture
def changed(package: Path, tmp_path: Path) -> Path:
    """Give a copy of it that a test may change."""
    return shutil.copytree(package, tmp_path / "guests")


@pytest.mark.long
def test_two_builds_of_the_same_sources_give_the_same_bytes(package: Path, tmp_path: Path) -> None:
    other = copy_sources(tmp_path / "a longer name of a directory")
    first = Path(compiled.directory(str(package)))
    second = compile_modules(other)
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
    for path in first.iterdir():
        found = path.read_bytes()
        assert found == (second / path.name).read_bytes(), path.name
        for place in (package.parent, ROOT, Path(sys.prefix)):
            assert os.fsencode(place) not in found, path.name


def test_build_of_the_same_sources_is_kept(package: Path) -> None:
    library = next(Path(compiled.directory(str(package))).glob(f"{compiled.LIBRARY}.*"))
    before = library.stat()
    compile_modules(package)
    assert library.stat() == before


@pytest.mark.parametrize(("pure", "wanted"), [(None, True), ("", True), ("0", True), ("1", False)])
def test_environment_chooses_compiled_modules_or_sources(
    pure: str | None, wanted: bool, package: Path
) -> None:
    done = probe(package, pure)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == str(wanted)
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["protocol/wire.py", "service.py", "agent/new.py"])
def test_build_of_other_sources_is_not_loaded(name: str, changed: Path) -> None:
    with (changed / name).open("a") as file:
        file.write("# one more line\n")
    assert probe(changed).stdout == "False they were made from other sources\n"
    done = probe(changed, "0")
    assert done.returncode == 2
    assert "other sources" in done.stderr and "./run setup" in done.stderr


@pytest.mark.parametrize("damage", ["cut", "text", "flipped", "no-sums", "gone", "other-python"])
def test_library_that_cannot_be_loaded_is_left_for_the_sources(damage: str, changed: Path) -> None:
    library = next(Path(compiled.directory(str(changed))).glob(f"{compiled.LIBRARY}.*"))
    if damage == "cut":
        library.write_bytes(library.read_bytes()[:1000])
    elif damage == "text":
        library.write_text("this is no library\n")
    elif damage == "flipped":
        found = bytearray(library.read_bytes())
        found[len(found) // 2] ^= 1
        library.write_bytes(found)
    elif damage == "no-sums":
        (library.parent / compiled.SUMS).unlink()
    elif damage == "gone":
        library.unlink()
    else:
        library.rename(library.with_name(f"{compiled.LIBRARY}.cpython-399-x86_64-linux-gnu.so"))
    done = probe(changed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False they ")


def test_sources_without_a_build_run_uncompiled(tmp_path: Path) -> None:
    done = probe(copy_sources(tmp_path))
    assert done.stdout == "False there are none\n"


def test_other_values_of_the_switch_are_an_error(package: Path) -> None:
    done = probe(package, "yes")
    assert done.returncode == 2
    assert "TRIVISOR_PURE=yes" in done.stderr and len(done.stderr.splitlines()) == 1


def test_missing_headers_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    package = copy_sources(tmp_path)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho /no/include\necho .cpython-311-x86_64-linux-gnu.so\n")
    python.chmod(0o755)
    with raises("TV0410", match=r"/no/include/Python\.h is missing.*python3-dev"):
        compile_modules(package, str(python))
    assert not (package / "_compiled").exists()


def test_source_that_does_not_compile_is_an_error_and_the_build_stays(changed: Path) -> None:
    (before,) = (changed / "_compiled").iterdir()
    wire = changed / "protocol/wire.py"
    wire.write_text(wire.read_text().replace("MAGIC: Final = b", "MAGIC: Final[int] = b"))
    with raises("TV0413", match=r"guests/protocol/wire\.py:\d+: error"):
        compile_modules(changed)
    assert list((changed / "_compiled").iterdir()) == [before]
