"""What is wrong with a host, from what its script printed."""

from __future__ import annotations

import pytest

from deploy.errors import CannotRunHere
from deploy.remote.facts import HostFinding, examine, parse_facts
from tests.deploy.remote.fake_host import INSTALLED, facts_of
from tests.errors import raises


def judge(
    changes: dict[str, list[str]],
    *,
    http: str = "127.0.0.1:8080",
    accel: str = "auto",
    space: int = 100 << 20,
    guests: int = 3,
) -> list[HostFinding]:
    facts = parse_facts(facts_of(changes))
    return examine(facts, guests=guests, memory=128, accel=accel, http=http, space=space)


def test_good_host_has_no_finding() -> None:
    assert judge({}) == []


def test_output_that_was_cut_off_is_an_error() -> None:
    whole = facts_of()
    for end in (0, 1, len(whole) // 2, len(whole) - len("@end \n")):
        with raises("TV0759"):
            parse_facts(whole[:end])


@pytest.mark.parametrize(
    "changes,words,code",
    [
        ({"os": ["ubuntu 22.04"], "os_name": ["Ubuntu 22.04 LTS"]}, "Ubuntu 22.04 LTS", "TV0759"),
        ({"os": ["debian 11"], "os_name": ["Debian GNU/Linux 11"]},
         "Linux 11.*qemu-system-x86", "TV0759"),
        ({"os": ["fedora 40"], "os_name": [""], "apt": []}, "fedora 40.*by hand", "TV0759"),
        ({"os": ["debian 12"], "apt": []}, "Debian 12", "TV0759"),
        ({"arch": ["arm64"]}, "arm64", "TV0759"),
        ({"python": ["3.12"]}, r"3\.12", "TV0759"),
        ({"pid1": ["sshd"]}, "systemd: process 1 is sshd.*chroot", "TV0759"),
        ({"systemd": []}, "systemd", "TV0759"),
        ({"broken": ["libfoo  half-installed"]}, "libfoo.*dpkg --configure -a", "TV0760"),
        ({"disk": [f"/usr {90 << 10} /usr", f"/var/lib {9 << 20} /"]},
         "90 MiB free on /usr", "TV0761"),
        # One file system has to hold all of it.
        ({"disk": [f"{name} {1100 << 10} /" for name in ("/usr", "/var/lib", "/var/tmp")]},
         "1100 MiB free on /, and 1224 MiB", "TV0761"),
        ({"memory_total": [str(500 << 10)]}, "500 MiB of memory", "TV0761"),
    ],
)  # fmt: skip
def test_host_that_cannot_run_a_node_is_named_with_the_remedy(
    changes: dict[str, list[str]], words: str, code: str
) -> None:
    with raises(code, match=words) as caught:
        judge(changes)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "listening,http",
    [
        ("0100007F:1F90", "127.0.0.1:8080"),
        ("00000000:1F90", "127.0.0.1:8080"),
        ("0100007F:1F90", "0.0.0.0:8080"),
        ("00000000000000000000000000000000:1F90", "127.0.0.1:8080"),
        ("0000000000000000FFFF00000100007F:1F90", "127.0.0.1:8080"),
        ("00000000000000000000000001000000:1F90", "[::1]:8080"),
        ("0100007F:1F90", "localhost:8080"),
    ],
)
def test_used_port_is_an_error_that_names_port_and_program(listening: str, http: str) -> None:
    used = {"listening": [listening]}
    with raises("TV0762", match=r"port 8080 .*--http"):
        judge(used, http=http)
    owner = {"listener": ['127.0.0.1:8080 users:(("nginx",pid=7,fd=6))']}
    with raises("TV0762", match="by nginx"):
        judge(used | owner, http=http)


@pytest.mark.parametrize(
    "listening,http",
    [("0100007F:1F91", "127.0.0.1:8080"), ("0200007F:1F90", "127.0.0.1:8080"),
     ("0100007F:1F90", "192.0.2.1:8080"), ("00000000:1F90", "127.0.0.1:0")],
)  # fmt: skip
def test_other_port_or_address_is_free(listening: str, http: str) -> None:
    assert judge({"listening": [listening]}, http=http) == []


def test_port_of_the_node_itself_is_not_in_the_way() -> None:
    assert judge(INSTALLED | {"listening": ["0100007F:1F90"]}) == []
    with pytest.raises(CannotRunHere):
        judge(INSTALLED | {"listening": ["0100007F:1F91"]}, http="127.0.0.1:8081")


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"kvm": [], "cpu_virtualization": [], "virtual": ["kvm"], "cpu": ["intel"]},
         ("kvm", "kvm_intel nested=1")),
        ({"kvm": [], "cpu_virtualization": [], "virtual": ["vmware"]},
         ("vmware", "kvm_amd nested=1")),
        ({"kvm": [], "cpu_virtualization": []}, ("neither svm nor vmx", "firmware")),
        ({"kvm": []}, ("no /dev/kvm", "modprobe kvm_amd")),
        ({"kvm": [], "virtual": ["systemd-nspawn"]}, ("container", "/dev/kvm")),
    ],
)  # fmt: skip
def test_host_without_kvm_gets_a_note_how_to_enable_it(
    changes: dict[str, list[str]], words: tuple[str, str]
) -> None:
    (finding,) = judge(changes)
    assert words[0] in finding.problem and "TCG" in finding.problem
    assert words[1] in finding.remedy
    assert judge(changes, accel="tcg") == []
    with pytest.raises(CannotRunHere, match="--accel kvm"):
        judge(changes, accel="kvm")


def test_little_available_memory_is_a_note_unless_the_node_uses_it() -> None:
    scarce = {"memory_available": [str(100 << 10)]}
    (finding,) = judge(scarce)
    assert "100 of 8192 MiB" in finding.problem
    assert judge(scarce | INSTALLED) == []


def test_what_the_administrator_added_to_units_is_named() -> None:
    path = "etc/systemd/system/trivisor.service.d/limits.conf"
    (finding,) = judge({"override": [path]})
    assert f"/{path}" in finding.problem


def test_file_that_the_user_may_not_read_is_an_error() -> None:
    facts = parse_facts(facts_of({"unreadable": ["etc/trivisor/node.toml"]}))
    with raises("TV0759", match=r"admin may not read /etc/trivisor/node\.toml"):
        facts.file("etc/trivisor/node.toml")
