"""Well-formed HTTP requests by hypothesis, and the voter's reader for them."""

from __future__ import annotations

from hypothesis import strategies as st

from voter.frontend.request import HttpRequest, RequestReader

__all__ = ["parse", "requests"]


def parse(data: bytes, *, piece: int | None = None) -> list[HttpRequest]:
    """Read all requests out of `data`, fed in pieces.  Raises BadRequest."""
    reader, found = RequestReader(1 << 20), []
    for at in range(0, len(data), piece or len(data) or 1):
        reader.feed(data[at : at + (piece or len(data))])
        while (request := reader.next()) is not None or reader.more:
            if request is not None:
                found.append(request)
    return found


TOKENS = st.text("abcXYZ019-_.!~", min_size=1, max_size=8).map(str.encode)
VALUES = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20
).map(lambda text: text.encode("latin-1"))
TARGETS = st.text("abc/%7?=&;:@!$'()*+,~._-", max_size=30).map(lambda text: b"/" + text.encode())
FRAMING = {b"host", b"content-length", b"transfer-encoding", b"expect", b"connection", b"upgrade"}


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A well-formed request."""
    method = draw(st.sampled_from([b"GET", b"PUT", b"POST", b"DELETE", b"PATCH", b"OPTIONS"]))
    body = draw(st.binary(max_size=60))
    lines = [b"%b %b HTTP/1.1" % (method, draw(TARGETS)), b"Host: example"]
    for name, value in draw(st.lists(st.tuples(TOKENS, VALUES), max_size=5)):
        if name.lower() not in FRAMING and not name.lower().startswith(b"sec-"):
            lines.append(name + b":" + value)
    if draw(st.booleans()):
        sizes = draw(st.lists(st.integers(1, 20), max_size=5))
        lines.append(b"Transfer-Encoding: chunked")
        pieces, at = [], 0
        for size in [*sizes, len(body)]:
            if piece := body[at : at + size]:
                pieces.append(b"%x\r\n%b\r\n" % (len(piece), piece))
            at += size
        sent = b"".join(pieces) + b"0\r\n\r\n"
    else:
        lines.append(b"Content-Length: %d" % len(body))
        sent = body
    return b"\r\n".join([*lines, b"", b""]) + sent
