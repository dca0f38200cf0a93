"""Runs on the host under test: writes one key after another, and records every reply.

Usage: writer.py RECORD NAME.  Its keys begin with NAME.  It ends at SIGTERM.  Each line of the
record is a JSON array: number of the key, seconds since the start, and the status; 0 if no reply
came.  A write is repeated, with its Idempotency-Key, until it is acknowledged.
"""

from __future__ import annotations

import http.client
import json
import signal
import sys
import time

__all__ = ["main"]

PORT = 8080
PAUSE = 0.02
"""Seconds between two requests."""


def main(path: str, name: str) -> None:
    """Write until the signal comes."""
    going = True

    def stop(*_: object) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    start, number = time.monotonic(), 0
    with open(path, "w", buffering=1) as record:
        while going:
            status = put(f"{name}{number}", f"value {number}")
            record.write(json.dumps([number, time.monotonic() - start, status]) + "\n")
            number += 200 <= status < 300
            time.sleep(PAUSE)  # a rate, not a condition


def put(key: str, value: str) -> int:
    """Write a value; return the status."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        headers = {"Idempotency-Key": f'"{key}"'}
        connection.request("PUT", f"/kv/{key}", value, headers)
        reply = connection.getresponse()
        reply.read()
        return reply.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
