"""A guest as libvirt's XML.  Pure: the same spec gives the same bytes.

The machine is a q35 with the devices that a replica needs: one serial port (the console), one
virtio-serial port (the link), one disk for snapshots.  It has no network card, no graphics, no USB
and no balloon.  The virtio devices have fixed addresses on the root bus, so all guests are equal.

A guest that allows faults inside has a network card.  QEMU's user network is restricted: nothing
leaves it, neither to the host nor beyond.  The only way in leads from one port of the host's
loopback to the guest's SSH server.
"""

from __future__ import annotations

import shlex
from xml.etree import ElementTree as ET

from deploy.machine.spec import GuestSpec

__all__ = [
    "LINK_PORT", "NAMESPACE", "disk_in_xml", "domain_xml", "identity_in_xml", "owner_in_xml",
    "with_threads",
]  # fmt: skip

LINK_PORT = "trivisor.link"
"""The virtio-serial port's name; the agent finds the port by it."""

NAMESPACE = "urn:trivisor:node"
"""The XML namespace of the metadata that marks a domain as a node's."""

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
"""The XML namespace of arguments that libvirt passes to QEMU unchanged."""

_CARD_SLOT = 16
"""On the root bus, above the slots that libvirt assigns automatically."""


def domain_xml(guest: GuestSpec, *, node_uuid: str, run_as: str | None = None) -> str:
    """Return the libvirt domain of `guest`, marked as belonging to the node `node_uuid`.

    `run_as` ("+UID:+GID") is for a system libvirt.  Its QEMUs otherwise run as a user that may not
    have access to the node's directory, and libvirt would give that user the node's files.  Libvirt
    gives files of its own (a secret key, the sockets) to this user, unless that is root.
    """
    kvm = guest.accel == "kvm"
    domain = ET.Element("domain", type="kvm" if kvm else "qemu")
    _text(domain, "name", guest.domain)
    _text(domain, "uuid", guest.uuid)
    # For `virsh list --title` and `virsh desc`.
    _text(domain, "title", f"Trivisor guest {guest.name} of the node in {guest.directory}")
    option = f"--dir {shlex.quote(guest.directory)}"
    _text(
        domain,
        "description",
        f"One of the virtual machines that vote in the Trivisor node {node_uuid}. Trivisor "
        "restores it if it is changed, paused or ended by hand. To see the node: trivisor status "
        f"{option}. To stop it: trivisor down {option}",
    )
    mark = ET.SubElement(ET.SubElement(domain, "metadata"), f"{{{NAMESPACE}}}owner")
    mark.set("node", node_uuid)
    mark.set("guest", guest.name)
    _text(domain, "memory", str(guest.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(guest.vcpus))
    # The host must not merge equal pages of the guests (KSM): one fault of its memory would be a
    # fault of all replicas.
    backing = ET.SubElement(domain, "memoryBacking")
    ET.SubElement(backing, "nosharepages")
    if guest.ram_file:
        # A memfd is shared memory, opened by the host through /proc/PID/fd.  Unlike a file on disk
        # it needs no writing back and leaves nothing behind.
        ET.SubElement(backing, "source", type="memfd")
        ET.SubElement(backing, "access", mode="shared")
    boot = ET.SubElement(domain, "os")
    _text(boot, "type", "hvm", arch="x86_64", machine="q35")
    _text(boot, "kernel", guest.kernel)
    _text(boot, "initrd", guest.initrd)
    _text(boot, "cmdline", guest.cmdline)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    ET.SubElement(features, "vmport", state="off")
    if not kvm:
        tcg = ET.SubElement(features, "tcg")
        _text(tcg, "tb-cache", str(guest.translation_mib), unit="MiB")
    # TCG has no host-passthrough; its `maximum` is all that QEMU can emulate.
    cpu = ET.SubElement(domain, "cpu", mode="host-passthrough" if kvm else "maximum")
    if kvm:
        # A guest starts no guests.  Without these a snapshot contains no nested state, which older
        # kernels cannot save.
        for feature in ("svm", "vmx"):
            ET.SubElement(cpu, "feature", policy="disable", name=feature)
    clock = ET.SubElement(domain, "clock", offset="utc")
    ET.SubElement(clock, "timer", name="hpet", present="no")
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart" if guest.on_reset == "restart" else "destroy")
    _text(domain, "on_crash", "destroy")
    _devices(domain, guest)
    if run_as is not None:
        relabel = "no" if run_as.startswith("+0:") else "yes"
        label = ET.SubElement(domain, "seclabel", type="static", model="dac", relabel=relabel)
        _text(label, "label", run_as)
    if guest.ssh_port is not None:
        _card(domain, guest.ssh_port)
    ET.register_namespace("trivisor", NAMESPACE)
    ET.register_namespace("qemu", _QEMU)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def owner_in_xml(xml: str) -> tuple[str, str] | None:
    """Return (node uuid, guest name) from a domain's XML; None without a node's mark.

    Raises ValueError if `xml` is not XML.
    """
    try:
        mark = ET.fromstring(xml).find(f"metadata/{{{NAMESPACE}}}owner")
    except ET.ParseError as error:
        raise ValueError(f"not XML: {error}") from error
    return None if mark is None else (mark.get("node", ""), mark.get("guest", ""))


def identity_in_xml(xml: str) -> tuple[str, str]:
    """Return a domain's (name, uuid).  Raises ValueError if `xml` is not a domain's."""
    domain = ET.fromstring(xml)
    name, uuid = domain.findtext("name"), domain.findtext("uuid")
    if name is None or uuid is None:
        raise ValueError("a domain without a name or a uuid")
    return name, uuid


def disk_in_xml(xml: str) -> str:
    """Return the path of a domain's disk, "" without one.  Raises ValueError if it has no XML."""
    source = ET.fromstring(xml).find("devices/disk/source")
    return "" if source is None else source.get("file", "")


def with_threads(xml: str) -> str:
    """Return a guest's XML with threads for its disk instead of io_uring."""
    return xml.replace(' io="io_uring"', ' io="threads"')


def _devices(domain: ET.Element, guest: GuestSpec) -> None:
    devices = ET.SubElement(domain, "devices")
    _text(devices, "emulator", guest.emulator)
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    # A clean snapshot need not outlive the host, so QEMU need not wait for the host's disk.
    # A snapshot is read in thousands of pieces, one after the other.  With QEMU's default, threads,
    # each piece wakes another thread twice, which takes far longer than to read it.
    ET.SubElement(disk, "driver", name="qemu", type="qcow2", cache="unsafe", io="io_uring")
    ET.SubElement(disk, "source", file=guest.disk)
    ET.SubElement(disk, "target", dev="vda", bus="virtio")
    _slot(disk, 2)
    _slot(ET.SubElement(devices, "controller", type="virtio-serial", index="0", ports="2"), 3)
    ET.SubElement(devices, "controller", type="usb", model="none")
    serial = ET.SubElement(devices, "serial", type="unix")
    ET.SubElement(serial, "source", mode="bind", path=guest.console_socket)
    ET.SubElement(serial, "target", type="isa-serial", port="0")
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "source", mode="bind", path=guest.bound_link)
    ET.SubElement(channel, "target", type="virtio", name=LINK_PORT)
    ET.SubElement(channel, "address", type="virtio-serial", controller="0", bus="0", port="1")
    ET.SubElement(devices, "memballoon", model="none")


def _card(domain: ET.Element, port: int) -> None:
    """Give the domain a network card that is reachable only from `port` of the host's loopback.

    Uses QEMU's arguments: libvirt 9.0 supports neither `restrict` nor, without a helper program, a
    forwarded port.
    """
    network = f"user,id=ssh,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:{port}-:22"
    # No option ROM: the guest does not boot from this card.
    place = f"mac=52:54:00:00:00:01,bus=pcie.0,addr={_CARD_SLOT:#x},romfile="
    card = f"virtio-net-pci,netdev=ssh,{place}"
    line = ET.SubElement(domain, f"{{{_QEMU}}}commandline")
    for word in ("-netdev", network, "-device", card):
        ET.SubElement(line, f"{{{_QEMU}}}arg", value=word)


def _slot(device: ET.Element, slot: int) -> None:
    """Put a device at a slot of the root bus."""
    ET.SubElement(device, "address", type="pci", domain="0", bus="0", slot=str(slot), function="0")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
