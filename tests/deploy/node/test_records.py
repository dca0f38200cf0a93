"""A node's directory: its records, its lock, its voter.toml, the take-over of what runs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.commands.launch import delete_journal, identify_service, prepare_node
from deploy.commands.options import layout_of
from deploy.errors import DeployError, ForeignState, PathTooLong
from deploy.host.identity import ProcessIdentity, identify
from deploy.host.spawn import python_environment
from deploy.node.configuration import node_spec, toml_value, voter_config
from deploy.node.records import (
    FaultRecord,
    Layout,
    Lock,
    NodeRecord,
    RunningRecord,
    Settings,
    already_up,
)
from tests.deploy.conftest import NASTY
from tests.errors import raises
from voter.config import parse
from voter.core.limits import Limits

LINKS = {"g1": 'unix:/a "quoted"\\path', "g2": "unix:/b", "g3": "unix:/c"}
LOCK_HOLDER = """
import sys
from pathlib import Path
from deploy.node.records import Layout, Lock
Lock(Layout(Path(sys.argv[1]))).take()
print("taken", flush=True)
sys.stdin.read()
"""


def record(**settings: Any) -> NodeRecord:
    return NodeRecord(
        uuids=tuple(f"00000000-0000-4000-8000-00000000000{n}" for n in range(4)),
        settings=Settings(**settings), kernel="/k", initrd="/i", image="sha", manifest="/m",
        accel="tcg", accel_reason="test",
    )  # fmt: skip


@pytest.fixture
def layout(scratch: Path) -> Layout:
    """Give a node's directory that is prepared."""
    layout = Layout(scratch)
    layout.prepare()
    return layout


def identity_of(pid: int) -> ProcessIdentity:
    found = identify(pid)
    assert found is not None
    return found


# ---- records


def test_records_are_read_as_written(layout: Layout) -> None:
    assert layout.read_running() == RunningRecord()
    node = record(allow_faults=True, vote="1/1", guests=1)
    fault = FaultRecord(kind="hang", since=1.5, until=None, proof="seen")
    running = RunningRecord(processes={"voter": identity_of(1)}, http="h:1", faults={"g1": fault})
    layout.write(node)
    layout.write(running)
    assert (layout.read_node(), layout.read_running()) == (node, running)
    assert layout.node.stat().st_mode & 0o777 == 0o600
    layout.prepare()  # the directory can be used again


def test_new_directory_is_accessible_to_its_owner_only(scratch: Path) -> None:
    layout = Layout(scratch / "a" / "b")
    layout.prepare()
    assert layout.directory.stat().st_mode & 0o777 == 0o700


def test_directory_can_be_used_again_after_a_start_that_wrote_no_record(layout: Layout) -> None:
    (layout.directory / "image").mkdir()
    layout.prepare()


@pytest.mark.parametrize("name", ["node", "running"])
@pytest.mark.parametrize(("change", "message"), [({"schema": 2}, "schema 2"), ({"x": 1}, "x")])
def test_record_of_another_version_is_rejected(
    layout: Layout, name: str, change: dict[str, int], message: str
) -> None:
    layout.write(record())
    layout.write(RunningRecord())
    path = layout.directory / f"{name}.json"
    value = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(value | change))
    with raises("TV0706", match=message):
        layout.prepare()


@pytest.mark.parametrize("name", ["node", "running"])
@pytest.mark.parametrize(
    "damage",
    [b"", b"null", b"[]", b"{", b"\0" * 100, b"\xff\xfe", b'{"schema": 1}', b'{"schema": null}'],
)
def test_damaged_record_is_moved_away_not_deleted(layout: Layout, name: str, damage: bytes) -> None:
    layout.write(record())
    path = layout.directory / f"{name}.json"
    path.write_bytes(damage)
    problem = layout.problem()
    if name == "running" and damage == b'{"schema": 1}':
        assert problem is None  # nothing ran
        return
    assert problem is not None and str(path) in problem.problem
    assert f"mv {path} {path}.damaged" in problem.remedy and "journal stays" in problem.remedy
    with pytest.raises(ForeignState):
        layout.prepare()


@pytest.mark.parametrize(
    "settings",
    [{"boot_deadline": None}, {"boot_deadline": -1}, {"boot_deadline": 1e9}, {"guests": 0},
     {"guests": 10**9}, {"memory_mib": 0}, {"memory_mib": 128.5}],
)  # fmt: skip
def test_record_with_an_impossible_number_is_rejected(
    layout: Layout, settings: dict[str, Any]
) -> None:
    value = msgspec.to_builtins(record())
    layout.node.write_text(msgspec.json.encode(value | {"settings": settings}).decode())
    with pytest.raises(ForeignState, match=rf"\$.settings.{next(iter(settings))}"):
        layout.read_node()


