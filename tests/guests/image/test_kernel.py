"""Unpacking a kernel: a small bzImage made here, and damaged ones."""

from __future__ import annotations

import struct

import pytest

from guests.image.kernel import extract_vmlinux
from tests.errors import raises

VMLINUX = b"\x7fELF" + bytes(range(200)) * 3


def literals(data: bytes) -> bytes:
    """`data` as one LZ4 block that holds it as it is (16 to 269 + 255 n bytes of literals)."""
    rest = len(data) - 15
    return b"\xf0" + b"\xff" * (rest // 255) + bytes([rest % 255]) + data


def bzimage(payload: bytes) -> bytes:
    setup = bytearray(1024)  # the boot sector and one sector of setup
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 32, len(payload))
    return bytes(setup) + bytes(32) + payload + b"what follows"


def compressed(data: bytes) -> bytes:
    half = len(data) // 2
    blocks = [literals(data[:half]), literals(data[half:])]
    packed = b"".join(struct.pack("<I", len(block)) + block for block in blocks)
    return b"\x02\x21\x4c\x18" + packed + struct.pack("<I", len(data))


def test_kernel_is_extracted() -> None:
    assert extract_vmlinux(bzimage(compressed(VMLINUX))) == VMLINUX


@pytest.mark.parametrize(
    "image, message",
    [
        (b"", "no x86 bzImage"),
        (b"\0" * 4096, "no x86 bzImage"),
        (bzimage(b"\xfd7zXZ" + bytes(50)), "not compressed by LZ4"),
        (bzimage(compressed(b"not ELF at all" * 9)), "damaged"),
        (bzimage(compressed(VMLINUX)[:-9] + struct.pack("<I", len(VMLINUX))), "damaged"),
    ],
)
def test_invalid_kernel_is_an_error(image: bytes, message: str) -> None:
    with raises("TV0415", match=message):
        extract_vmlinux(image)
