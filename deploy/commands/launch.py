"""The part of `trivisor up` that other programs share: image, node.json, supervisor's start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import uuid
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from deploy.errors import AlreadyUp, CannotRunHere, DeployError
from deploy.host.files import LogFile, read_tail, sync_directory
from deploy.host.install import how_to_install
from deploy.host.spawn import python_command, python_environment
from deploy.machine.accel import decide
from deploy.machine.spec import Progress
from deploy.node.configuration import SPARES, check_paths, image_of
from deploy.node.orphans import stop_watchdog
from deploy.node.processes import find_orphans, find_processes
from deploy.node.records import (
    Layout,
    Lock,
    NodeRecord,
    RunningRecord,
    Settings,
    already_up,
    cache_directory,
)
from guests.function import read_key
from guests.image import (
    Additions,
    Image,
    ImageError,
    Overlay,
    ProgramMissing,
    add_overlay,
    build_image,
    verify,
)
from voter.commands.terminal import CommandError, ExitCode

__all__ = ["delete_journal", "follow_start", "identify_service", "overlay_of", "prepare_node"]


def prepare_node(
    layout: Layout,
    settings: Settings,
    progress: Progress,
    *,
    accept_service: bool = False,
    managed: bool = False,
) -> NodeRecord:
    """Write node.json for a new node with these settings, or return that of the node that runs.

    ``accept_service``: continue from a journal that another service wrote.  ``managed``: systemd
    runs the node; if supervisor or guests run, other settings wait for its next start.

    Raises AlreadyUp, ForeignState, CannotRunHere, DeployError.
    """
    check_paths(layout, settings)
    layout.prepare()
    holder = Lock(layout).holder()
    if holder is not None and not managed:
        raise already_up(layout, holder)
    if holder is not None:  # `systemctl start` of a node that runs changes nothing
        progress(f"the node already runs: its supervisor is process {holder}")
        return _running_record(layout, settings, progress)
    orphans = find_orphans(layout)
    if orphans:
        names = ", ".join(f"{name} (process {pid})" for name, pid in orphans.items())
        here = f"{layout.directory}/"
        if not all(
            here in each.command_line for each in find_processes(layout) if each.name in orphans
        ):
            raise AlreadyUp(
                f"{names} run without a supervisor, and were started when {layout.directory} was "
                "at another path",
                remedy=f"end them with `{layout.command('down')}`; the next `up` continues from "
                "the journal",
                error_code="TV0708",
            )
        stop_watchdog(layout, signal.SIGHUP)  # this command starts the next supervisor
        if not managed and layout.read_node().settings != settings:
            raise AlreadyUp(
                f"{names} of the node in {layout.directory} run without a supervisor, and the "
                "node was started with other options",
                remedy=f"end it with `{layout.command('down')}`, or use the same options again",
                error_code="TV0708",
            )
        progress(f"taking over {names}")
        return _running_record(layout, settings, progress)
    if settings.durability == "none" and layout.journal.exists():
        raise DeployError(
            f"with --durability none, the existing journal in {layout.journal} would become out of "
            "date",
            remedy=f"use {layout.option('durability', 'fsync')}, or {layout.empty_hint}",
            error_code="TV0709",
        )
    service = identify_service(settings)
    node = _check_journal(layout, settings, service, accept_service=accept_service)
    try:
        image = _pinned_image(layout, settings, service)
        if image is None:
            image = build_image(cache_directory() / "images", progress=progress)
            image = add_overlay(image, layout.directory / "image", overlay_of(settings))
        progress(f"guest image {image.sha256[:16]}")
        accelerator = asyncio.run(decide(image, cache_directory(), settings.accel, progress))
        progress(f"accelerator: {accelerator.name} ({accelerator.reason})")
    except ImageError as error:
        if isinstance(error, ProgramMissing):
            raise CannotRunHere(
                str(error), remedy=how_to_install(error.program), error_code=error.error_code
            ) from error
        raise DeployError(str(error), remedy=error.remedy, error_code=error.error_code) from error
    former = layout.read_node() if layout.known else None
    pinned = former is not None and former.image == image.sha256 and former.pinned
    record = NodeRecord(
        # The node keeps its uuid, so that its journal remains valid; its guests are new.
        uuids=(
            node or str(uuid.uuid4()),
            *(str(uuid.uuid4()) for _ in range(settings.guests + SPARES)),
        ),
        settings=settings,
        kernel=str(image.kernel),
        initrd=str(image.initrd),
        image=image.sha256,
        manifest=str(image.manifest),
        accel=accelerator.name,
        accel_reason=accelerator.reason,
        service=service,
        managed=managed,
        packages=former.packages if former is not None and pinned else (),
        pinned=pinned,
    )
    layout.write(record)
    layout.write(RunningRecord())
    return record


def overlay_of(settings: Settings, additions: Additions | None = None) -> Overlay:
    """Return the node's part of its guest image.  Raises ServiceError, OSError."""
    own = settings.service.endswith(".py")
    return Overlay(
        service=None if own else settings.service,
        service_file=Path(settings.service) if own else None,
        content=Path(settings.content) if settings.content is not None else None,
        key=read_key(Path(settings.key)) if settings.key is not None else b"",
        files=additions.files if additions is not None else {},
        programs=additions.programs if additions is not None else frozenset(),
        packages=additions.packages if additions is not None else (),
    )


def _pinned_image(layout: Layout, settings: Settings, service: str) -> Image | None:
    """Return the image that a patch has made for this service, or None.  Raises ImageError."""
    record = layout.read_node() if layout.known else None
    if record is None or not record.pinned:
        return None
    if (record.service, record.settings.service) != (service, settings.service):
        return None
    image = image_of(record)
    verify(image)
    return image


