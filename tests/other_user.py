"""Code that runs as another user of this host: for sockets and files that it must not reach."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

import pytest

__all__ = ["CALL", "OTHER", "PROBE", "run_as"]

OTHER = 0x7FFF_FFF0
"""A user and group that no account has."""


CALL = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    lines = [" ".join([*sys.argv[2:], "HTTP/1.1"]), "Host: a", "Connection: close", "", ""]
    sock.sendall("\\r\\n".join(lines).encode())
    print(sock.makefile("rb").read().decode())
"""
"""Makes one HTTP request on a unix socket, and prints the answer."""


PROBE = """
import ctypes, json, os, socket, sys
def attempt(kind, target):
    if kind == "read":
        open(target, "rb").read(1)
    elif kind == "write":
        os.close(os.open(target, os.O_WRONLY))
    elif kind == "list":
        os.listdir(target)
    elif kind == "make":
        os.mkdir(target)
    elif kind == "kill":
        os.kill(int(target), 0)
    elif kind == "attach":
        if ctypes.CDLL(None, use_errno=True).ptrace(16, int(target), 0, 0):
            raise OSError(ctypes.get_errno(), "ptrace")
    elif kind == "connect":
        os.chdir(os.path.dirname(target))  # the path may be too long
        socket.socket(socket.AF_UNIX).connect(os.path.basename(target))
    else:
        raise ValueError(kind)
reached = []
for kind, target in json.loads(sys.argv[1]):
    try:
        attempt(kind, target)
        reached.append([kind, target])
    except PermissionError:
        pass
print(json.dumps(reached))
"""
"""Tries each of the actions in its argument (JSON: kind and target), and prints those it may do.

Any other error than that of a missing permission ends it: a target that does not exist is none.
"""


def run_as(
    code: str, *arguments: object, uid: int = OTHER, gid: int = OTHER, groups: Sequence[int] = ()
) -> str:
    """Run Python as this user and return what it prints; skip the test if that is not possible.

    It gets no capability and none of our modules.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can run a process as another user")

    def become() -> None:
        os.setgroups(list(groups))
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)

    done = subprocess.run(
        ["/usr/bin/python3", "-c", code, *map(str, arguments)], preexec_fn=become, cwd="/",
        capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": os.environ.get("PATH", "/usr/bin")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
