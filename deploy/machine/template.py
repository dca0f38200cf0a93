"""Templates: closed disks with the clean snapshot of a freshly booted guest.

A guest is cloned by a copy of a template, from which it starts as it would from its own snapshot.
The template is made before the guest has received anything.  A clone inherits what is wrong in it,
so its digest is checked at each use.  All clones also have the clock and the random numbers of the
guest that was booted: the service depends on neither (`guests.context`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from deploy.errors import DeployError, HypervisorFailed
from deploy.machine.hypervisor import Domain
from deploy.machine.spec import GuestSpec

__all__ = ["PATTERN", "TemplateDamaged", "Templates", "keep_template", "template_name"]

PATTERN = "template-*.qcow2"
"""The templates' files in a node's directory."""

_PIECE = 1 << 20
"""Bytes that are read and digested at a time."""

_OWN = ("name", "domain", "uuid", "disk", "link_socket", "console_socket", "nice")
"""What is different in each guest, and unknown to the machine inside."""


class TemplateDamaged(DeployError):
    """A template does not have its digest any more."""

    error_code = "TV0151"


def template_name(guest: GuestSpec) -> str:
    """Return the file's name of the template that fits a guest: it depends on machine and image."""
    facts = {key: each for key, each in msgspec.to_builtins(guest).items() if key not in _OWN}
    facts["ssh_port"] = guest.ssh_port is not None
    text = msgspec.json.encode(facts, order="deterministic")
    return f"template-{hashlib.sha256(text).hexdigest()[:16]}.qcow2"


async def keep_template(domain: Domain, disk: Path, template: Path) -> str:
    """Copy a running guest's disk, which holds its clean snapshot; return the copy's SHA-256.

    The guest is paused meanwhile: QEMU then writes to the disk what it has kept in memory.  Raises
    OSError, HypervisorFailed; the guest runs again, and there is no copy.
    """
    await domain.suspend()
    try:
        digest = await asyncio.to_thread(_copy, disk, template)
    finally:
        await domain.resume()
    await _check(template)
    return digest


class Making:
    """A template that is being made at `path`; None: nobody wants one.  `digest`: "" until then."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.digest = ""


class Templates:
    """The templates in a node's directory."""

    def __init__(self, directory: Path, digests: Mapping[str, str]) -> None:
        self._directory = directory
        self._making: set[str] = set()
        self.digests = dict(digests)
        """The SHA-256 of each, by the name of its file."""

    @contextlib.contextmanager
    def make(self, guest: GuestSpec, *, wanted: bool) -> Iterator[Making]:
        """Make the template of such guests, unless there is one or another guest makes it."""
        name = template_name(guest)
        if not wanted or name in self.digests or name in self._making:
            yield Making(None)
            return
        self._making.add(name)
        making = Making(self._directory / name)
        try:
            yield making
        finally:
            self._making.discard(name)
            if making.digest:
                self.digests[name] = making.digest

    async def clone(self, guest: GuestSpec) -> bool:
        """Copy the template to the guest's disk; return False if there is none.

        Raises TemplateDamaged or OSError; the template is removed, and there is no disk.
        """
        name = template_name(guest)
        if name not in self.digests:
            return False
        template, disk = self._directory / name, Path(guest.disk)
        try:
            found = await asyncio.to_thread(_copy, template, disk)
            if found != self.digests[name]:
                raise TemplateDamaged(
                    f"the template {template} has SHA-256 {found[:16]}, not "
                    f"{self.digests[name][:16]}",
                    remedy="check the host's disk and memory; the next boot makes a new template",
                )
        except (TemplateDamaged, OSError):
            for path in (template, disk):
                path.unlink(missing_ok=True)
            del self.digests[name]
            raise
        return True


def _copy(source: Path, target: Path) -> str:
    """Copy a file that only its owner may read; return the SHA-256 of what was written."""
    target.unlink(missing_ok=True)
    digest = hashlib.sha256()
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with source.open("rb") as reader, os.fdopen(fd, "wb", buffering=0) as writer:
            while piece := reader.read(_PIECE):
                digest.update(piece)
                writer.write(piece)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


async def _check(template: Path) -> None:
    """Raise HypervisorFailed unless the copy is a whole disk; it is removed then."""
    process = await asyncio.create_subprocess_exec(
        "qemu-img", "check", "-q", "-f", "qcow2", str(template),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    if process.returncode != 0:
        template.unlink(missing_ok=True)
        raise HypervisorFailed(
            f"the copy {template} is not whole: {output.decode(errors='replace').strip()}"
        )
