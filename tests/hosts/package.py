"""The Debian package, for tests: built by the project's script, and variants of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.project.tree import ROOT

__all__ = ["build_package", "package_field", "raise_version"]

SECONDS = 900
"""Seconds for a build: 30 on a quiet machine."""


def build_package(checkout: Path, out: Path, *, before: tuple[str, ...] = ()) -> Path:
    """Build wheel and package of a checkout into `out`; return the package's path.

    ``before``: words before the command.  Raises AssertionError with the output if it fails.
    """
    epoch = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    settings = [f"TRIVISOR_BUILD_PYTHON={sys.executable}", f"SOURCE_DATE_EPOCH={epoch or 1}"]
    done = subprocess.run(
        [*before, "env", *settings, checkout / "deploy/package/build", out],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (package,) = out.glob("*.deb")
    return package


def package_field(package: Path, name: str) -> str:
    """Return a field of a package's control file."""
    command = ["dpkg-deb", "--field", str(package), name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def raise_version(package: Path, version: str, work: Path) -> Path:
    """Return the same package with another version; ``work`` is a directory that is made."""
    subprocess.run(["dpkg-deb", "--raw-extract", package, work], check=True)
    control = work / "DEBIAN/control"
    old = package_field(package, "Version")
    control.write_text(control.read_text().replace(f"Version: {old}\n", f"Version: {version}\n"))
    changed = work.parent / f"trivisor_{version}_amd64.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build"]
    subprocess.run([*command, str(work), str(changed)], check=True, stdout=subprocess.DEVNULL)
    return changed
