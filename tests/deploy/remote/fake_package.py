"""A small Debian package named trivisor, whose node is one Python program without guests."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

__all__ = ["SETTINGS", "build_package"]

SETTINGS = """\
# The node's settings: options of `trivisor up`.
# vote = "2/3"
"""

NODE = """\
import http.server
import json
import os
import socket
import tomllib

settings = tomllib.loads(open("/etc/trivisor/node.toml").read())
guests = int(settings.get("vote", "2/3").partition("/")[2])


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"status": "ready", "active": guests}).encode()
        vote = {} if self.path.startswith("/readyz") else {"Trivisor-Vote": "2/3; dissent=; seq=7"}
        self.send_response(200 if not vote else 404)
        for name, value in (vote | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


server = http.server.HTTPServer(("127.0.0.1", 0), Answer, bind_and_activate=False)
names = os.environ["LISTEN_FDNAMES"].split(":")
server.socket = socket.socket(fileno=3 + names.index("http"))
server.serve_forever()
"""

UNITS = {
    "trivisor.service": """\
[Unit]
Requires=trivisor-http.socket trivisor-voter.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={start}
[Install]
WantedBy=multi-user.target
""",
    "trivisor-voter.service": """\
[Unit]
Requires=trivisor-http.socket
PartOf=trivisor.service
[Service]
ExecStart=/usr/bin/python3 /usr/lib/trivisor/node.py
""",
    "trivisor-http.socket": """\
[Socket]
ListenStream=127.0.0.1:8080
FileDescriptorName=http
Service=trivisor-voter.service
[Install]
WantedBy=sockets.target
""",
}  # fmt: skip

SCRIPTS = {
    "postinst": """\
#!/bin/sh
set -e
systemctl daemon-reload
systemctl enable --quiet trivisor.service trivisor-http.socket
{postinst}
systemctl restart trivisor.service || true
""",
    "prerm": """\
#!/bin/sh
systemctl stop trivisor-http.socket trivisor.service trivisor-voter.service || true
[ "$1" = upgrade ] || systemctl disable --quiet trivisor.service trivisor-http.socket || true
""",
    "postrm": """\
#!/bin/sh
set -e
if [ "$1" = purge ]; then rm -rf /var/lib/trivisor; fi
systemctl daemon-reload || true
""",
}  # fmt: skip


def build_package(
    file: Path,
    *,
    package: str = "trivisor",
    version: str = "0.1.0",
    depends: str = "python3",
    start: str = "/bin/true",
    postinst: str = "",
    weight: int = 0,
) -> Path:
    """Write the package; return its path.

    ``start``: the command that trivisor.service runs.  ``postinst``: lines of that script.
    ``weight``: bytes of another file in it that cannot be compressed.
    """
    data = {
        "etc/trivisor/node.toml": SETTINGS,
        "usr/lib/trivisor/node.py": NODE,
        **{f"lib/systemd/system/{name}": text.replace("{start}", start)
           for name, text in UNITS.items()},
    }  # fmt: skip
    contents = {name: text.encode() for name, text in data.items()}
    if weight:
        contents["usr/lib/trivisor/weight"] = os.urandom(weight)
    size = sum(map(len, contents.values())) >> 10
    control = {
        "control": f"Package: {package}\nVersion: {version}\nArchitecture: amd64\n"
        f"Maintainer: Test <test@example.org>\nDepends: {depends}\nInstalled-Size: {size}\n"
        "Description: test\n",
        "conffiles": "/etc/trivisor/node.toml\n",
        **{name: text.replace("{postinst}", postinst) for name, text in SCRIPTS.items()},
    }
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": _tar({name: text.encode() for name, text in control.items()}),
        "data.tar.xz": _tar(contents),
    }
    with file.open("wb") as archive:
        archive.write(b"!<arch>\n")
        for name, body in members.items():
            archive.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode())
            archive.write(body + b"\n" * (len(body) % 2))
    return file


def _tar(files: dict[str, bytes]) -> bytes:
    output = io.BytesIO()
    made: set[str] = set()
    with tarfile.open(fileobj=output, mode="w:xz", preset=0) as archive:
        for name, content in sorted(files.items()):
            for parent in reversed(Path(name).parents):
                if str(parent) not in made:
                    made.add(str(parent))
                    entry = tarfile.TarInfo(f"./{parent}" if str(parent) != "." else "./")
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(entry)
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            entry.mode = 0o755 if name in SCRIPTS else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return output.getvalue()
