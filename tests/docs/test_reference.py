"""Generated tables say what the code does; written ones name what the code has."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.node.records import Layout
from docs.reference.generated import TABLES, layout, problems
from guests.protocol.wire import FLAG_READ_ONLY, Decoder, FrameKind, encode
from tests.project.tree import ROOT
from voter.core.events import Fail, Failure
from voter.frontend.problem import problem_of_failure, problem_of_status
from voter.native_protocol import decode_response

NATIVE = ROOT / "docs/reference/native.md"
FILES = ROOT / "docs/reference/files.md"
ELSEWHERE = {("blocked", "403"), ("roles", "409"), ("stale-roles", "409")}
"""Sent by the front end to a blocked client, and by the control socket: see their own tests."""
STATUSES = (400, 401, 403, 404, 405, 408, 413, 414, 417, 431, 501, 502, 503, 505)


@pytest.mark.parametrize("name", TABLES)
def test_table_has_no_empty_meaning(name: str) -> None:
    lines = TABLES[name]()
    assert len(lines) > 4
    assert [line for line in lines if line.endswith("|  |")] == []


def test_problems_are_those_that_the_front_end_sends() -> None:
    codes = {value for name, value in vars(Failure).items() if name.isupper()}
    replies = [problem_of_failure(Fail(ticket=1, failure=code, detail="")) for code in codes]
    replies += [problem_of_status(status, "") for status in STATUSES]
    sent = {
        (re.findall(rb'"type":"([^"]+)', reply.body)[0].decode(), str(reply.status))
        for reply in replies
    }
    listed = {tuple(re.findall(r"^\| `(\S+)` \| (\d+)", line)[0]) for line in problems()[2:]}
    assert listed == sent | {(f"urn:trivisor:{kind}", status) for kind, status in ELSEWHERE}


def bytes_of_the_example() -> Iterator[bytes]:
    """Yield the frames of the byte-by-byte example."""
    page = NATIVE.read_text()
    example = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    for frame in re.split(r"^(?:client|voter)", example, flags=re.MULTILINE)[1:]:
        yield bytes.fromhex("".join(frame.split()))


def test_example_frames_are_those_of_the_protocol() -> None:
    frames = [frame for data in bytes_of_the_example() for frame in Decoder().feed(data)]
    assert [frame.kind for frame in frames] == [
        FrameKind.OPEN, FrameKind.REQUEST, FrameKind.RESPONSE,
    ]  # fmt: skip
    request, response = frames[1:]
    assert (request.seq, request.flags) == (1, FLAG_READ_ONLY)
    assert request.payload == b"GET /kv/colour HTTP/1.1\r\n\r\n"
    vote, reply = decode_response(response.payload)
    assert vote == (9, 2, 0)
    assert reply.endswith(b"\r\n\r\nblue")
    assert [encode(f.kind, f.epoch, f.seq, f.payload, f.flags) for f in frames] == [
        *bytes_of_the_example()
    ]


def test_layout_of_another_struct_than_described_is_an_error() -> None:
    rows = layout(struct.Struct(">H8sB"), [("a", "x"), ("b", "y"), ("c", "z")])
    assert rows[2:] == [
        "| 0 | 2 | a (unsigned) | x |",
        "| 2 | 8 | b (bytes) | y |",
        "| 10 | 1 | c (unsigned) | z |",
    ]
    with pytest.raises(ValueError, match="has 2 fields, not 1"):
        layout(struct.Struct(">HB"), [("a", "x")])


def test_every_file_of_a_node_is_listed() -> None:
    page = FILES.read_text()
    node = Layout(Path("/node"))
    files = {path.name for path in vars(node).values() if isinstance(path, Path)} - {"node"}
    files |= {node.disk("g1").name, node.proxy_link("g1").name}
    assert {name for name in files if f"`{name}" not in page} == set()
