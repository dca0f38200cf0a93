"""Every command, ended by every kind of signal at a bad moment, leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

import trivisor
from faultinject.bench.usage import family
from tests.conftest import left_qemus
from tests.faultinject.campaign.fake_node import FAKE, behave
from tests.faultinject.campaign.workers.test_dispatch import SPEC
from tests.faultinject.experiment import fake_experiment
from tests.faultinject.experiment.fake_experiment import MODULE as EXPERIMENT
from tests.waiting import wait_until
from voter.commands.terminal import ExitCode

ROOT = Path(__file__).resolve().parents[1]
MARK = "TRIVISOR_TEST_OF_ENDINGS"
ENDINGS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)

# Commands that start processes, and words that have them run for long.  "{}" is an empty directory.
LONG = {
    "bench": ["--only", "durable"],
    "bench memory": ["--requests", "100000000"],
    "campaign run": ["{}/spec.toml", "--out", "{}/r", "--worker-module", FAKE, "--no-report"],
    "campaign resume": ["{}/resumed", "--worker-module", FAKE, "--no-report"],
    "campaign replay": ["{}/resumed", "1", "--worker-module", FAKE],
    "experiment run": ["fake", "--module", EXPERIMENT, "--out", "{}/e"],
    "experiment resume": ["{}/experiment"],
    "simulate": ["--nightly", "--jobs", "2", "--log", "{}/log"],
    "service check": ["kv"],
    "voter": ["--config", "{}/voter.toml"],
    "function": ["--key", "{}/key", "--listen", "{}/f.sock", "--keep"],
}
GUESTS = {
    "up": ["--http", "127.0.0.1:0", "--dir", "{}/node"],
    "demo": [],
    "bench guests": [],
    "bench dashboards": [],
    "bench roles": [],
    "bench link": [],
    "bench transfer": [],
    "bench rejuvenation": ["--quick"],
    "bench replay": [],
    "soak": [],
    "doctor": [],
}
# Commands that start none, and words with which they do something.
SHORT = {
    "bench draw": ["{}/none.json", "--out", "{}/none.svg"],
    "status": ["--dir", "{}/node"],
    "request": ["GET", "/kv/a", "--dir", "{}/node"],
    "inject": ["crash", "g1", "--dir", "{}/node"],
    "heal": ["g1", "--dir", "{}/node"],
    "patch start": ["--service", "kv", "--dir", "{}/node"],
    "patch status": ["--dir", "{}/node"],
    "patch diff": ["--dir", "{}/node"],
    "patch rules": ["{}/expected.toml", "--dir", "{}/node"],
    "patch promote": ["--dir", "{}/node"],
    "patch reject": ["--dir", "{}/node"],
    "patch abort": ["--dir", "{}/node"],
    "rejuvenate": ["--all", "--dir", "{}/node"],
    "logs": ["--dir", "{}/node"],
    "trace": ["1", "--dir", "{}/node"],
    "dashboard": ["--dir", "{}/node"],
    "replay": ["--dir", "{}/node"],
    "monitor": ["{}/rules.toml", "--dir", "{}/node"],
    "monitoring": ["--dir", "{}/node", "--out", "{}/monitoring"],
    "explain": [],
    "token add": ["client", "--tokens", "{}/tokens"],
    "token list": ["--tokens", "{}/tokens"],
    "token revoke": ["client", "--tokens", "{}/tokens"],
    "down": ["--dir", "{}/node"],
    "deploy": ["root@127.0.0.1:1", "--remove"],
    "campaign agree": ["{}/resumed", "{}/resumed"],
    "campaign export": ["{}/resumed", "--out", "{}/rows.csv"],
    "campaign moved": ["{}/resumed", "{}/resumed"],
    "campaign plan": ["quick"],
    "campaign report": ["{}/resumed"],
    "campaign status": ["{}/resumed"],
    "model advise": ["--rm", "0.9"],
    "model bound": ["--design", "2of3", "--rm", "0.9"],
    "model export": [],
    "model figure": ["4"],
    "model reliability": ["--design", "2of3", "--rm", "0.9", "--rv", "0.99"],
    "model repairable": [],
    "experiment list": [],
    "experiment report": ["{}/experiment"],
    "paper": [],
    "completion": ["bash"],
}
DAEMONS = ("voter", "function")


def leaves(group: click.Group, *before: str) -> Iterator[str]:
    """Yield the names of all commands that a user can type."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            if found.invoke_without_command:
                yield " ".join((*before, name))
            yield from leaves(found, *before, name)
        else:
            yield " ".join((*before, name))


