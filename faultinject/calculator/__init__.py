"""``trivisor model``: section 4 of the paper as a calculator, with its figures.

``faultinject.model`` has the arithmetic.  Here ``values`` reads and formats numbers and ``designs``
parses names of designs.  ``reliability``, ``bound``, ``advice`` and ``repair`` each return one
answer as data, which ``printing`` prints.  ``figures`` draws the paper's figures and a map of
designs; ``overlay`` collects measured points for them.  ``commands`` is the command line.
"""

from __future__ import annotations

__all__: list[str] = []
