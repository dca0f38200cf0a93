"""A node as a fault tree for external engines: Open-PSA MEF (SCRAM), Galileo (Storm).

Top event: the node fails, which is H fails, or V fails (or F, of C2), or more guests fail than
m-of-n can mask.  In C1 a guest M_i fails with its f_i or with the rest of it, M'_i (here Ri).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.etree import ElementTree

import msgspec

from faultinject.model.causes import beta_factor
from faultinject.model.paired import ModelError, Paired, count, probability
from faultinject.model.reliability import at_least, series

__all__ = ["NodeDesign", "to_galileo", "to_open_psa"]


class NodeDesign(msgspec.Struct, frozen=True, kw_only=True):
    """``m`` of the guests ``rm`` (their reliabilities, unequal or not) on H and V.

    ``rh``, ``rv`` and each of ``rm`` in [0, 1]; ``beta``: the beta factor of the guests, which then
    must be equal and two or more.  1-of-n and m-of-n are this; NV is one guest with rv = 1.
    For a function f in each guest (C1) give ``rf``, for one next to V (C2) ``r_moved``; ``rm`` is
    then R_M', of the rest.
    """

    rh: float
    rv: float
    rm: tuple[float, ...]
    m: int
    beta: float = 0.0
    rf: float | None = None
    r_moved: float | None = None

    def __post_init__(self) -> None:
        probability("R_H", self.rh)
        probability("R_V", self.rv)
        for i, each in enumerate(self.rm):
            probability(f"R_{{M_{i + 1}}}", each)
        size = count("the number of VMs n", len(self.rm))
        count("the number of VMs that must agree m", self.m, 1, size)
        if probability("beta", self.beta) > 0.0 and (size < 2 or len(set(self.rm)) > 1):
            raise ModelError(
                "the beta factor is for two or more equal VMs: give one R_M for all",
                error_code="TV0602",
            )
        if self.rf is not None:
            probability("R_f", self.rf)
            if self.beta:
                raise ModelError(
                    "the beta factor is for whole VMs: give it without R_f", error_code="TV0602"
                )
        if self.r_moved is not None:
            probability("R_F", self.r_moved)

    @property
    def reliability(self) -> Paired:
        """R_sys by our own formulas, to compare with the engines' result."""
        size = len(self.rm)
        guests = (
            beta_factor(self.rm[0], self.beta, self.m, size, "mef")
            if self.beta
            else at_least(self.m, [series(self._inside, each) for each in self.rm])
        )
        return series(self.rh, self.rv, 1.0 if self.r_moved is None else self.r_moved, guests)

    @property
    def _inside(self) -> Paired:
        return probability("R_f", 1.0 if self.rf is None else self.rf)

    @property
    def fatal(self) -> int:
        """How many guests must fail for the vote to be lost."""
        return len(self.rm) - self.m + 1


def _under(design: NodeDesign) -> Iterator[tuple[str, Paired]]:
    """The parts that must not fail."""
    yield "H", probability("R_H", design.rh)
    yield "V", probability("R_V", design.rv)
    if design.r_moved is not None:
        yield "F", probability("R_F", design.r_moved)


def _guests(design: NodeDesign) -> Iterator[tuple[str, Paired]]:
    for i, each in enumerate(design.rm):
        yield f"M{i + 1}", probability("R_M", each)


def _parts(design: NodeDesign) -> Iterator[tuple[str, tuple[tuple[str, Paired], ...]]]:
    """The guests of C1: each with its f and the rest of it."""
    for i, each in enumerate(design.rm):
        inside = probability("R_f", 1.0 if design.rf is None else design.rf)
        rest = probability("R_M'", each)
        yield f"M{i + 1}", ((f"f{i + 1}", inside), (f"R{i + 1}", rest))