def test_record_with_a_number_that_json_does_not_have_is_not_written(layout: Layout) -> None:
    layout.write(record())
    before = layout.node.read_bytes()
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            layout.write(record(boot_deadline=number))
    assert layout.node.read_bytes() == before


def test_lock_has_one_holder_and_is_released_when_its_process_ends(layout: Layout) -> None:
    assert Lock(layout).holder() is None
    with subprocess.Popen(
        [sys.executable, "-c", LOCK_HOLDER, str(layout.directory)], env=python_environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        holder.stdout.readline()
        assert Lock(layout).holder() == holder.pid
        with raises("TV0707", match=str(holder.pid)):
            Lock(layout).take()
        holder.kill()
    lock = Lock(layout)
    lock.take()
    lock.release()


def test_up_takes_over_running_processes_only_with_the_same_options(layout: Layout) -> None:
    layout.write(record())
    with subprocess.Popen(
        [sys.executable, "-c", "input()", layout.voter_config],
        env=python_environment("voter"), cwd=layout.directory, stdin=subprocess.PIPE,
    ) as voter:  # fmt: skip
        with raises("TV0708", match=f"voter .process {voter.pid}.*other options"):
            prepare_node(layout, Settings(vote="3/3"), lambda _: None)
        assert prepare_node(layout, Settings(), lambda _: None) == record()
        voter.kill()


# ---- a journal that another service wrote


def leave_journal(layout: Layout, *, service: str | None = "kv", vote: str = "2/3") -> None:
    """Leave the identity of a journal, as a voter writes it."""
    layout.journal.mkdir()
    known = {"format": 3, "node": "the-node", "vote": vote, "secret": "00", "service": service}
    (layout.journal / "identity.json").write_bytes(msgspec.json.encode(known))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"service": "FILE"}, "the service differs from the one that wrote the journal"),
        ({"service": "kv"}, "the service differs from the one that wrote the journal"),
        ({"key": "KEY"}, "the service differs from the one that wrote the journal"),
        ({"vote": "3/5", "guests": 5}, "was written under vote 2/3, not 3/5"),
    ],
)
def test_up_refuses_a_journal_that_other_options_wrote_before_it_starts_anything(
    layout: Layout, tmp_path: Path, changed: dict[str, Any], text: str
) -> None:
    file, key = tmp_path / "service.py", tmp_path / "key"
    file.write_text("first")
    key.write_text("6b" * 32)
    before: dict[str, Any] = (
        {"service": "kv"} if changed == {"service": "FILE"} else {"service": str(file)}
    )
    old = msgspec.structs.replace(record(**before), service=identify_service(Settings(**before)))
    layout.write(old)
    leave_journal(layout)
    places = {"FILE": str(file), "KEY": str(key)}
    after = before | {name: places.get(value, value) for name, value in changed.items()}
    with pytest.raises(DeployError, match=text) as caught:
        prepare_node(layout, Settings(**after), pytest.fail)
    assert "--dir" in caught.value.remedy
    assert "remove" not in str(caught.value)
    assert caught.value.error_code == ("TV0213" if "vote" in changed else "TV0710")
    assert layout.read_node() == old


def test_a_journal_is_not_left_behind_by_a_node_that_writes_none(layout: Layout) -> None:
    layout.write(record())
    leave_journal(layout)
    with raises("TV0709"):
        prepare_node(layout, Settings(durability="none"), pytest.fail)


