"""The terminal cast at the README's top: a recording of the demo, and an animated SVG made of it.

    python docs/cast.py

records `trivisor demo` on this host (half a minute) as an asciicast, and draws it.  The SVG shows
each line at the time at which it was printed; where animation is not wanted, all of them.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from fcntl import ioctl
from io import StringIO
from pathlib import Path
from struct import pack
from termios import TIOCSWINSZ

from rich.console import Console
from rich.text import Text

__all__ = ["CAST", "SVG", "draw", "record"]

FIGURES = Path(__file__).resolve().parent / "figures"
CAST, SVG = FIGURES / "demo.cast", FIGURES / "demo.svg"
COLUMNS, ROWS = 100, 50
SPEED = 2.0
"""How many times faster than recorded the SVG runs."""
STYLE = """
.{unique}-matrix text {{ animation: {unique}-show 1ms both; }}
@keyframes {unique}-show {{ from {{ visibility: hidden; }} to {{ visibility: visible; }} }}
@media (prefers-reduced-motion: reduce) {{ .{unique}-matrix text {{ animation: none; }} }}
"""
LINE = '.{unique}-matrix [clip-path$="line-{number})"] {{ animation-delay: {delay:.1f}s; }}\n'


def record(words: list[str]) -> str:
    """Run a command on a terminal of its own; return the recording (asciicast v2).

    Raises SystemExit with its exit status if it fails.
    """
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "trivisor demo"}
    lines = [json.dumps(header)]
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    began = time.monotonic()
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    while True:
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # the last process that has the terminal ended
            break
        text = data.decode(errors="replace")
        lines.append(json.dumps([round(time.monotonic() - began, 3), "o", text]))
    if process.wait() != 0:
        sys.exit(process.returncode)
    return "\n".join(lines) + "\n"


def timed_lines(cast: str) -> list[tuple[float, str]]:
    """Return the lines of a recording, as they remain on the screen, with their times."""
    found: list[tuple[float, str]] = []
    rest = ""
    for line in cast.splitlines()[1:]:
        at, _, text = json.loads(line)
        *whole, rest = (rest + text.replace("\r\n", "\n")).split("\n")
        found += [(at, each.rpartition("\r")[2]) for each in whole]
    return found


def draw(cast: str) -> str:
    """Return an animated SVG of a recording."""
    width = json.loads(cast.partition("\n")[0])["width"]
    console = Console(record=True, width=width, file=StringIO(), force_terminal=True)
    delays: list[float] = []
    for at, text in timed_lines(cast):
        before = console.export_text(clear=False).count("\n")
        console.print(Text.from_ansi(text), soft_wrap=False)
        printed = console.export_text(clear=False).count("\n") - before
        delays += [at / SPEED] * printed
    svg = console.export_svg(title="./run demo")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # loaded from elsewhere
    unique = re.findall(r"\.(terminal-\d+)-matrix", svg)[0]
    style = STYLE.format(unique=unique)
    for number, delay in enumerate(delays):
        style += LINE.format(unique=unique, number=number, delay=delay)
    return svg.replace("</style>", f"{style}</style>", 1)


def main() -> None:
    """Record the demo and draw it."""
    CAST.write_text(record([sys.executable, "-m", "trivisor", "demo"]), encoding="utf-8")
    SVG.write_text(draw(CAST.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
