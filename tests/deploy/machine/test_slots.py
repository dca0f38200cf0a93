"""A node's spare slot: a VM starts in it by clone or by a bounded boot, and is ended again."""

from __future__ import annotations

import hashlib
import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.host import memory
from deploy.machine.node_machines import NodeMachines
from deploy.machine.qemu import find_qemu
from deploy.machine.room import require_memory
from deploy.machine.spec import NodeSpec
from deploy.machine.template import PATTERN, Templates, template_name
from guests.image import Image
from tests.deploy.conftest import plan
from tests.deploy.machine.test_node_machines import end, owner, running, state
from tests.deploy.machine.test_spec import planned
from tests.errors import raises

# ---- without guests


def test_spares_are_the_last_slots() -> None:
    spec = planned(spares=1)
    assert spec.spare_names == {spec.guests[-1].name}
    assert planned().spare_names == frozenset()


@pytest.mark.parametrize("spares", [-1, 2, 3])
def test_node_has_at_least_one_guest_that_is_no_spare(spares: int) -> None:
    with pytest.raises(ValueError, match="spares must be 0 to 1"):
        planned(spares=spares)


def test_node_with_another_image_in_a_slot_is_the_same_node() -> None:
    spec = planned(spares=1)
    other = spec.with_guest(msgspec.structs.replace(spec.guests[1], initrd="/other"))
    assert other != spec
    assert other.is_same_node(spec)
    assert not msgspec.structs.replace(spec, uuid="another").is_same_node(spec)
    moved = msgspec.structs.replace(spec.guests[1], disk="/elsewhere")
    assert not spec.with_guest(moved).is_same_node(spec)


def test_template_fits_every_slot_of_one_image_and_no_other() -> None:
    first, second = planned().guests
    assert template_name(first) == template_name(second)
    for change in ({"initrd": "/other"}, {"memory_mib": 256}, {"ssh_port": 2222}):
        assert template_name(msgspec.structs.replace(first, **change)) != template_name(first)


def test_missing_memory_is_reported_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = planned().guests[0]
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    require_memory(guest)  # the kernel does not say
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   102400 kB\n")
    with raises("TV0150", match="needs up to 320 MiB, and this host has 100 MiB .* --in-place"):
        require_memory(guest)
    (tmp_path / "meminfo").write_text("MemAvailable:   1024000 kB\n")
    require_memory(guest)


async def test_damaged_template_is_not_used_and_removed(scratch: Path) -> None:
    spec = planned(directory=str(scratch))
    template = scratch / template_name(spec.guests[1])
    digest = hashlib.sha256(b"a disk").hexdigest()
    templates = Templates(scratch, {template.name: digest})
    template.write_bytes(b"a disk")
    assert await templates.clone(spec.guests[1])
    assert Path(spec.guests[1].disk).read_bytes() == b"a disk"
    template.write_bytes(b"a disc")
    with raises("TV0151", match="has SHA-256 .*, not"):
        await templates.clone(spec.guests[1])
    assert list(scratch.iterdir()) == []
    assert not await templates.clone(spec.guests[1]), "there is none"


def test_one_guest_makes_a_template_and_others_do_not(scratch: Path) -> None:
    first, second = planned().guests
    templates = Templates(scratch, {})
    with templates.make(first, wanted=True) as made:
        with templates.make(second, wanted=True) as other:
            assert other.path is None
        assert made.path == scratch / template_name(first)
    assert templates.digests == {}, "it failed"
    with templates.make(second, wanted=True) as made:
        assert made.path is not None
        made.digest = "abc"
    with templates.make(first, wanted=True) as other:
        assert other.path is None
    assert templates.digests == {template_name(first): "abc"}


async def test_slot_that_ends_after_the_node_leaves_no_file(scratch: Path) -> None:
    node = NodeMachines(planned(directory=str(scratch / "n"), spares=1))
    (scratch / "n").mkdir()
    await node.end("g2")
    assert list((scratch / "n").iterdir()) == []


async def test_slot_that_is_taken_or_unknown_is_an_error(scratch: Path) -> None:
    node = NodeMachines(planned(directory=str(scratch / "n"), spares=1))
    with pytest.raises(KeyError):
        await node.start("g9")


# ---- real guests


def ask(process: subprocess.Popen[str], command: str) -> dict[str, Any]:
    """Send the node's owner a command; return what it prints."""
    assert process.stdin is not None
    process.stdin.write(f"{command}\n")
    process.stdin.flush()
    return state(process)


def templates(spec: NodeSpec) -> list[Path]:
    return list(Path(spec.directory).glob(PATTERN))


@pytest.mark.vm
def test_spare_slot_is_filled_by_clone_and_by_boot_and_emptied(scratch: Path, image: Image) -> None:
    spec = plan(scratch / "n", image, guests=2, spares=1)
    with owner(spec) as process:
        first = state(process)
        assert (first["g1"]["how"], first["g2"]["how"]) == ("booted", "empty")
        assert (first["g2"]["pid"], first["g2"]["state"]) == (None, "absent")
        [template] = templates(spec)
        assert template.stat().st_mode & 0o777 == 0o600

        cloned = ask(process, "start g2 clone 100")
        assert cloned["g2"]["error"] == ""
        assert (cloned["g2"]["how"], cloned["g2"]["state"]) == ("cloned", "ready")
        assert Path(spec.guests[1].link_socket).exists()
        assert find_qemu(spec.guests[1].uuid, disk=Path(spec.guests[1].disk)) == cloned["g2"]["pid"]
        assert "TV0113" in ask(process, "start g2 clone 100")["g2"]["error"], "it is taken"
        assert ask(process, "restore")["g2"]["pid"] == cloned["g2"]["pid"]

        ended = ask(process, "end g2")
        assert (ended["g2"]["pid"], ended["g2"]["state"]) == (None, "absent")
        assert not Path(spec.guests[1].disk).exists()
        assert ask(process, "end g2")["g2"]["error"] == "", "nothing to do"

        booted = ask(process, "start g2 boot 60")
        assert (booted["g2"]["how"], booted["g2"]["state"]) == ("booted", "ready")
        assert booted["g2"]["arrival"]["bounded"] in ("cgroup v1", "cgroup v2", "priority")
        groups = Path(f"/proc/{booted['g2']['pid']}/cgroup").read_text()
        assert "trivisor-share" not in groups, "it may use a whole processor now"
        ask(process, "end g2")

        template.write_bytes(template.read_bytes()[:-512] + b"\1" * 512)
        again = ask(process, "start g2 clone 100")
        assert (again["g2"]["how"], again["g2"]["error"]) == ("booted", "")
        assert len(templates(spec)) == 1, "the boot has made a new one"
        end(process, "down")
    assert running(spec) == {}
    assert list((scratch / "n").iterdir()) == []


@pytest.mark.vm
def test_next_owner_adopts_a_clone_and_keeps_the_templates(scratch: Path, image: Image) -> None:
    spec = plan(scratch / "n", image, guests=2, spares=1)
    with owner(spec) as first:
        state(first)
        clone = ask(first, "start g2 clone 100")["g2"]["pid"]
        first.kill()
        first.wait()
    assert running(spec)["g2"] == clone
    # The node's owner decides what is in the slots: here the new one expects it to be empty.
    with owner(spec) as second:
        assert (state(second)["g2"]["how"], running(spec).get("g2")) == ("empty", None)
        assert ask(second, "start g2 clone 100")["g2"]["how"] == "cloned"
        second.send_signal(signal.SIGKILL)
        second.wait()
    with owner(spec) as third:
        state(third)
        end(third, "down")
    assert list((scratch / "n").iterdir()) == []
