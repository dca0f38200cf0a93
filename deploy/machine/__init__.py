"""Virtual machines through libvirt and QEMU: specification, domain, guest, snapshots, console,
shell."""

__all__: list[str] = []
