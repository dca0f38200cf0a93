"""Bit flips in general registers, through QEMU's debug stub (GDB's remote protocol).

Packets are ``$data#xx``, each acknowledged by ``+``.  ``g`` reads the registers as hex in GDB's
order: rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8 to r15, rip, 8 bytes each, little endian.  ``G``
writes as many as are given; ``D`` detaches, and the processor continues.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "REGISTERS",
    "RegisterFlip",
    "StubError",
    "draw_flip",
    "encode_packet",
    "flip_registers",
]

REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{number}" for number in range(8, 16)),
    "rip",
)
"""In the protocol's order; each has 64 bits."""

_TIMEOUT = 3.0
"""Seconds for the whole conversation before it fails (milliseconds are usual)."""


class StubError(Exception):
    """The debug stub failed, or did not carry out a command."""


class RegisterFlip(NamedTuple):
    """A bit that was flipped, and the register before and after, as read back."""

    register: str
    bit: int
    before: int
    after: int

    def __str__(self) -> str:
        return f"{self.register} bit {self.bit}: {self.before:#x} to {self.after:#x}, read back"


def draw_flip(seed: int, dose: int) -> list[tuple[int, int]]:
    """Return ``dose`` distinct pairs of register number and bit.  Raises ValueError."""
    room = len(REGISTERS) * 64
    if not 1 <= dose <= room:
        raise ValueError(f"a dose is 1 to {room} flips of registers, not {dose}")
    return [divmod(number, 64) for number in random.Random(seed).sample(range(room), dose)]


async def flip_registers(stub: Path, seed: int, dose: int = 1) -> list[RegisterFlip]:
    """Stop the processor, flip bits, read them back, continue.  Raises StubError, ValueError."""
    flips = draw_flip(seed, dose)
    try:
        async with asyncio.timeout(_TIMEOUT):
            reader, writer = await asyncio.open_unix_connection(str(stub))
            try:
                return await _flip(_Stub(reader, writer), flips)
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError) as error:
        raise StubError(f"the debug stub: {error!r}") from error


async def _flip(stub: _Stub, flips: list[tuple[int, int]]) -> list[RegisterFlip]:
    before = await stub.read()
    values = list(before)
    for register, bit in flips:
        values[register] ^= 1 << bit
    await stub.write(values)
    after = await stub.read()
    await stub.ask("D")
    if after != values:
        raise StubError("the registers do not hold what the debug stub wrote")
    return [
        RegisterFlip(REGISTERS[register], bit, before[register], after[register])
        for register, bit in flips
    ]


class _Stub:
    """A conversation with a debug stub."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, text: str) -> str:
        """Send a packet; return and acknowledge its answer.  Raises StubError."""
        self._writer.write(encode_packet(text))
        answer = ""
        while not answer or answer.startswith(("T", "S")):  # an unrequested report that it stopped
            await self._reader.readuntil(b"$")
            data = (await self._reader.readuntil(b"#"))[:-1]
            if int(await self._reader.readexactly(2), 16) != sum(data) % 256:
                raise StubError("a packet of the debug stub is damaged")
            self._writer.write(b"+")
            answer = data.decode("ascii")
            if not answer or answer.startswith("E"):
                raise StubError(f"the debug stub rejects {text[:1]!r}: {answer or 'empty'}")
        return answer

    async def read(self) -> list[int]:
        """Return the registers' values.  Raises StubError."""
        data = bytes.fromhex(await self.ask("g"))[: len(REGISTERS) * 8]
        if len(data) < len(REGISTERS) * 8:
            raise StubError(f"the debug stub returned only {len(data)} bytes of registers")
        return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]

    async def write(self, values: list[int]) -> None:
        """Write the registers' values.  Raises StubError."""
        data = b"".join(value.to_bytes(8, "little") for value in values)
        await self.ask(f"G{data.hex()}")


def encode_packet(text: str) -> bytes:
    """Return the packet with this text."""
    data = text.encode("ascii")
    return b"$%b#%02x" % (data, sum(data) % 256)
