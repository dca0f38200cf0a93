"""What `up` does in the foreground: the image, node.json, the supervisor's first steps."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import structlog

from deploy.errors import AlreadyUp, CannotRunHere, DeployError
from deploy.host.logfile import LogFile, read_tail
from deploy.host.paths import check_socket_paths
from deploy.machine.accel import decide
from deploy.node.interfaces import Progress
from deploy.node.orphans import find_orphans
from deploy.node.records import (
    Layout,
    Lock,
    NodeRecord,
    RunningRecord,
    Settings,
    already_up,
    cache_directory,
)
from deploy.node.succession import stand_down
from guests.function import read_key
from guests.image import ImageError, Overlay, add_overlay, build_image
from voter.commands.terminal import CommandError, ExitCode

__all__ = ["follow_start", "prepare_node", "throw_journal_away"]

ROOT = Path(__file__).resolve().parents[2]

_log = structlog.get_logger(__name__)


def prepare_node(layout: Layout, settings: Settings, progress: Progress) -> NodeRecord:
    """Have node.json say what is to run: what runs already, or a new node with these settings.

    Raises AlreadyUp, ForeignState, CannotRunHere, DeployError.
    """
    check_socket_paths(layout.sockets)
    layout.prepare()
    holder = Lock(layout).holder()
    if holder is not None:
        raise already_up(layout, holder)
    orphans = find_orphans(layout)
    if orphans:
        stand_down(layout, signal.SIGHUP)  # the supervisor is ours to start now
        record = layout.read_node()
        names = ", ".join(f"{name} (process {pid})" for name, pid in orphans.items())
        if record.settings != settings:
            raise AlreadyUp(
                f"{names} of the node in {layout.directory} run without a supervisor, and the "
                "node was started with other options",
                remedy="`trivisor down` ends it; or give `trivisor up` the same options again",
            )
        progress(f"going on with {names}")
        return record
    if settings.durability == "none" and layout.journal.exists():
        raise DeployError(
            f"there is a journal in {layout.journal}, and with --durability none nothing would be "
            "written to it: what it holds would be out of date",
            remedy="give --durability fsync or os; or throw it away with --fresh",
        )
    try:
        image = build_image(cache_directory() / "images", progress=progress)
        own = settings.service.endswith(".py")
        overlay = Overlay(
            service=None if own else settings.service,
            service_file=Path(settings.service) if own else None,
            content=Path(settings.content) if settings.content is not None else None,
            key=read_key(Path(settings.key)) if settings.key is not None else b"",
        )
        image = add_overlay(image, layout.directory / "image", overlay)
        progress(f"guest image {image.sha256[:16]}")
        accelerator = asyncio.run(decide(image, cache_directory(), settings.accel, progress))
        known = ", known from before" if accelerator.cached else ""
        progress(f"accelerator: {accelerator.name} ({accelerator.reason}{known})")
    except ImageError as error:
        missing = "not installed" in str(error)
        kind = CannotRunHere if missing else DeployError
        raise kind(str(error)) from error
    # The node stays the same one, and its journal its own; its guests are new ones.
    node = layout.read_node().uuids[0] if layout.known else str(uuid.uuid4())
    record = NodeRecord(
        uuids=(node, *(str(uuid.uuid4()) for _ in range(settings.guests))),
        settings=settings,
        kernel=str(image.kernel),
        initrd=str(image.initrd),
        image=image.sha256,
        manifest=str(image.manifest),
        accel=accelerator.name,
        accel_reason=accelerator.reason,
    )
    layout.write(record)
    layout.write(RunningRecord())
    return record


def throw_journal_away(layout: Layout) -> None:
    """Remove the node's journal, whole or not at all.

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
            remedy="`trivisor down` first",
        )
    aside = layout.journal.with_suffix(".thrown-away")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        layout.journal.rename(aside)  # in one step: half a journal would be a shorter history
        directory = os.open(layout.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        shutil.rmtree(aside)
    except OSError as error:
        raise DeployError(f"{layout.journal} cannot be removed: {error}") from error


def _status(child: subprocess.Popen[bytes]) -> str:
    """Tell in words how the supervisor ended, where its nanny has no other children left."""
    try:
        return f"with status {child.wait(timeout=5)}"
    except subprocess.TimeoutExpired:
        return "and left processes behind (`trivisor down` ends them)"


def follow_start(layout: Layout, progress: Progress) -> dict[str, Any]:
    """Start the supervisor and follow its steps until the node is ready; return its status.

    If this is interrupted, the node is taken down again.  Raises CommandError with the
    supervisor's words if it does not come up.
    """
    ours, theirs = os.pipe()
    log = LogFile(layout.supervisor_log)
    log.trim()
    command = [sys.executable, "-m", "deploy.watchdog.watchdog", "--report-fd", str(theirs)]
    command += [sys.executable, "-m", "trivisor", "supervise", "--dir", str(layout.directory)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with log.open() as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONPATH": path},
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
                        step["error"], remedy=step["remedy"], code=ExitCode(step["code"])
                    )
                progress(step["step"])
        except KeyboardInterrupt:
            progress("interrupted: taking everything down again")
            child.send_signal(signal.SIGTERM)
            steps.read()  # ends with the supervisor
            child.wait()
            raise
    said = "\n".join(f"  {line}" for line in read_tail(layout.supervisor_log, 15))
    raise CommandError(
        f"the supervisor ended {_status(child)} before the node was ready; it said last:\n{said}",
        remedy=f"see {layout.supervisor_log}",
    )
