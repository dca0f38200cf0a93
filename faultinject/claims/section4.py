"""The claims of section 4 of the paper, in its order."""

from __future__ import annotations

from faultinject.claims import independence, moving, one_of_n, voting
from faultinject.claims.claim import CROWD, MOVED, Claim

__all__ = ["CLAIMS"]

CLAIMS = (
    Claim(where="Non-virtualized node", text="R_sys = R_H R_M: the plain node serves while its "
          "one machine does.", command="trivisor campaign run inequality4", ask=voting.plain,
          needs="inequality4"),
    Claim(where="n VMs", text="R_sys = R_H R_V [1 - (1 - R_M)^n].",
          command="trivisor campaign run oneofn", ask=one_of_n.formula, needs="oneofn"),
    Claim(where="Inequality (1)", text="With n = 1 the hypervisor only lowers the reliability.",
          command="trivisor campaign run oneofn", ask=one_of_n.alone, needs="oneofn"),
    Claim(where="Inequality (1)", text="R_V = R_M is never enough.",
          command="trivisor campaign run oneofn", ask=one_of_n.equal, needs="oneofn"),
    Claim(where="Figure 3", text="R_M = .1, R_V = .3: fewer than 4 VMs only lower the "
          "reliability.", command="trivisor model bound --design 1ofn --rm .1 --rv .3",
          ask=one_of_n.example, needs="oneofn"),
    Claim(where="Figure 3", text="The fewer VMs, the more reliable the hypervisor must be.",
          command="trivisor model figure 3 --results docs/results", ask=one_of_n.fewer,
          needs="oneofn"),
    Claim(where="n VMs", text="With more VMs the node comes as near to R_V as desired.",
          command="trivisor campaign run oneofn", ask=one_of_n.approaches, needs="oneofn"),
    Claim(where="Inequality (2), Figure 4", text="A lower bound on n for a wanted R.",
          command="trivisor model figure 4 --results docs/results", ask=one_of_n.needed,
          needs="oneofn"),
    Claim(where="Inequality (2)", text="The number of VMs is ultimately limited by the node's "
          "resources.", command="trivisor bench guests", ask=one_of_n.resources, needs=CROWD),
    Claim(where="n VMs", text="(Not said:) with 1 of n a VM that lies is released.",
          command="trivisor campaign run liars", ask=one_of_n.lies, needs="liars"),
    Claim(where="n VMs", text="With many VMs it is hard to have them diverse enough to fail "
          "independently (a bug that all of one build share).",
          command="trivisor campaign run poison", ask=one_of_n.poison, needs="poison"),
    Claim(where="Inequality (3)", text="With one VM it does not matter where f is.",
          command="trivisor model bound --design moved --rf .5 --rm .75 --n 1", ask=moving.single),
    Claim(where="Inequality (3)", text="Moving f out of n VMs pays if R_F >= "
          "[1 - (1 - R_f R_M')^n] / [1 - (1 - R_M')^n].",
          command="trivisor campaign moved docs/results/moved-guest docs/results/moved-host "
          "--rm .5 --rm .75 --rm .9", ask=moving.inequality3, needs=MOVED),
    Claim(where="Figure 6", text="F must be more reliable than f, and the more so the larger R_M' "
          "and n are.", command="trivisor model figure 6b --results docs/results",
          ask=moving.degree),
    Claim(where="Figure 6", text="R_M' = R_f = .75: R_F above .9932 (n = 6), .9994 (n = 9).",
          command="trivisor model bound --design moved --rf .75 --rm .75 --n 6",
          ask=moving.spots),
    Claim(where="Inequality (3)", text="With more than a handful of VMs a poor f is better "
          "retained in them.", command="trivisor model bound --design moved --rf .5 --rm .75 --n 5",
          ask=moving.retaining),
    Claim(where="2-of-3", text="The node bears one failed VM of three, and no more.",
          command="trivisor campaign run inequality4", ask=voting.voter, needs="inequality4"),
    Claim(where="2-of-3", text="It tolerates the arbitrary failure of one VM.",
          command="trivisor campaign run liars", ask=voting.arbitrary, needs="liars"),
    Claim(where="Inequality (4), Figure 7", text="2-of-3 is better where R_V is above "
          "1 / (3 R_M - 2 R_M^2).", command="trivisor campaign run inequality4", ask=voting.points,
          needs="inequality4"),
    Claim(where="Figure 7", text="With R_M of .5 or less no R_V helps.",
          command="trivisor campaign run inequality4", ask=voting.hopeless,
          needs="inequality4"),
    Claim(where="Figure 7", text="R_V = .98 accommodates a larger range of R_M than R_V = .9.",
          command="trivisor model figure 7 --results docs/results", ask=voting.ranges,
          needs="inequality4"),
    Claim(where="Combinatorial modeling", text="VM failures are independent.",
          command="trivisor campaign run softerrors", ask=independence.independent,
          needs="softerrors"),
    Claim(where="Combinatorial modeling", text="In the real world they may not be.",
          command="trivisor campaign run commoncause", ask=independence.shared_causes,
          needs="commoncause"),
    Claim(where="Combinatorial modeling", text="If they are not, these values are upper bounds.",
          command="trivisor model reliability --design 2of3 --rm .6 --rv 1 --beta .5",
          ask=independence.upper_bounds),
)  # fmt: skip
