"""Which wrong replies a client would believe."""

from __future__ import annotations

import pytest

from faultinject.history.model import is_believed, status_of


@pytest.mark.parametrize(
    ("reply", "status", "believed"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nother bytes", 200, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, True),
        (b"HTTP/1.1 304 Not Modified\r\n", 304, True),
        (b"HTTP/1.1 404 Not Found\r\n\r\nno such key", 404, True),
        (b"HTTP/1.1 412 Precondition Failed\r\n", 412, True),
        (b"HTTP/1.1 409 Conflict\r\n", 409, True),
        (b"HTTP/1.1 401 Unauthorized\r\n", 401, True),
        (b"HTTP/1.1 400 Bad Request\r\n", 400, False),
        (b"HTTP/1.1 405 Method Not Allowed\r\n", 405, False),
        (b"HTTP/1.1 413 Content Too Large\r\n", 413, False),
        (b"HTTP/1.1 500 Internal Server Error\r\n", 500, False),
        (b"HTTP/1.1 503 Service Unavailable\r\n", 503, False),
        (b"HTTP/1.1 100 Continue\r\n", 0, False),
        (b"HT;P/1.1 201 Created\r\n", 0, False),
        (b"HTTP/1.1 2\xc31 Created\r\n", 0, False),
        (b"HTTP/1.1 20", 0, False),
        (b"", 0, False),
    ],
)
def test_a_client_believes_answers_and_not_errors(
    reply: bytes, status: int, believed: bool
) -> None:
    assert (status_of(reply), is_believed(reply)) == (status, believed)
