"""One run of a service for a check: a process under a given condition.

The parent starts it by its path, so that it loads only what it needs before it replaces clocks.  It
reads a job (JSON) from standard input, and writes one line of JSON per step to standard output.

Before it loads the service, it replaces the clocks and the sources of randomness of the standard
library.  The clock starts at a given time and advances at each reading; randomness has a given
seed.  So two runs under one condition differ only in what a new process has: its id, the addresses
of objects, and what the service gets from the system in other ways.

It replaces the functions of ``time``, ``datetime.now`` and similar ones, the ``random`` module's
shared state, and ``os.urandom`` (and so ``secrets`` and ``uuid4``).  It cannot replace randomness
that C code obtains itself, as in ``random.Random()`` without a seed: that shows up as a difference
between two processes.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date as RealDate
from datetime import datetime as RealDatetime
from pathlib import Path
from typing import Any, TextIO

from guests.answer import answer
from guests.protocol.message import MessageError, encode_request
from guests.service import Context, Service, ServiceError, load, state_digest

__all__ = ["FakeClock", "main", "own_requests", "replace_clock", "replace_randomness"]

Job = dict[str, Any]


class FakeClock:
    """A clock that starts at ``start_ns`` and advances by ``tick_ns`` at each reading."""

    def __init__(self, start_ns: int, tick_ns: int) -> None:
        self._now = start_ns
        self._tick = tick_ns

    def read_ns(self) -> int:
        """Return the time in nanoseconds since the epoch."""
        self._now += self._tick
        return self._now

    def read(self) -> float:
        """Return the time in seconds since the epoch."""
        return self.read_ns() / 1e9


def replace_clock(clock: FakeClock) -> None:
    """Replace the process's clocks by ``clock``, for modules that are loaded later."""
    by_name: dict[str, Callable[..., object]] = {}
    for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time"):
        by_name[name] = clock.read
        by_name[f"{name}_ns"] = clock.read_ns
    by_name["clock_gettime"] = lambda _: clock.read()
    by_name["clock_gettime_ns"] = lambda _: clock.read_ns()
    gmtime, localtime, strftime, asctime, ctime = (
        time.gmtime, time.localtime, time.strftime, time.asctime, time.ctime
    )  # fmt: skip

    def at(seconds: float | None) -> float:
        return clock.read() if seconds is None else seconds

    by_name["gmtime"] = lambda seconds=None: gmtime(at(seconds))
    by_name["localtime"] = lambda seconds=None: localtime(at(seconds))
    by_name["ctime"] = lambda seconds=None: ctime(at(seconds))
    by_name["asctime"] = lambda parts=None: asctime(parts or localtime(clock.read()))
    by_name["strftime"] = lambda text, parts=None: strftime(text, parts or localtime(clock.read()))
    for name, function in by_name.items():
        setattr(time, name, function)
    _replace_datetime(clock)


def _replace_datetime(clock: FakeClock) -> None:
    class AlsoReal(type):
        """Accepts instances of the real classes as instances of the replacements."""

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, cls.__mro__[1])

    class Datetime(RealDatetime, metaclass=AlsoReal):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Datetime:
            return cls.fromtimestamp(clock.read(), tz)

        @classmethod
        def utcnow(cls) -> Datetime:
            return cls.fromtimestamp(clock.read(), datetime.UTC).replace(tzinfo=None)

        @classmethod
        def today(cls) -> Datetime:
            return cls.now()

    class Date(RealDate, metaclass=AlsoReal):
        @classmethod
        def today(cls) -> Date:
            return cls.fromtimestamp(clock.read())

    for name, replaced in (("datetime", Datetime), ("date", Date)):
        replaced.__name__ = replaced.__qualname__ = name
        replaced.__module__ = "datetime"
        setattr(datetime, name, replaced)


def replace_randomness(seed: int) -> None:
    """Seed the standard library's sources of randomness."""
    source = random.Random(seed)
    random.seed(source.getrandbits(64))
    os.urandom = source.randbytes
    os.getrandom = lambda size, flags=0: source.randbytes(size)
    vars(random)["_urandom"] = source.randbytes  # SystemRandom uses this reference