def test_journal_that_cannot_be_deleted_is_an_error(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk fails")

    leave_journal(layout)
    monkeypatch.setattr("deploy.commands.launch.sync_directory", fail)
    with raises("TV0713", match="the disk fails"):
        delete_journal(layout)


def test_changed_file_is_refused_unless_it_is_accepted_or_nothing_was_voted(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Continued(Exception):
        """The journal was accepted: the image would be built next."""

    def build(*_: object, **__: object) -> None:
        raise Continued

    monkeypatch.setattr("deploy.commands.launch.build_image", build)
    file = tmp_path / "changing.py"
    file.write_text("first")
    settings = Settings(service=str(file))
    layout.write(msgspec.structs.replace(record(), service=identify_service(settings)))
    leave_journal(layout)
    with pytest.raises(Continued):
        prepare_node(layout, settings, print)
    file.write_text("second")
    with raises("TV0710", match="--accept-service"):
        prepare_node(layout, settings, print)
    with pytest.raises(Continued):
        prepare_node(layout, settings, print, accept_service=True)
    (layout.journal / "identity.json").unlink()
    layout.journal.rmdir()
    leave_journal(layout, service=None)
    with pytest.raises(Continued):
        prepare_node(layout, settings, print)


# ---- configuration


def test_voter_accepts_its_configuration(layout: Layout) -> None:
    config = parse(voter_config(layout, Settings(), "me", LINKS))
    assert {replica.name: replica.link for replica in config.replica} == LINKS
    assert (config.vote, config.service, config.function) == ("2/3", "kv", None)
    custom = Settings(service="/somewhere/counter.py")
    assert parse(voter_config(layout, custom, "me", LINKS)).service is None


@pytest.mark.parametrize(
    ("boot_deadline", "factor"), [(1.0, 1.0), (60.0, 1.0), (90.0, 1.5), (600.0, 10.0)]
)
def test_longer_boot_deadline_lengthens_the_other_limits_on_guests(
    layout: Layout, boot_deadline: float, factor: float
) -> None:
    settings = Settings(boot_deadline=boot_deadline)
    assert settings.slowness == factor
    limits = parse(voter_config(layout, settings, "me", LINKS)).limits
    assert limits == Limits(hang=Limits().hang * factor)


def test_function_on_the_host_adds_one_line_to_the_voters_configuration(layout: Layout) -> None:
    plain = voter_config(layout, Settings(), "me", LINKS)
    in_guests = Settings(function="guest", key="/key")
    assert voter_config(layout, in_guests, "me", LINKS) == plain
    on_host = voter_config(layout, Settings(function="unix:/f.sock"), "me", LINKS)
    assert set(on_host.splitlines()) - set(plain.splitlines()) == {'function = "unix:/f.sock"'}
    assert parse(on_host).function == "unix:/f.sock"


@pytest.mark.parametrize("allowed", [False, True])
def test_guests_memory_is_a_file_only_when_faults_are_allowed(
    layout: Layout, allowed: bool
) -> None:
    spec = node_spec(layout, record(allow_faults=allowed, memory_mib=256))
    assert [guest.ram_file for guest in spec.guests] == [allowed] * 3
    assert {guest.memory_mib for guest in spec.guests} == {256}
    assert [guest.name for guest in spec.guests] == ["g1", "g2", "g3"]


def test_voters_configuration_carries_any_path(scratch: Path) -> None:
    layout = Layout(scratch)
    path = f"unix:{scratch}/{NASTY}"
    settings = msgspec.structs.replace(Settings(), function=f"{path}/f")
    config = parse(voter_config(layout, settings, "me", {"g1": path, "g2": path, "g3": path}))
    assert config.function == f"{path}/f"
    assert {replica.link for replica in config.replica} == {path}


def test_directory_too_long_for_a_node_is_named_before_anything_is_made(scratch: Path) -> None:
    long = Layout(scratch / ("d" * 90))
    with pytest.raises(PathTooLong, match=r"supervisor\.sock"):
        prepare_node(long, Settings(), print)
    with raises("TV0702", match=r"U\+000A"):
        prepare_node(Layout(scratch / "a\nb"), Settings(), print)
    assert list(scratch.iterdir()) == []


def test_directory_is_named_as_the_kernel_reads_it(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scratch / "real/sub").mkdir(parents=True)
    (scratch / "link").symlink_to(scratch / "real/sub")
    monkeypatch.chdir(scratch)
    names = {"n/": "n", "./n": "n", "link/../n": "real/n", "-x": "-x", "link/n": "link/n"}
    for given, meant in names.items():
        assert layout_of(Path(given)).directory == scratch / meant
    monkeypatch.setenv("TRIVISOR_DIR", "relative")
    assert layout_of(None).directory == scratch / "relative"
    with raises("TV0702"):
        layout_of(Path("a\nb"))


def test_commands_that_messages_name_mean_this_node(scratch: Path) -> None:
    """Not the default one, which `trivisor down` alone would end."""
    layout = Layout(scratch / "a b")
    assert layout.command("down") == f"trivisor down --dir '{scratch / 'a b'}'"
    assert layout.command("down") in already_up(layout, 7).remedy


@pytest.mark.parametrize("text", ["", 'a"\\b', "\x7f", "\x00\x1f", "\u2028\x85", "\U0001f600é"])
def test_any_text_can_be_written_as_toml(text: str) -> None:
    written = f"a = {toml_value(text)}\nb = {toml_value([text, 1, True])}\n"
    assert tomllib.loads(written) == {"a": text, "b": [text, 1, True]}