def alive(mark: str) -> dict[int, str]:
    """Return the processes that inherited a mark; libvirt's QEMUs do not."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode()
            except OSError:
                continue  # it ended just now
    return found


@contextmanager
def running(
    name: str, home: Path, *, output: int = subprocess.DEVNULL
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], list[str]]]]:
    """Start a command; yield its process, and what returns everything that it has left."""
    prepare(home)
    mark = uuid.uuid4().hex
    words = [word.replace("{}", str(home)) for word in (LONG | GUESTS | SHORT)[name]]
    environment = os.environ | {
        MARK: mark, "TMPDIR": str(home), "FAKE_NODE": str(home),
        "FAKE_EXPERIMENT": str(home / "fake.json"), "XDG_STATE_HOME": str(home)
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "trivisor", *name.split(), *words],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
    ) as process:  # fmt: skip
        try:
            yield (
                process,
                lambda: [
                    *alive(mark).values(),
                    *left_qemus(str(home)).values(),
                    *map(str, home.glob("tv-*")),
                ],
            )
        finally:
            for pid in [process.pid, *alive(mark), *left_qemus(str(home))]:
                if pid == process.pid:
                    process.kill()
                else:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def prepare(home: Path) -> None:
    """Write what the commands read."""
    from faultinject.campaign.run.run_campaign import versions
    from faultinject.campaign.store.store import Store
    from faultinject.experiment.store import RowStore, new_head

    behave(home, pause=0.5)
    fake_experiment.behave(home / "fake.json", hang=1)
    head = new_head(EXPERIMENT, "fake", seed=1, share=0.1, arms=(), version="test")
    RowStore.create(home / "experiment", head).close()
    (home / "spec.toml").write_text(SPEC)
    Store.create(home / "resumed", SPEC, 7, name="spec", versions=versions()).close()
    (home / "key").write_text("ab" * 32)
    (home / "rules.toml").write_text('[[request]]\nname = "a"\npath = "secret"\n')
    replica = f"exec:{sys.executable} -m guests.agent --stdio --service kv"
    lines = ['vote = "2/3"', 'durability = "none"', "[listen]", f'native_unix = "{home}/n.sock"']
    for number in (1, 2, 3):
        lines += ["[[replica]]", f'name = "g{number}"', f"link = '{replica}'"]
    (home / "voter.toml").write_text("\n".join(lines) + "\n")


def first_child(process: subprocess.Popen[bytes], name: str) -> bool:
    """Return whether the command has started a process, or has ended."""
    own = 1 if name in DAEMONS else 2  # the guard, and the command
    return len(family(process.pid)) > own or process.poll() is not None


def test_every_command_is_tested() -> None:
    assert sorted([*LONG, *GUESTS, *SHORT]) == sorted(leaves(trivisor.command))


def end_it(name: str, number: signal.Signals, home: Path, wait: float) -> None:
    """End a command so many seconds after it has started a process."""
    with running(name, home) as (process, left):
        if name not in SHORT:
            wait_until(lambda: first_child(process, name))
        time.sleep(wait)  # the moment of the signal is part of the test
        process.send_signal(number)
        code = process.wait(90)
        if name in DAEMONS or name in SHORT:  # not guarded: ended by the signal, or done before
            assert code in (-number, *ExitCode)
            wait_until(lambda: not left())
        else:
            assert code in (ExitCode.INTERRUPTED, ExitCode.OK)
            assert left() == []


@pytest.mark.parametrize(
    "name,number",
    [
        *((name, number) for name in LONG for number in ENDINGS[:2]),
        *(("bench", number) for number in ENDINGS[2:]),
    ],
)
def test_command_that_starts_processes_ends_them_on_a_signal(
    name: str, number: signal.Signals, scratch: Path
) -> None:
    chance = random.Random(f"{name} {number}")
    end_it(name, number, scratch, chance.choice([0.0, chance.uniform(0.0, 2.0)]))


@pytest.mark.parametrize("name", SHORT)
def test_command_that_starts_none_ends_on_a_signal(name: str, scratch: Path) -> None:
    chance = random.Random(name)
    end_it(name, chance.choice(ENDINGS), scratch, chance.uniform(0.1, 1.0))


@pytest.mark.vm
@pytest.mark.parametrize("name", GUESTS)
def test_command_with_guests_ends_them_on_a_signal(name: str, scratch: Path) -> None:
    chance = random.Random(name)
    end_it(name, chance.choice(ENDINGS[:2]), scratch, chance.choice([0.0, 3.0]))


@pytest.mark.parametrize("killed", ["guard", "command"])
@pytest.mark.parametrize("name", ["bench", "campaign run"])
def test_killed_command_leaves_nothing(name: str, killed: str, scratch: Path) -> None:
    """SIGKILL of the guard: the command cleans up.  Of the command: the guard does."""
    with running(name, scratch) as (process, left):
        wait_until(lambda: len(family(process.pid)) > 2)
        os.kill(family(process.pid)[killed == "command"], signal.SIGKILL)
        process.wait(90)
        wait_until(lambda: left() == [], seconds=90)


@pytest.mark.parametrize("sweep", ["bench", "down", "doctor"])
def test_what_is_left_after_both_were_killed_is_found(sweep: str, scratch: Path) -> None:
    with running("bench", scratch) as (process, left):
        wait_until(lambda: len(family(process.pid)) > 5)
        for pid in family(process.pid)[:2]:
            os.kill(pid, signal.SIGKILL)
        process.wait(30)
        assert left()
        environment = os.environ | {"TMPDIR": str(scratch), "XDG_STATE_HOME": str(scratch)}
        words = [*sweep.split(), *(["--only", "durable", "--quick"] if "b" in sweep else [])]
        done = subprocess.run(
            [sys.executable, "-m", "trivisor", *words],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        if sweep == "doctor":
            assert "trivisor down" in done.stdout
            assert left()
        else:
            assert left() == [], done.stderr


@pytest.mark.parametrize("name", ["bench", "campaign run", "simulate"])
def test_command_whose_output_is_closed_leaves_nothing(name: str, scratch: Path) -> None:
    reader, writer = os.pipe()
    with running(name, scratch, output=writer) as (process, left):
        os.close(writer)
        wait_until(lambda: first_child(process, name))
        os.close(reader)
        if name != "campaign run":  # prints nothing for a long time
            process.send_signal(signal.SIGTERM)
        assert process.wait(120) != 0 or name == "simulate"
        assert left() == []
