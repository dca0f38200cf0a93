"""Runs commands of the documentation in one shell, in a directory and a network of its own.

The shell's network has only a loopback interface, so the addresses that the pages name are free.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deploy.host.spawn import python_command, python_environment
from deploy.node.records import cache_directory
from tests.docs.pages import Command, SavedFile
from tests.project.tree import ROOT

__all__ = ["Done", "Shell", "shown_as"]

MARK = "\x01"
WIDTH = 120
"""Columns of the terminal that programs assume: no cell of a table is wrapped, in either build."""


class Done(NamedTuple):
    """A command that has run: its exit status and output lines (also those for errors)."""

    command: Command
    status: int
    output: tuple[str, ...]


class Shell:
    """A bash whose home is ``directory``, with ``trivisor`` of this checkout on its path."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Where the pages' nodes are: without --dir, and with the one that a page gives.
        self._nodes = [directory / ".local/state/trivisor/default", directory / "restored"]
        programs = directory / "bin"
        programs.mkdir(parents=True)
        (programs / "trivisor").write_text(
            f'#!/bin/sh\nexec {shlex.join(python_command("trivisor"))} "$@"\n'
        )
        (programs / "trivisor").chmod(0o755)
        (directory / "run").write_text('#!/bin/sh\n[ "$1" = campaign ] && exec trivisor "$@"\n')
        (directory / "run").chmod(0o755)  # what ./run does once it has set up
        (directory / "examples").symlink_to(ROOT / "examples")
        (directory / ".curlrc").write_text("silent\nshow-error\n")  # as on a terminal
        self._environment = python_environment() | {
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(directory),
            "TRIVISOR_CACHE": str(cache_directory()),
            "COLUMNS": str(WIDTH),
            "TERM": "dumb",
        }

    def run(self, steps: Sequence[Command | SavedFile], seconds: float = 300) -> list[Done]:
        """Do these steps in order, up to the first command with another exit status than shown.

        Return what has run; raise AssertionError after ``seconds`` for all of them.
        """
        commands = [step for step in steps if isinstance(step, Command)]
        lines = ["ip link set lo up" if os.geteuid() == 0 else ":"]
        for step in steps:
            if isinstance(step, SavedFile):
                lines.append(f"printf %s {shlex.quote(step.text)} >{shlex.quote(step.name)}")
            else:
                lines.append(f"printf '{MARK}\\n'; eval {shlex.quote(step.text)}; status=$?")
                lines.append(f"printf '{MARK}%d\\n' $status")
                lines.append(f"[ $status = {step.status} ] || exit 0")
        network = ["unshare", "--net"] if os.geteuid() == 0 else []
        log = self.directory / ".output"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*network, "bash", "--noprofile", "--norc", "-c", "\n".join(lines)],
                cwd=self.directory, env=self._environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            text = log.read_text(errors="replace")
            raise AssertionError(f"not within {seconds:g} s; so far: {text}") from error
        finally:
            with contextlib.suppress(ProcessLookupError):  # also what runs in the background
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output = log.read_text(errors="replace")
        found = re.findall(rf"{MARK}\n(.*?){MARK}(\d+)\n", output, re.DOTALL)
        return [
            Done(command, int(status), tuple(text.splitlines()))
            for command, (text, status) in zip(commands, found, strict=False)
        ]

    def close(self) -> None:
        """Take down the nodes that are left."""
        for node in self._nodes:
            if node.exists():
                words = python_command("trivisor", "down", "--dir", node)
                subprocess.run(words, env=python_environment(), capture_output=True, check=False)


def _plain(line: str) -> str:
    """Return a line without what differs between two runs: numbers, hashes, widths, builds."""
    line = re.sub(r"\b[0-9a-f]{12,}\b", "N", line).replace("pure Python", "compiled   ")
    line = re.sub(r"[0-9][0-9,.:]*", "N", line)
    return " ".join(re.sub(r"[─━]+", "-", line).split())


def shown_as(done: Done) -> list[str] | None:
    """Return the shown lines as this run printed them; None if the run printed something else.

    A shown line may differ from a printed one in numbers and spaces.  "..." stands for any lines.
    A command with no shown output may print anything.
    """
    found: list[str] = []
    printed, at, gap = done.output, 0, not done.command.shown
    for line in done.command.shown:
        if line.strip() == "...":
            found.append(line)
            gap = True
            continue
        ends = len(printed) if gap else min(at + 1, len(printed))
        place = next((i for i in range(at, ends) if _plain(printed[i]) == _plain(line)), None)
        if place is None:
            return None
        found.append(printed[place].rstrip())
        at, gap = place + 1, False
    return found if gap or at == len(printed) else None
