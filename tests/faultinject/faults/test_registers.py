"""The debug stub's protocol with a substitute stub; test_guest_faults uses the real one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from faultinject.faults.registers import (
    REGISTERS,
    StubError,
    draw_flip,
    encode_packet,
    flip_registers,
)


class FakeStub:
    """Answers packets as QEMU does; ``spoil`` names the one thing it does wrong."""

    def __init__(self, spoil: str = "") -> None:
        self.spoil = spoil
        self.registers = bytearray(range(17 * 8)) + bytes(40)
        self.detached = False
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode_packet("T05thread:01;"))  # as when the processor stops
        try:
            while True:
                await reader.readuntil(b"$")
                text = (await reader.readuntil(b"#"))[:-1].decode()
                await reader.readexactly(2)
                writer.write(b"+" + self.answer(text))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended.set()
        finally:
            writer.close()

    def answer(self, text: str) -> bytes:
        if text == "g":
            packet = encode_packet(self.registers.hex())
            return (
                packet[:-1] + (b"0" if packet[-1:] != b"0" else b"1")
                if self.spoil == "checksum"
                else packet
            )
        if text.startswith("G"):
            if self.spoil == "refuses":
                return encode_packet("E22")
            if self.spoil != "forgets":
                data = bytes.fromhex(text[1:])
                self.registers[: len(data)] = data
        elif text == "D":
            self.detached = True
        return encode_packet("OK")


async def run(stub: FakeStub, path: Path, seed: int, dose: int) -> list[str]:
    server = await asyncio.start_unix_server(stub.serve, str(path))
    async with server:
        try:
            return [str(flip) for flip in await flip_registers(path, seed, dose)]
        finally:
            await asyncio.wait_for(stub.ended.wait(), 10)


@pytest.mark.parametrize("dose", [1, 5])
async def test_only_the_drawn_bits_are_flipped_and_the_processor_continues(
    scratch: Path, dose: int
) -> None:
    stub = FakeStub()
    before = bytes(stub.registers)
    flips = await run(stub, scratch / "s", 11, dose)
    changed = [
        number for number in range(len(before) * 8)
        if (before[number // 8] ^ stub.registers[number // 8]) >> number % 8 & 1
    ]  # fmt: skip
    assert sorted(changed) == sorted(register * 64 + bit for register, bit in draw_flip(11, dose))
    assert stub.detached
    assert len(flips) == dose
    assert flips[0].split()[0] in REGISTERS


@pytest.mark.parametrize(
    "spoil, message",
    [("forgets", "do not hold"), ("refuses", "rejects 'G': E22"), ("checksum", "damaged")],
)
async def test_flip_is_an_error_when_it_is_not_read_back(
    scratch: Path, spoil: str, message: str
) -> None:
    with pytest.raises(StubError, match=message):
        await run(FakeStub(spoil), scratch / "s", 1, 1)


async def test_missing_stub_is_an_error(scratch: Path) -> None:
    with pytest.raises(StubError, match="No such file"):
        await flip_registers(scratch / "none", 1)


@pytest.mark.parametrize("dose", [0, 17 * 64 + 1])
def test_invalid_dose_is_an_error(dose: int) -> None:
    with pytest.raises(ValueError, match="1 to 1088 flips"):
        draw_flip(1, dose)
