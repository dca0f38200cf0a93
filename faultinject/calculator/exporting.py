"""``trivisor model export``: a design for engines that are not ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from faultinject.calculator.designs import policy
from faultinject.calculator.values import Number, number
from faultinject.model.export import NodeDesign, to_galileo, to_open_psa
from faultinject.model.paired import ModelError

__all__ = ["ExportAnswer", "answer_export"]


class ExportAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``text``: the fault tree; ``node``: R_sys by our own formulas, to hold the engine's against.

    With a beta factor it is the engines' reading of it: R_M is then a little greater.
    """

    language: str
    design: str
    node: Number
    text: str


def answer_export(language: str, design: str, given: Mapping[str, Any]) -> ExportAnswer:
    """Write ``design`` in ``language`` (mef, galileo).  Raises ModelError for what is lacking."""
    words = design.strip().lower()
    rms = tuple(given["rm"])
    if not rms:
        raise ModelError("R_M is not given: --rm, once for all VMs or once for each")
    moved = words in {"c1", "c2"}
    asked = policy("1ofn" if moved else design, given["n"] or (len(rms) if len(rms) > 1 else None))
    m, size = asked.sized()
    if len(rms) not in {1, size}:
        raise ModelError(f"{asked.name} has {size} VMs; --rm was given {len(rms)} times")
    if given["rv"] is None and not asked.plain:
        raise ModelError("R_V is not given: --rv")
    if words == "c1" and given["rf"] is None:
        raise ModelError("c1 needs --rf (R_f); --rm is then R_M', of the rest of a VM")
    if words == "c2" and given["r_moved"] is None:
        raise ModelError("c2 needs --r-moved (R_F); --rm is then R_M', of the rest of a VM")
    node = NodeDesign(
        rh=given["rh"],
        rv=1.0 if asked.plain else given["rv"],
        rm=rms if len(rms) == size else rms * size,
        m=m,
        beta=given["beta"],
        rf=given["rf"] if words != "c2" else None,
        r_moved=given["r_moved"] if words != "c1" else None,
    )
    return ExportAnswer(
        language=language,
        design=words.upper() if moved else asked.name,
        node=number(node.reliability),
        text=to_open_psa(node) if language == "mef" else to_galileo(node),
    )
