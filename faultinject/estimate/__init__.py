"""Statistics from counts of missions: pure functions, no input or output.

``counts`` and ``intervals`` are the base.  ``strata`` recombines what was measured by number of
failed guests into U(q) and the break-even R_V; ``equivalence`` compares these with the paper.
``doses`` and ``common_cause`` treat the campaigns in which no failure is forced; ``relocation``
treats Inequality (3).  Needs scipy.
"""

__all__: list[str] = []
