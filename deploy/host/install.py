"""Commands that install missing requirements: with the distribution's package manager, or pip.

A requirement has the name of the program that is missing, or one of ``DRIVER``, ``BINDING`` and
``COMPILER``.  Where the package's name in a distribution is not known, the text names the program.
"""

from __future__ import annotations

import importlib
import os
import platform
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from deploy.errors import CannotRunHere

__all__ = [
    "BINDING", "COMPILER", "DRIVER", "Distribution", "as_root", "how_to_bind", "how_to_install",
    "how_to_pip", "read_distribution", "require_libraries", "runs_systems_python",
]  # fmt: skip

DRIVER, BINDING, COMPILER = "libvirt's QEMU driver", "libvirt's Python binding", "a C compiler"
SYSTEM_PYTHON = Path("/usr/bin/python3")
DEBIAN_MODULES = Path("/usr/lib/python3/dist-packages")
PACKAGED = Path("/usr/lib/trivisor")
"""The virtual environment of Trivisor's own Debian package."""


class _Family(NamedTuple):
    """Distributions with one package manager.  ``packages``: by requirement, space-separated."""

    command: str
    packages: Mapping[str, str]


_FAMILIES = {
    "debian": _Family(
        "apt-get install --no-install-recommends",
        {
            "qemu-system-x86_64": "qemu-system-x86",
            "qemu-img": "qemu-utils",
            "mmdebstrap": "mmdebstrap",
            "apt-config": "apt",
            "newuidmap": "uidmap",
            "newgidmap": "uidmap",
            DRIVER: "libvirt-daemon-driver-qemu",
            BINDING: "python3-libvirt",
            COMPILER: "libvirt-dev pkg-config gcc libc6-dev",
        },
    ),
    "fedora": _Family(
        "dnf install",
        {
            "qemu-system-x86_64": "qemu-system-x86-core",
            "qemu-img": "qemu-img",
            "newuidmap": "shadow-utils",
            "newgidmap": "shadow-utils",
            DRIVER: "libvirt-daemon-driver-qemu",
            BINDING: "python3-libvirt",
            COMPILER: "libvirt-devel pkgconf-pkg-config gcc",
        },
    ),
    "arch": _Family(
        "pacman -S",
        {
            "qemu-system-x86_64": "qemu-system-x86",
            "qemu-img": "qemu-img",
            "newuidmap": "shadow",
            "newgidmap": "shadow",
            DRIVER: "libvirt",
            BINDING: "libvirt-python",
            COMPILER: "libvirt pkgconf gcc",
        },
    ),
    "suse": _Family(
        "zypper install",
        {
            "qemu-system-x86_64": "qemu-x86",
            "qemu-img": "qemu-img",
            "newuidmap": "shadow",
            "newgidmap": "shadow",
            DRIVER: "libvirt-daemon-qemu",
            COMPILER: "libvirt-devel pkg-config gcc",
        },
    ),
    "alpine": _Family(
        "apk add",
        {
            "qemu-system-x86_64": "qemu-system-x86_64",
            "qemu-img": "qemu-img",
            DRIVER: "libvirt-qemu",
            BINDING: "py3-libvirt",
            COMPILER: "libvirt-dev pkgconf gcc musl-dev",
        },
    ),
}


class Distribution(NamedTuple):
    """A distribution's own name, and the family whose package manager it has ("": not known)."""

    name: str
    family: str


def read_distribution() -> Distribution:
    """Return this host's distribution, by ID and ID_LIKE of os-release."""
    try:
        facts = platform.freedesktop_os_release()
    except OSError:
        return Distribution("an unknown distribution", "")
    for word in (facts["ID"], *facts.get("ID_LIKE", "").split()):
        family = next((name for name in _FAMILIES if word == name), "")
        if word.startswith("opensuse") or word == "sles":
            family = "suse"
        if family:
            break
    else:
        family = ""
    return Distribution(facts["PRETTY_NAME"], family)


def as_root(command: str) -> str:
    """Return a shell command that needs root, as this user types it."""
    if os.geteuid() == 0:
        return command
    if shutil.which("sudo") is None:
        return f"as root: {command}"
    return " && ".join(f"sudo {part}" for part in command.split(" && "))


def how_to_install(*requirements: str) -> str:
    """Return the command that installs these requirements, or a text that names them."""
    distribution = read_distribution()
    family = _FAMILIES.get(distribution.family)
    known = {} if family is None else family.packages
    parts = []
    packages = dict.fromkeys(
        package for name in requirements for package in known.get(name, "").split()
    )
    if family is not None and packages:
        parts.append(as_root(f"{family.command} {' '.join(packages)}"))
    others = [name for name in requirements if name not in known]
    if others:
        parts.append(f"install {', '.join(others)} (the package's name in {distribution.name} "
                     "is not known here)")  # fmt: skip
    return "; ".join(parts)


def how_to_pip(*libraries: str) -> str:
    """Return the command that installs Python libraries for the Python that runs this."""
    if Path(sys.prefix) == PACKAGED:
        return (
            "the Debian package has what a node needs, and no more: install Trivisor's wheel in a "
            "virtual environment of your own"
        )
    return shlex.join([sys.executable, "-m", "pip", "install", *libraries])


def require_libraries(*names: str, purpose: str) -> None:
    """Raise CannotRunHere if one of these modules cannot be imported; call it before long work."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise CannotRunHere(
                f"{purpose} need {name}", remedy=how_to_pip(name), error_code="TV0722"
            ) from error


def runs_systems_python() -> bool:
    """Return whether the distribution's own Python runs this, perhaps in a virtual environment."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return SYSTEM_PYTHON.exists() and Path(base).resolve() == SYSTEM_PYTHON.resolve()


def how_to_bind() -> str:
    """Return the commands that make libvirt's Python binding importable here, with its driver.

    The system's Python can use the distribution's binding.  A virtual environment gets links to
    that alone.  For another Python pip compiles it.
    """
    if not runs_systems_python() or read_distribution().family == "suse":
        return f"{how_to_install(COMPILER, DRIVER)} && {how_to_pip('libvirt-python')}"
    install = how_to_install(BINDING, DRIVER)
    if sys.prefix == sys.base_prefix or read_distribution().family != "debian":
        return install
    links = f"ln -sf {DEBIAN_MODULES}/libvirt* {shlex.quote(sysconfig.get_path('platlib'))}"
    return f"{install} && {links}"
