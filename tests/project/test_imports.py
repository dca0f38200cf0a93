"""Who may import whom, file by file; these rules hold for modules that are yet to come as well.

import-linter checks the same for the modules that exist, and indirect imports too (pyproject.toml).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.project.tree import PACKAGES, Source, sources

__all__: list[str] = []

# A library has one home: the module that wraps it for the rest.
HOMES = {
    "libvirt": {"deploy.machine.hypervisor"},
    "libvirt_qemu": {"deploy.machine.hypervisor"},
    "paramiko": {"deploy.machine.ssh"},
}

# Modules that hold no clock, no chance, no input or output: examples alone can test them.
PURE = {
    "voter.core",
    "guests.protocol.wire",
    "guests.protocol.message",
    "deploy.machine.spec",
    "deploy.machine.domain_xml",
    "faultinject.faults.catalogue",
    "faultinject.plan",
    "faultinject.outcome",
    "faultinject.estimate",
    "faultinject.model",
}
IMPURE = {
    "aiohttp", "asyncio", "click", "concurrent", "h11", "http", "libvirt", "logging",
    "multiprocessing", "os", "paramiko", "prometheus_client", "random", "rich", "secrets",
    "select", "selectors", "shutil", "signal", "socket", "ssl", "structlog", "subprocess",
    "tempfile", "threading", "time", "uuid",
}  # fmt: skip
# What a pure module may take all the same: a seeded generator is a function of its seed.
PURE_MAY = {("faultinject.plan", "random"), ("faultinject.estimate", "random")}

# What no part of the voter imports, and what only its commands do.
NOT_IN_VOTER = {"aiohttp", "libvirt", "libvirt_qemu", "paramiko", "matplotlib"}
ONLY_IN_COMMANDS = {"click", "rich"}

# The one part of guests/ that runs on the host.
HOST_SIDE = "guests.image"


def within(name: str, package: str) -> bool:
    """Whether the module `name` is `package` or inside it."""
    return name == package or name.startswith(f"{package}.")


def top(name: str) -> str:
    """Return the first part of a dotted name."""
    return name.partition(".")[0]


def product() -> Iterator[Source]:
    """Yield each Python file of the product."""
    return (source for source in sources() if top(source.name) in PACKAGES)


def wrong(source: Source, libraries: set[str]) -> list[str]:
    """Return where a file imports one of the libraries, as FILE:LINE NAME."""
    return [
        f"{source.path}:{line} {name}"
        for line, name in source.imports()
        if top(name) in libraries and (source.name, top(name)) not in PURE_MAY
    ]


def test_the_product_is_found() -> None:
    assert {top(source.name) for source in product()} == set(PACKAGES)


def test_imports_point_downwards_only() -> None:
    rank = {package: number for number, package in enumerate(PACKAGES)}
    upwards = [
        f"{source.path}:{line} {name}"
        for source in product()
        for line, name in source.imports()
        if top(name) in rank and rank[top(name)] < rank[top(source.name)]
    ]
    assert upwards == []


def test_the_product_never_imports_the_tests() -> None:
    assert [hit for source in product() for hit in wrong(source, {"tests"})] == []


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library: str) -> None:
    strays = [
        hit
        for source in sources()
        if source.name not in HOMES[library]
        for hit in wrong(source, {library})
    ]
    assert strays == []


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_stay_pure(module: str) -> None:
    mine = [source for source in product() if within(source.name, module)]
    assert [hit for source in mine for hit in wrong(source, IMPURE)] == []


def test_guests_import_the_standard_library_only() -> None:
    allowed = set(sys.stdlib_module_names) | {"guests"}
    strays = [
        f"{source.path}:{line} {name}"
        for source in product()
        if within(source.name, "guests") and not within(source.name, HOST_SIDE)
        for line, name in source.imports()
        if top(name) not in allowed or within(name, HOST_SIDE)
    ]
    assert strays == []


def test_the_voter_holds_only_what_voting_needs() -> None:
    voter = [source for source in product() if within(source.name, "voter")]
    assert [hit for source in voter for hit in wrong(source, NOT_IN_VOTER)] == []
    shell = [source for source in voter if not within(source.name, "voter.commands")]
    assert [hit for source in shell for hit in wrong(source, ONLY_IN_COMMANDS)] == []
