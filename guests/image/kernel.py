"""The guest's kernel: vmlinux (an ELF file) extracted from Debian's bzImage, and its command line.

QEMU starts an ELF kernel at its PVH entry directly, so the guest need not unpack it.  Under TCG
that saves 0.6 s of each boot of about 4.5 s.
"""

from __future__ import annotations

import ctypes
import struct

from guests.image.host import ImageError

__all__ = ["COMMAND_LINE", "extract_vmlinux"]

COMMAND_LINE = "console=ttyS0 quiet panic=0 mitigations=off cryptomgr.notests no_timer_check"
"""The kernel's command line; a caller may append to it.  ``panic=0``: a panicking guest hangs, its
QEMU lives, and reverting to a snapshot takes 0.1 s where a cold start takes seconds.
``no_timer_check``: the kernel otherwise panics ("IO-APIC + timer doesn't work") if the host is so
busy that QEMU delivers no timer interrupt for ten ticks of the guest."""

_LIBRARY = "liblz4.so.1"
_ELF = b"\x7fELF"
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_BLOCK = 8 << 20
"""Largest unpacked size of a block of the legacy LZ4 format, in bytes."""

# Offsets in the header of a bzImage: Documentation/arch/x86/boot.rst in the kernel's sources.
_SETUP_SECTORS = 0x1F1
_HEADER_MAGIC = 0x202
_PAYLOAD = 0x248
_SECTOR = 512


def extract_vmlinux(bzimage: bytes) -> bytes:
    """Return the ELF kernel in ``bzimage``.  Raises ImageError if it cannot be unpacked."""
    if len(bzimage) < _PAYLOAD + 8 or bzimage[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise ImageError(
            "the packaged kernel is no x86 bzImage: another kernel package is needed",
            error_code="TV0415",
        )
    start = ((bzimage[_SETUP_SECTORS] or 4) + 1) * _SECTOR
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    payload = bzimage[start + offset : start + offset + length]
    if not payload.startswith(_LZ4_LEGACY):
        raise ImageError(
            f"the packaged kernel is not compressed by LZ4 (it begins {payload[:4].hex()}): "
            "guests/image/kernel.py must learn its format",
            error_code="TV0415",
        )
    # The kernel's build appends the unpacked size to the compressed data.
    vmlinux = _unpack(payload[len(_LZ4_LEGACY) : -4])
    if not vmlinux.startswith(_ELF) or len(vmlinux) != struct.unpack("<I", payload[-4:])[0]:
        raise ImageError(
            "the packaged kernel is damaged: `apt-get clean` and build again", error_code="TV0415"
        )
    return vmlinux


def _unpack(blocks: bytes) -> bytes:
    """Unpack LZ4 blocks, each preceded by its length."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        # apt itself needs it, so a Debian host has it.
        raise ImageError(
            f"{_LIBRARY} is missing: `apt-get install liblz4-1`", error_code="TV0410"
        ) from error
    room = ctypes.create_string_buffer(_BLOCK)
    unpacked = bytearray()
    position = 0
    while position + 4 <= len(blocks):
        (length,) = struct.unpack_from("<I", blocks, position)
        position += 4
        block = blocks[position : position + length]
        size = library.LZ4_decompress_safe(block, room, len(block), _BLOCK)
        if size <= 0 or len(block) != length:
            raise ImageError(
                "the packaged kernel is damaged: `apt-get clean` and build again",
                error_code="TV0415",
            )
        unpacked += memoryview(room)[:size]
        position += length
    return bytes(unpacked)