def _running_record(layout: Layout, settings: Settings, progress: Progress) -> NodeRecord:
    """Return the record of a node that runs; report settings that it does not have yet."""
    record = layout.read_node()
    if record.settings != settings:
        progress("the changed settings apply after `systemctl restart trivisor`")
    return record


class _JournalIdentity(msgspec.Struct):
    """The part of identity.json that `up` checks.  ``service``: None until one has voted."""

    node: str
    vote: str
    service: str | None = None


def identify_service(settings: Settings) -> str:
    """Return a text that differs if the guests may answer journaled requests differently.

    It names a shipped service, or a file by its SHA-256, and the function in the guests by its key.
    """
    name = settings.service
    if name.endswith(".py"):
        name = f"sha256:{sha256(Path(name).read_bytes()).hexdigest()}"
    if settings.key is not None:
        name += f" function:{sha256(read_key(Path(settings.key))).hexdigest()[:16]}"
    return name


def _check_journal(
    layout: Layout, settings: Settings, service: str, *, accept_service: bool
) -> str | None:
    """Compare the options with those under which the journal was written; return its node's uuid.

    Return None if there is neither a journal nor an earlier node.  Raises DeployError.
    """
    record = layout.read_node() if layout.known else None
    path = layout.journal / "identity.json"
    try:
        journal = msgspec.json.decode(path.read_bytes(), type=_JournalIdentity)
    except FileNotFoundError:
        return record.uuids[0] if record is not None else None
    except (OSError, msgspec.MsgspecError) as error:
        raise DeployError(
            f"the journal's {path} cannot be read: {error}",
            remedy=f"restore it from a copy, or {layout.empty_hint}",
            error_code="TV0215",
        ) from error
    if journal.vote != settings.vote:
        guests = journal.vote.partition("/")[2]
        raise DeployError(
            f"the journal in {layout.journal} was written under vote {journal.vote}, not "
            f"{settings.vote}",
            remedy=f"use {layout.option('guests', guests)} and "
            f"{layout.option('vote', journal.vote)}, or {layout.empty_hint}",
            error_code="TV0213",
        )
    before = record.service if record is not None else ""
    if journal.service is not None and before not in ("", service) and not accept_service:
        assert record is not None
        raise DeployError(
            f"the service differs from the one that wrote the journal in {layout.journal} "
            f"({record.settings.service}: {before[:23]}; now {settings.service}: {service[:23]})",
            remedy=f"run the former service again; or {layout.empty_hint}; or add "
            f"{layout.option('accept-service')} if this one reads the former one's snapshots and "
            "answers its requests alike",
            error_code="TV0710",
        )
    return journal.node


def delete_journal(layout: Layout) -> None:
    """Delete the node's journal atomically.

    Raises AlreadyUp if anything of the node runs, ForeignState, DeployError.
    """
    layout.prepare()
    holder = Lock(layout).holder()
    if holder is not None:
        raise already_up(layout, holder)
    orphans = find_orphans(layout)
    if orphans:
        raise AlreadyUp(
            f"{', '.join(orphans)} of the node in {layout.directory} run: its journal is in use",
            remedy=f"run `{layout.command('down')}` first",
            error_code="TV0708",
        )
    deleted = layout.journal.with_suffix(".deleted")
    try:
        shutil.rmtree(deleted, ignore_errors=True)
        layout.journal.rename(deleted)  # atomic: part of a journal would be a shorter history
        sync_directory(layout.directory)
        shutil.rmtree(deleted)
    except OSError as error:
        raise DeployError(
            f"cannot delete {layout.journal}: {error}", error_code="TV0713"
        ) from error


def follow_start(layout: Layout, progress: Progress) -> dict[str, Any]:
    """Start the supervisor, report its steps until the node is ready, return the node's status.

    If interrupted, takes the node down again, also if ``progress`` cannot print any more.
    Raises CommandError with the supervisor's message if the start fails.
    """
    ours, theirs = os.pipe()
    log = LogFile(layout.supervisor_log)
    log.trim()
    supervisor = python_command("trivisor", "supervise", "--dir", layout.directory)
    command = python_command("deploy.watchdog.process", "--report-fd", str(theirs), *supervisor)
    with log.open() as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=python_environment("watchdog") | {"TRIVISOR_CACHE": str(cache_directory())},
            cwd=layout.directory,  # by which its processes are found: see deploy.node.orphans
            pass_fds=[theirs],
            start_new_session=True,
        )
    os.close(theirs)
    with os.fdopen(ours, "rb") as steps:
        try:
            for line in steps:
                step = json.loads(line)
                if "ready" in step:
                    return dict(step["ready"])
                if "error" in step:
                    child.wait()
                    raise CommandError(
                        step["error"],
                        remedy=step["remedy"],
                        code=ExitCode(step["code"]),
                        error_code=step["error_code"],
                    )
                progress(step["step"])
        except CommandError:
            raise
        except BaseException:  # Ctrl-C, or progress cannot be printed any more
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(OSError, SystemExit):
                progress("interrupted: taking everything down again")
            steps.read()  # until the supervisor has ended
            child.wait()
            raise
    with contextlib.suppress(subprocess.TimeoutExpired):  # its watchdog may still have children
        child.wait(timeout=5)
    lines = "\n".join(f"  {line}" for line in read_tail(layout.supervisor_log, 15))
    raise CommandError(
        f"the supervisor ended before the node was ready; the end of its log:\n{lines}",
        remedy=f"see {layout.supervisor_log}; `{layout.command('down')}` ends what it may have "
        "left",
        error_code="TV0716",
    )
