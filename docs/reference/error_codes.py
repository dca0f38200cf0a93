"""The directive ``error-codes``: every entry of the catalogue of error codes, by area.

Each code is an anchor: ``errors.html#tv0101``.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from deploy.error_catalogue import AREAS, Entry, load

__all__ = ["ErrorCodes", "markdown", "setup"]


def markdown(entry: Entry) -> str:
    """Return one entry as a section of the page."""
    kind = f"*{entry.severity.capitalize()}, since {entry.since}*"
    if entry.retired:
        kind += f" *(retired in {entry.retired})*"
    parts = [f"({entry.code.lower()})=\n### {entry.code}: {entry.title}", kind]
    parts += [f"**{title}.** {text}" for title, text in entry.sections()]
    return "\n\n".join(parts)


class ErrorCodes(SphinxDirective):
    """All codes, as a section for each area with one for each code."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        entries = load().values()
        parts = []
        for area, title in AREAS.items():
            found = [markdown(entry) for entry in entries if entry.code[2:4] == area]
            if found:
                parts += [f"## TV{area}xx: {title}", *found]
        return self.parse_text_to_nodes("\n\n".join(parts), allow_section_headings=True)


def setup(app: Sphinx) -> None:
    """Add the directive."""
    app.add_directive("error-codes", ErrorCodes)
