"""deploy/package/build: the wheel and the Debian package."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.node.records import cache_directory
from tests.hosts.package import build_package, package_field
from tests.project.tree import ROOT, tracked

pytestmark = pytest.mark.vm

# Without capabilities, as another user has none: no file of another user can be read or changed.
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


@pytest.mark.long
def test_builds_are_reproducible_without_privileges_and_in_another_directory(
    debian_package: Path, scratch: Path
) -> None:
    copy = scratch / "copy"
    for path in tracked():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o700 if path.stat().st_mode & 0o100 else 0o600)
    again = build_package(
        copy, scratch / "out", before=(*UNPRIVILEGED, "env", "TZ=Asia/Tokyo", f"HOME={scratch}",
                                       f"TRIVISOR_CACHE={cache_directory()}"),
    )  # fmt: skip
    assert again.read_bytes() == debian_package.read_bytes()
    wheel, other = (next(deb.parent.glob("*.whl")) for deb in (debian_package, again))
    assert wheel.read_bytes() == other.read_bytes()


def test_package_passes_lintian_and_names_what_it_needs(debian_package: Path) -> None:
    done = subprocess.run(
        ["lintian", "--fail-on", "error", "--no-tag-display-limit", debian_package],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    needed = package_field(debian_package, "Depends")
    assert "python3 (>= 3.11), python3 (<< 3.12)" in needed
    assert "python3-libvirt" in needed


def test_package_contains_the_locked_libraries_with_bytecode_and_no_binding(
    debian_package: Path, scratch: Path
) -> None:
    subprocess.run(["dpkg-deb", "-x", debian_package, scratch], check=True)
    site = scratch / "usr/lib/trivisor/lib/python3.11/site-packages"
    for path in site.rglob("*.py"):
        compiled = path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc"
        assert compiled.exists(), path
    assert not list(site.glob("libvirt*"))
    for page, heading in (("man1/trivisor.1.gz", b'.TH "TRIVISOR" "1"'),
                          ("man5/trivisor-voter.5.gz", b'.TH "TRIVISOR-VOTER" "5"')):  # fmt: skip
        assert heading in gzip.decompress((scratch / "usr/share/man" / page).read_bytes())
    ours = {path.relative_to(ROOT) for path in tracked() if path.suffix == ".py"}
    packaged = {path.relative_to(site) for path in site.rglob("*.py")}
    top = {"deploy", "faultinject", "guests", "voter", "trivisor.py"}
    assert {path for path in ours if path.parts[0] in top} <= packaged
    (image,) = (scratch / "usr/share/trivisor/images").iterdir()
    assert {path.name for path in image.iterdir()} == {
        "vmlinux", "initrd", "access", "manifest.json",
    }  # fmt: skip
    names = subprocess.run(
        ["grep", "-rlF", "--binary-files=text", str(ROOT), scratch], capture_output=True, text=True
    )
    assert names.stdout == "", "a path of the build machine is in the package"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TRIVISOR_BUILD_PYTHON": "/no/python"}, "./run package sets up .venv"),
        ({"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "",
          "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}, "pip cannot install locks/run.txt"),
    ],
)  # fmt: skip
def test_build_names_what_is_missing_and_leaves_nothing(
    change: dict[str, str], message: str, scratch: Path
) -> None:
    environment = os.environ | {"TRIVISOR_BUILD_PYTHON": sys.executable, "TMPDIR": str(scratch)}
    out = scratch / "out"
    done = subprocess.run(
        [ROOT / "deploy/package/build", out],
        env=environment | change, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert message in done.stderr
    assert not out.exists() or not list(out.iterdir())
    assert {path.name for path in scratch.iterdir()} <= {"out"}