def move_addresses(amount: int) -> list[bytes]:
    """Allocate ``amount`` objects of each small size, so that later ones get other addresses."""
    return [bytes(size) for size in range(1, 512, 16) for _ in range(amount)]


def main() -> int:
    """Run one job; return 0, whatever its result."""
    # The service's output must not get into the results.
    results = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    job: Job = json.load(sys.stdin)
    ballast = move_addresses(job["ballast"])
    replace_randomness(job["random"])
    replace_clock(FakeClock(job["clock_ns"], job["tick_ns"]))
    try:
        service_class = load(job["service"])
        service = service_class()
        if job["describe"]:
            _write(results, describe(service_class))
        else:
            for line in run(service, job):
                _write(results, line)
        _write(results, {"end": True})
    except ServiceError as error:
        _write(results, {"error": str(error)})
    except Exception as error:  # noqa: BLE001 - whatever the service raises is the result
        _write(results, {"error": f"{type(error).__name__}: {error}"})
    del ballast
    return 0


def _write(results: TextIO, line: dict[str, Any]) -> None:
    json.dump(line, results, allow_nan=False)
    results.write("\n")
    results.flush()  # so that this step is known even if the next request never ends


def run(service: Service, job: Job) -> Iterator[dict[str, Any]]:
    """Apply the job's requests; yield a line for each: number, reply and digest afterwards."""
    start = job["start"]
    if job["state"]:
        service.restore(job["state"].encode("latin-1"))
    yield {"n": start, "digest": service.digest().hex(), **_snapshot(service, start, job)}
    for n, (request, seq, time_ns, seed, caller, read_only) in enumerate(job["requests"], 1):
        if n <= start or n in job["left_out"]:
            continue
        context = Context(seq, time_ns, bytes.fromhex(seed), caller, read_only)
        reply = answer(service, request.encode("latin-1"), context)
        yield {
            "n": n,
            "reply": reply.decode("latin-1"),
            "digest": service.digest().hex(),
            **_snapshot(service, n, job),
        }


def _snapshot(service: Service, n: int, job: Job) -> dict[str, str]:
    if n not in job["snapshots"]:
        return {}
    state = b"".join(service.snapshot())
    if state_digest(iter((state,))) != service.digest():
        raise ServiceError("digest() is not the digest of snapshot()", error_code="TV0407")
    return {"state": state.decode("latin-1")}


def own_requests(service_class: type[Service]) -> list[bytes]:
    """Return the CHECK_REQUESTS of a service's module, as canonical bytes.

    Raises ServiceError that names a wrong entry.
    """
    own: list[bytes] = []
    for entry in getattr(sys.modules[service_class.__module__], "CHECK_REQUESTS", ()):
        try:
            method, target, body, *rest = entry
            own.append(encode_request(method, target, dict(*rest).items(), body))
        except (MessageError, TypeError, ValueError, AttributeError) as error:
            form = "(method, target, body) or (method, target, body, headers)"
            text = f"CHECK_REQUESTS: {entry!r} is not {form}: {error}"
            raise ServiceError(text, error_code="TV0407") from error
    return own


def describe(service_class: type[Service]) -> dict[str, Any]:
    """Return the service's name and state format, its CHECK_REQUESTS as canonical bytes, and paths
    in its source.
    """
    own = [request.decode("latin-1") for request in own_requests(service_class)]
    paths = _find_paths(sys.modules[service_class.__module__].__file__)
    return {
        "name": service_class.name,
        "state_format": service_class.state_format,
        "requests": own,
        "paths": paths,
    }


def _find_paths(file: str | None) -> list[str]:
    """Return the strings of a source file that look like the path of a request, in order."""
    import ast  # noqa: PLC0415 - slow to load, and only one run needs it

    if file is None:
        return []
    found: dict[str, None] = {}
    for node in ast.walk(ast.parse(Path(file).read_bytes())):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, bytes):
            text = text.decode("latin-1")
        if (
            isinstance(text, str)
            and text.startswith("/")
            and len(text) <= 64
            and text.isascii()
            and text.isprintable()
            and " " not in text
        ):
            found[text] = None
    return list(found)[:32]


if __name__ == "__main__":
    sys.exit(main())
