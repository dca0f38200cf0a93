"""The fault of the how-to page works as the page says."""

from __future__ import annotations

import re
from typing import Any

from faultinject.faults import FaultLayer, catalogue, lies
from guests.protocol.wire import Decoder, FrameKind, encode, encode_replies
from tests.project.tree import ROOT

PAGE = ROOT / "docs/howto/fault.md"
REPLIES = [b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\ntwelve bytes", b"HTTP/1.1 204 No Content"]


def test_example_of_a_fault_cuts_replies_and_is_described() -> None:
    code, row = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    module: dict[str, Any] = vars(lies) | {"KINDS": dict(lies.KINDS)}
    exec(code, module)
    lie: lies.Lie = module["KINDS"]["cut-reply"](b"seed")
    data = b"".join(encode(FrameKind.REPLY, 1, at, reply) for at, reply in enumerate(REPLIES))
    data += encode(FrameKind.REPLIES, 1, 7, encode_replies(REPLIES))
    frames = Decoder().feed(lie.feed(data))
    for frame, reply in zip(frames[:2], REPLIES, strict=True):
        assert reply.startswith(frame.payload)
        assert 1 <= len(reply) - len(frame.payload) <= 8
    assert lie.count == 3
    kind, fault = eval(row, vars(catalogue))
    assert (kind, fault.layer, fault.fails) == ("cut-reply", FaultLayer.LINK, True)
    assert kind not in catalogue.CATALOGUE, "the example is a fault by now: invent another one"