def to_open_psa(design: NodeDesign, name: str = "node") -> str:
    """The design in the Open-PSA Model Exchange Format 2.0d, as SCRAM reads it.

    Basic events carry probabilities of failure; guests with a beta factor form a CCF group.
    """
    root = ElementTree.Element("opsa-mef")
    tree = ElementTree.SubElement(root, "define-fault-tree", name=name)
    top = ElementTree.SubElement(
        ElementTree.SubElement(tree, "define-gate", name="node-fails"), "or"
    )
    for event, _ in _under(design):
        ElementTree.SubElement(top, "basic-event", name=event)
    guests = list(_guests(design))
    kind = "basic-event" if design.rf is None else "gate"
    ElementTree.SubElement(top, "gate", name="vote-lost")
    vote = ElementTree.SubElement(tree, "define-gate", name="vote-lost")
    if design.fatal == 1:
        into = ElementTree.SubElement(vote, "or") if len(guests) > 1 else vote
    elif design.fatal == len(guests):
        into = ElementTree.SubElement(vote, "and")
    else:
        into = ElementTree.SubElement(vote, "atleast", min=str(design.fatal))
    for event, _ in guests:
        ElementTree.SubElement(into, kind, name=event)
    basic = [*_under(design), *guests]
    if design.rf is not None:
        basic = [*_under(design)]
        for guest, parts in _parts(design):
            gate = ElementTree.SubElement(tree, "define-gate", name=guest)
            either = ElementTree.SubElement(gate, "or")
            for part, _ in parts:
                ElementTree.SubElement(either, "basic-event", name=part)
            basic += parts
    if design.beta:
        _ccf_group(tree, [event for event, _ in guests], guests[0][1].down, design.beta)
    data = ElementTree.SubElement(root, "model-data")
    for event, chance in basic:
        if design.beta and event.startswith("M"):
            continue  # their probability is the group's
        define = ElementTree.SubElement(data, "define-basic-event", name=event)
        ElementTree.SubElement(define, "float", value=repr(float(chance.down)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _ccf_group(tree: ElementTree.Element, members: list[str], failing: float, beta: float) -> None:
    group = ElementTree.SubElement(tree, "define-CCF-group", name="guests", model="beta-factor")
    listed = ElementTree.SubElement(group, "members")
    for member in members:
        ElementTree.SubElement(listed, "basic-event", name=member)
    spread = ElementTree.SubElement(group, "distribution")
    ElementTree.SubElement(spread, "float", value=repr(failing))
    factor = ElementTree.SubElement(group, "factor", level=str(len(members)))
    ElementTree.SubElement(factor, "float", value=repr(float(beta)))


def to_galileo(design: NodeDesign) -> str:
    """The design as a Galileo fault tree, as Storm's DFT engine reads it: analyse it at time 1.

    Each part fails by an exponential law whose reliability at time 1 is the part's own.  With a
    beta factor each guest is its own part or the common one, as Open-PSA has it.  Raises ModelError
    for a part with reliability 0: no rate makes failure by time 1 certain.
    """
    under = " ".join(f'"{event}"' for event, _ in _under(design))
    lines = ['toplevel "Node";', f'"Node" or {under} "Guests";']
    guests = [event for event, _ in _guests(design)]
    size = len(guests)
    listed = " ".join(f'"{event}"' for event in guests)
    if design.fatal in {1, size}:
        lines.append(f'"Guests" {"or" if design.fatal == 1 else "and"} {listed};')
    else:
        lines.append(f'"Guests" {design.fatal}of{size} {listed};')
    lines += [_basic(event, chance) for event, chance in _under(design)]
    if design.rf is not None:
        for guest, parts in _parts(design):
            lines.append(f'"{guest}" or ' + " ".join(f'"{part}"' for part, _ in parts) + ";")
            lines += [_basic(part, chance) for part, chance in parts]
        return "\n".join(lines) + "\n"
    for event, chance in _guests(design):
        if design.beta:
            lines.append(f'"{event}" or "{event}own" "Common";')
            own = Paired.failing((1.0 - design.beta) * chance.down)
            lines.append(_basic(f"{event}own", own))
        else:
            lines.append(_basic(event, chance))
    if design.beta:
        guest_down = probability("R_M", design.rm[0]).down
        lines.append(_basic("Common", Paired.failing(design.beta * guest_down)))
    return "\n".join(lines) + "\n"


def _basic(event: str, chance: Paired) -> str:
    if chance == 0.0:
        raise ModelError(
            f"{event} has reliability 0: Galileo's rates cannot express that, omit it",
            error_code="TV0602",
        )
    rate = abs(math.log1p(-chance.down)) if chance.down < 0.5 else -math.log(float(chance))
    return f'"{event}" lambda={rate!r} dorm=1;'
