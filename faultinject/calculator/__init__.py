"""``trivisor model``: section 4 of the paper as a calculator, with its figures.

``faultinject.model`` has the arithmetic; here are questions and answers: ``values`` (how numbers
are read and told), ``designs`` (names of designs), ``reliability``, ``bound``, ``advice``,
``repair`` (one answer each, as data), ``measured`` (points to lay over figures), ``figures`` (the
paper's, and the map that it does not have), ``commands`` and ``telling`` (the terminal's side).
"""

from __future__ import annotations

__all__: list[str] = []
