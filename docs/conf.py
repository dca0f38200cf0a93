"""How Sphinx makes the site from this repository's Markdown (``./run docs``).

The source directory is the top of the repository, not docs/.  So README.md and ARCHITECTURE.md are
pages too, and each relative link means the same in the site as on a forge.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

__all__ = ["setup"]

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS / "reference")]  # the command, and the directives
os.environ["TRIVISOR_PURE"] = "1"  # the reference is made from sources: compiled modules have none

from docs.diagrams import BLOCK, THEMES, picture  # noqa: E402

_project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
project = "Trivisor"
author = "The authors of Trivisor"
release = version = _project["version"]
copyright = f"{author}. Licence: {_project['license']}"  # noqa: A001 - Sphinx's name for it

extensions = ["myst_parser", "sphinx_click", "error_codes", "generated", "catalogues", "settings"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md"]
exclude_patterns = [".*", "build", "dist"]  # not to search .venv

myst_heading_anchors = 4  # links to sections, as forges make them
nitpicky = True  # a reference to nothing is an error
default_role = "code"  # the help texts of commands put code in single backticks
highlight_language = "none"
smartquotes = False  # it makes one dash of the two in --dir

html_theme = "furo"
html_title = f"Trivisor {release}"
html_copy_source = False
html_show_sourcelink = False

man_pages = [
    ("docs/reference/commands", "trivisor", _project["description"], author, 1),
    ("docs/reference/configuration", "trivisor-voter", "configuration of the voter", author, 5),
]


def _link_directories(app: Sphinx, doctree: nodes.document) -> None:
    """Lead links to a directory to its README.md, or that of the directory above.

    Where neither is there, the link becomes plain text.
    """
    for node in list(doctree.findall(pending_xref)):
        target = ROOT / Path(app.env.docname).parent / node["reftarget"]
        if node["reftype"] != "myst" or not target.is_dir():
            continue
        pages = [app.env.path2doc(each / "README.md") for each in (target, target.parent)]
        page = next((each for each in pages if each in app.env.found_docs), None)
        if page is None:
            node.replace_self(node.children)
        else:
            node.attributes |= {"refdomain": "doc", "reftarget": page, "reftargetid": None}


def _open_first_page(app: Sphinx, error: Exception | None) -> None:
    """Write an index.html at the top, which leads to the first page."""
    if error is None and app.builder.format == "html":
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html">'
        title = f"<title>{project}</title>\n"
        (app.outdir / "index.html").write_text(page + title, encoding="utf-8")


def _show_diagrams(app: Sphinx, docname: str, source: list[str]) -> None:
    """Show Mermaid diagrams as the pictures that docs/diagrams.py has drawn of them."""

    def images(found: re.Match[str]) -> str:
        parts = []
        for theme in THEMES:
            path = picture(found[1], theme)
            if not path.is_file():
                raise ExtensionError(f"{docname}: a diagram has no picture: ./run pictures")
            options = f":class: only-{theme}\n:alt: {' '.join(found[1].split())}"
            parts.append(f"```{{image}} /{path.relative_to(ROOT)}\n{options}\n```")
        return "\n\n".join(parts)

    source[0] = BLOCK.sub(images, source[0])


def setup(app: Sphinx) -> None:
    """Connect the functions above to Sphinx."""
    app.connect("source-read", _show_diagrams)
    app.connect("doctree-read", _link_directories)
    app.connect("build-finished", _open_first_page)
