"""``./run test --kvm``: the steps under KVM, here or in an emulated host (``python -m tests.kvm``).

If the accelerator check boots a guest under KVM here, the steps run on this host.  Otherwise they
run in a virtual machine that QEMU emulates with AMD's SVM (``machine``), where /dev/kvm works too,
slowly.  Both write log.txt and record.json.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from deploy.errors import DeployError
from deploy.host.files import write_json
from deploy.machine.accel import decide, read_facts
from deploy.node.records import cache_directory
from faultinject.host_facts import describe_host
from guests.image import ImageError, build_image
from tests.kvm.disk import INSIDE, make_disk
from tests.kvm.machine import COMMAND_LINE, CORES, MEMORY_MIB, MachineFailed, run_machine
from tests.kvm.record import Record, Step
from tests.kvm.steps import STEPS, run_steps
from tests.project.tree import ROOT

__all__ = ["main", "read_step"]

MARK = "step: "
"""What a line begins with that is the result of a step, as JSON."""


def main() -> int:
    """Run the command; return 0 if every step passed, 1 if not, 4 if it cannot run here."""
    parser = argparse.ArgumentParser(prog="./run test --kvm", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/kvm",
                        help="directory for log.txt and record.json")  # fmt: skip
    parser.add_argument(
        "--here", action="store_true", help="run the steps on this host, whatever its accelerator"
    )
    parser.add_argument("--package", type=Path,
                        help="with --here: also install and purge this Debian package")  # fmt: skip
    parser.add_argument("--commit", default=_commit(), help="for the record")
    arguments = parser.parse_args()
    out: Path = arguments.out
    package: Path | None = arguments.package
    if package is not None and not (arguments.here and package.is_file()):
        parser.error(f"--package {package}: needs --here, and an existing file")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {out}: {error.strerror}")
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with _log(out / "log.txt") as log:
        try:
            here = arguments.here or _kvm_works(log)
            record = Record(place="host" if here else "emulated", commit=arguments.commit,
                            began=began, outer={} if here else _facts())  # fmt: skip
            write_json(out / "record.json", record)
            if here:
                record = _run_here(record, out, log, package and package.absolute())
            else:
                record = _run_emulated(record, out, log)
        except (DeployError, ImageError, MachineFailed, RuntimeError, OSError,
                subprocess.CalledProcessError) as error:  # fmt: skip
            log(f"error: {error}")
            return 4
        except KeyboardInterrupt:
            log("interrupted: the record has the steps that ended before")
            return 130
        for line in record.lines():
            log(line)
    return 0 if record.passed else 1


def _kvm_works(log: Callable[[str], None]) -> bool:
    image = build_image(cache_directory() / "images", progress=log)
    choice = asyncio.run(decide(image, cache_directory(), "auto", log))
    log(f"accelerator of this host: {choice.name} ({choice.reason})")
    return choice.name == "kvm"


def _run_here(
    record: Record, out: Path, log: Callable[[str], None], package: Path | None
) -> Record:
    scratch = Path(tempfile.mkdtemp(prefix="tvk-"))  # a short path: it holds unix sockets
    try:
        for step in run_steps(scratch, log, package=package):
            log(MARK + msgspec.json.encode(step).decode())
            record = record.with_step(step)
            write_json(out / "record.json", record)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return record


def _run_emulated(record: Record, out: Path, log: Callable[[str], None]) -> Record:
    """Boot the test host, run this command there, and collect the steps' results as they come."""
    if os.geteuid() != 0:
        raise RuntimeError("KVM does not work here, and only root can make the emulated test host")
    disk = make_disk(ROOT / ".setup/kvm", log)

    def line(text: str) -> None:
        nonlocal record
        log(f"| {text}")
        if (step := read_step(text)) is not None:
            record = record.with_step(step)
            write_json(out / "record.json", record)

    work = Path(tempfile.mkdtemp(prefix="tvk-"))
    try:
        log("making the Debian package")
        environment = {**os.environ, "TRIVISOR_BUILD_PYTHON": sys.executable}
        subprocess.run([ROOT / "deploy/package/build", work], check=True, env=environment)
        [package] = work.glob("*.deb")
        with run_machine(disk, work) as machine:
            machine.wait(log)
            log("the test host is up")
            machine.copy_in(package)
            status = machine.run(
                f"cd /{INSIDE} && ./run test --kvm --here --out /root/out "
                f"--package /{INSIDE}/{package.name} --commit {record.commit or 'unknown'} 2>&1",
                line,
            )
            log(f"exit status {status} of the steps on the test host")
    except MachineFailed as error:
        shutil.copyfile(work / "console.txt", out / "console.txt")
        log(f"the test host failed: {error}; its console is in {out / 'console.txt'}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    done = {step.name for step in record.steps}
    for name, _, _ in STEPS:
        if name not in done:
            why = "the test host ended before"
            record = record.with_step(Step(name=name, result="not reached", output=why))
    write_json(out / "record.json", record)
    return record


def read_step(line: str) -> Step | None:
    """Return the result of a step if this line of the log has one."""
    _, _, text = line.strip().partition(" s  ")
    if not text.startswith(MARK):
        return None
    return msgspec.json.decode(text.removeprefix(MARK), type=Step)


@contextmanager
def _log(path: Path) -> Iterator[Callable[[str], None]]:
    """Give a function that prints a line, and writes it to a file, with the seconds since now.

    Paths of this checkout become relative ones: a kept log names no place of one machine.
    """
    began = time.monotonic()
    with path.open("w", encoding="utf-8") as file:

        def log(text: str) -> None:
            line = f"{time.monotonic() - began:7.1f} s  {text.replace(f'{ROOT}/', '')}"
            print(line, flush=True)
            file.write(f"{line}\n")
            file.flush()

        yield log


def _facts() -> dict[str, object]:
    """Return facts of the host that emulates the test host."""
    facts: dict[str, object] = msgspec.to_builtins(
        describe_host(accel="tcg", load_before=os.getloadavg()[0])
    )
    facts |= msgspec.to_builtins(asyncio.run(read_facts()))
    return facts | {
        "test_host": f"{CORES} processors, {MEMORY_MIB} MiB, TCG, -cpu max, {COMMAND_LINE}"
    }


def _commit() -> str:
    """Return the commit of this tree; "+" marks changes that are not committed."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
