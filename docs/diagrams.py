"""Diagrams of the documentation: Mermaid in the Markdown, drawn once as SVG, shown by the site.

    python docs/diagrams.py

draws the diagrams that have no picture yet in docs/figures/diagrams, and removes those of former
sources.  A picture's name is a digest of its source, so a changed diagram has no picture, which
fails the build.  Drawing needs chromium and npm (`./run pictures`); building the site does not.
"""

from __future__ import annotations

import hashlib
import html
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

__all__ = ["PICTURES", "THEMES", "picture", "sources"]

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs/figures/diagrams"
THEMES = {"light": "neutral", "dark": "dark"}
"""Mermaid's theme for each of the site's."""
LOCK = ROOT / "locks/mermaid.txt"
BLOCK = re.compile(r"^```mermaid\n(.*?)^```", re.MULTILINE | re.DOTALL)
PATIENCE = 60_000
"""Milliseconds of a page's own time after which a browser gives up."""

PAGE = """<!doctype html><meta charset="utf-8"><pre id="source">%s</pre><div id="out"></div>
<script src="mermaid.min.js"></script><script>
mermaid.initialize({startOnLoad: false, theme: "%s", htmlLabels: false, deterministicIds: true,
                    flowchart: {htmlLabels: false}});
mermaid.render("diagram", document.getElementById("source").textContent).then(
  ({svg}) => { document.getElementById("out").textContent = "BEGIN" + svg + "END"; });
</script>"""


def picture(source: str, theme: str) -> Path:
    """Return the file that holds a diagram drawn in a theme of the site (light, dark)."""
    digest = hashlib.sha256(source.strip().encode()).hexdigest()[:16]
    return PICTURES / f"{digest}-{theme}.svg"


def sources() -> list[str]:
    """Return the diagrams of all pages."""
    pages = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
    return [found for page in pages for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def fetch_mermaid(into: Path) -> None:
    """Put mermaid.min.js of the locked version into a directory.  Raises SystemExit."""
    version, wanted = LOCK.read_text(encoding="utf-8").split()
    subprocess.run(["npm", "pack", "--silent", f"mermaid@{version}"], cwd=into, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    package = into / f"mermaid-{version}.tgz"
    found = hashlib.sha512(package.read_bytes()).hexdigest()
    if found != wanted:
        sys.exit(f"{package.name}: SHA-512 {found}, not that of {LOCK.relative_to(ROOT)}")
    with tarfile.open(package) as archive:
        file = archive.extractfile("package/dist/mermaid.min.js")
        if file is None:
            sys.exit(f"{package.name} has no dist/mermaid.min.js")
        (into / "mermaid.min.js").write_bytes(file.read())


def draw(source: str, theme: str, folder: Path) -> str:
    """Return a diagram as SVG.  Raises SystemExit if Mermaid does not accept it."""
    page = PAGE % (html.escape(source), THEMES[theme])
    (folder / "page.html").write_text(page, encoding="utf-8")
    words = ["chromium", "--headless", "--no-sandbox", f"--virtual-time-budget={PATIENCE}",
             "--dump-dom", (folder / "page.html").as_uri()]  # fmt: skip
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found = re.search(r"BEGIN(.*?)END", done.stdout, re.DOTALL)
    if found is None:
        sys.exit(f"Mermaid cannot draw this:\n{source}")
    return html.unescape(found[1]) + "\n"


def main() -> None:
    """Draw what has no picture; remove pictures of no diagram."""
    wanted = {picture(text, theme): (text, theme) for text in sources() for theme in THEMES}
    PICTURES.mkdir(parents=True, exist_ok=True)
    for path in set(PICTURES.glob("*.svg")) - wanted.keys():
        path.unlink()
    missing = [path for path in wanted if not path.is_file()]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as place:
        fetch_mermaid(Path(place))
        for path in missing:
            path.write_text(draw(*wanted[path], Path(place)), encoding="utf-8")


if __name__ == "__main__":
    main()
