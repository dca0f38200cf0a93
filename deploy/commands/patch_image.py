"""The image of a patch: built beside the node's own, from the same options but for what changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import msgspec

from deploy.commands.launch import identify_service, overlay_of
from deploy.errors import DeployError
from deploy.host.install import how_to_install
from deploy.machine.spec import Progress
from deploy.node.records import Layout, NodeRecord, cache_directory
from deploy.patching.record import PatchImage
from guests.check import ServiceFacts, describe
from guests.image import (
    Additions,
    Image,
    ImageError,
    ProgramMissing,
    add_overlay,
    build_image,
    fetch_additions,
    verify,
)
from guests.image.manifest import combined_hash, read_manifest
from guests.image.overlay import SERVICE_FILE
from guests.service import ServiceError
from voter.commands.terminal import CommandError, ExitCode

__all__ = ["PatchedImage", "build_patched_image", "take_image"]


class PatchedImage(NamedTuple):
    """The image of a patch, a title for it, and what its service says of itself, if known."""

    image: PatchImage
    title: str
    facts: ServiceFacts | None


def build_patched_image(
    layout: Layout,
    record: NodeRecord,
    *,
    service: str | None,
    packages: tuple[str, ...],
    progress: Progress,
) -> PatchedImage:
    """Build an image with another service, with further packages, or both.

    Raises CommandError with file and line for a service that cannot be loaded, DeployError if the
    image cannot be built.
    """
    settings = record.settings
    if service is not None:
        settings = msgspec.structs.replace(settings, service=service)
    elif identify_service(settings) != record.service:
        raise CommandError(
            f"{settings.service} has changed since the node started: it is not what the guests run",
            remedy=f"add --service {settings.service} to patch it too, or restore the file",
            code=ExitCode.USAGE,
            error_code="TV0769",
        )
    every = tuple(dict.fromkeys((*record.packages, *packages)))
    facts = _check(settings.service, progress, with_packages=bool(every))
    try:
        base = build_image(cache_directory() / "images", progress=progress)
        additions: Additions | None = None
        if every:
            files = read_manifest(base.manifest).files
            additions = fetch_additions(every, files, progress=progress)
        target = layout.patched_images / "new"
        target.parent.mkdir(mode=0o755, exist_ok=True)
        image = _settle(layout, add_overlay(base, target, overlay_of(settings, additions)))
    except ImageError as error:
        raise _failed(error) from error
    named = [f"service {settings.service}"] if service is not None else []
    named += [f"package {package}" for package in packages]
    patched = _describe(image, settings.service, identify_service(settings), every)
    return PatchedImage(patched, ", ".join(named), facts)


def take_image(layout: Layout, record: NodeRecord, path: Path) -> PatchedImage:
    """Copy an image that was built elsewhere.  Raises CommandError, DeployError."""
    try:
        manifest = read_manifest(path / "manifest.json")
        given = Image(
            kernel=path / "vmlinux",
            initrd=path / "initrd",
            sha256=combined_hash(manifest.kernel, manifest.initrd),
            manifest=path / "manifest.json",
        )
        verify(given)
        target = layout.patched_images / "new"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(mode=0o755, parents=True)
        for name in ("vmlinux", "initrd", "manifest.json"):
            shutil.copyfile(path / name, target / name)
    except ImageError as error:
        raise CommandError(
            f"--image: {error}",
            remedy="give a directory with vmlinux, initrd and manifest.json, as `trivisor up` "
            "writes it to DIR/image",
            code=ExitCode.USAGE,
            error_code="TV0769",
        ) from error
    image = _settle(layout, msgspec.structs.replace(given, kernel=target / "vmlinux"))
    identity = record.service
    source = manifest.files.get(SERVICE_FILE)
    if source is not None:
        _, separator, function = record.service.partition(" function:")
        identity = f"sha256:{source}{separator}{function}"
    patched = _describe(image, record.settings.service, identity, ())
    return PatchedImage(patched, f"image {path}", None)


def _check(service: str, progress: Progress, *, with_packages: bool) -> ServiceFacts | None:
    """Load the service in a process; return what it says of itself.

    With further packages the host may lack what it imports: then only its syntax is checked.
    """
    if service.endswith(".py"):
        try:
            compile(Path(service).read_bytes(), service, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            where = f"{service}, line {line}" if line else service
            raise CommandError(
                f"{where}: {getattr(error, 'msg', error)}",
                remedy="correct the file; nothing was started",
                code=ExitCode.USAGE,
                error_code="TV0402",
            ) from error
    try:
        return describe(service)
    except ServiceError as error:
        if with_packages:
            progress(f"not checked here, as packages are added: {error}")
            return None
        raise CommandError(
            str(error),
            remedy="correct the file; nothing was started",
            code=ExitCode.USAGE,
            error_code="TV0402",
        ) from error


def _settle(layout: Layout, image: Image) -> Image:
    """Give a new image its directory, named by its hash.  Raises OSError."""
    made = image.kernel.parent
    target = layout.patched_images / image.sha256[:16]
    if target.exists():
        shutil.rmtree(made)
    else:
        made.rename(target)
    return msgspec.structs.replace(
        image,
        kernel=target / "vmlinux",
        initrd=target / "initrd",
        manifest=target / "manifest.json",
    )


def _describe(image: Image, service: str, identity: str, packages: tuple[str, ...]) -> PatchImage:
    return PatchImage(
        kernel=str(image.kernel),
        initrd=str(image.initrd),
        image=image.sha256,
        manifest=str(image.manifest),
        service=service,
        identity=identity,
        packages=packages,
    )


def _failed(error: ImageError) -> DeployError:
    remedy = error.remedy
    if isinstance(error, ProgramMissing):
        remedy = how_to_install(error.program)
    return DeployError(str(error), remedy=remedy, error_code=error.error_code)
