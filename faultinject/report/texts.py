"""The texts of the page for each question: what is asked, what is tested, what is not."""

from __future__ import annotations

import msgspec

from faultinject.results.outcome import Outcome, Question

__all__ = ["GLOSSARY", "OUTCOME_NAMES", "QUESTIONS", "QuestionTexts"]


class QuestionTexts(msgspec.Struct, frozen=True, kw_only=True):
    """The texts for one question; ``x_y`` is a subscript, ``x^y`` a superscript."""

    kind: str
    asks: str
    tests_title: str
    tests: tuple[str, ...]
    not_title: str
    tests_not: tuple[str, ...]


QUESTIONS: dict[Question, QuestionTexts] = {
    "inequality4": QuestionTexts(
        kind="Inequality (4)",
        asks=(
            "Does the voter behave as the paper's 2-of-3 formula assumes? Where, with that voter, "
            "is a voted node more reliable than a plain one?"
        ),
        tests_title="It tests the voter.",
        tests=(
            "Guests that are hit fail by construction: they are crashed, hung or made to lie, and "
            "each fault is confirmed to act. The campaign measures what the voter then does: f_k, "
            "the proportion of missions that fail with k guests hit.",
            "From f_k, the node's unreliability is recombined for every q = 1 - R_M: "
            "U(q) = Σ C(3,k) q^k (1-q)^{3-k} f_k. The paper assumes f_0 = f_1 = 0 and "
            "f_2 = f_3 = 1.",
        ),
        not_title="It does not test the model.",
        tests_not=(
            "The weights C(3,k) q^k (1-q)^{3-k} are the paper's assumption that guests fail "
            "independently; they are not measured. That the curve of Figure 7 results is therefore "
            "no evidence that real guests fail independently.",
            "The campaigns softerrors and commoncause test whether they do.",
        ),
    ),
    "designs": QuestionTexts(
        kind="Inequalities (1), (2) and beyond",
        asks=(
            "How reliable is a node that releases the first of n replies, or that requires m equal "
            "replies of n guests? Do the paper's formulas hold, and how many guests are enough?"
        ),
        tests_title="It tests the voter.",
        tests=(
            "For each vote policy, guests that are hit fail by construction. The campaign measures "
            "f_k, the proportion of missions that fail with k of the n guests hit. The paper "
            "assumes 0 up to k = n - m, and 1 from there on.",
            "R_sys is recombined from f_k for every R_M, as for 2-of-3.",
        ),
        not_title="It does not test independence, nor tolerance of lies by 1 of n.",
        tests_not=(
            "The binomial weights are the paper's assumption. With 1 of n, the reply of a lying "
            "guest is released, since nothing is compared. Where a campaign has such faults, the "
            "proportion of wrong replies is shown in red.",
        ),
    ),
    "softerrors": QuestionTexts(
        kind="Soft errors",
        asks=(
            "Does the paper's model hold for faults whose effect is not forced? Bits of the "
            "guests' memory are flipped at random."
        ),
        tests_title="It tests the model, given independent faults.",
        tests=(
            "A dose is a number of bits flipped per guest and mission, anywhere in its memory, at "
            "any time. At each dose two quantities are measured in separate missions: how often "
            "one guest alone, without a voter, completes a mission (R_M), and how often the voted "
            "node does (R_sys), with every guest under the same dose.",
            "If the consequences of faults in one guest do not depend on the other guests, and the "
            "voter works, R_sys is 3R_M^2 - 2R_M^3. Nothing in the measurement enforces this "
            "relation.",
        ),
        not_title="It does not test whether faults are independent, nor identify causes.",
        tests_not=(
            "The faults of each guest are drawn separately, so they are independent by "
            "construction. What is tested is whether their consequences are coupled. Whether "
            "causes of faults are independent in nature is not tested by any campaign here.",
            "Known candidates: a shared workload, in which the same request is hard for all guests "
            "(Eckhardt and Lee); compensating failures, in which guests fail at different requests "
            "and each request still has its majority (Siewiorek); host load, since three guests "
            "share what one has to itself; the voter.",
            "The paper calls its values upper bounds under dependence. This does not hold "
            "everywhere: below R_M = .5 a common cause helps 2-of-3.",
        ),
    ),
    "commoncause": QuestionTexts(
        kind="Common causes",
        asks=(
            "What is the reliability of a voted node when one event affects all guests at once? "
            "Independence is violated by construction."
        ),
        tests_title="It tests the model.",
        tests=(
            "Each mission has one common-cause event, which reaches every guest. The campaign "
            "measures c_j, the proportion of these trials in which exactly j guests failed, and "
            "the outcome at the voted node.",
            "The frequency of such events cannot be measured here. It is an assumption, and is "
            "marked as one wherever it is used.",
        ),
        not_title="It does not show how frequent common causes are.",
        tests_not=(
            "The dashed bars are computed for guests that fail equally often, but independently. "
            "The paper's formula covers only these.",
            "The paper calls its values upper bounds under dependence. This does not hold "
            "everywhere: at R_M = .3, if with probability .2 all three guests share one fate, "
            "2-of-3 rises from .216 to .233.",
        ),
    ),
}

OUTCOME_NAMES = {
    Outcome.CORRECT: "correct",
    Outcome.DETECTED: "detected",
    Outcome.DECLARED: "declared error",
    Outcome.TIMEOUT: "timeout",
    Outcome.VOTER_LOST: "voter lost",
    Outcome.UNCLEAR: "unclear",
    Outcome.SILENT: "silent corruption",
}

GLOSSARY = (
    ("mission", "a bounded workload from a clean start; the unit of all statistics here"),
    ("R_M", "reliability of one guest: P(it completes a mission correctly); q = 1 - R_M"),
    ("R_V", "reliability of the voting layer: host Linux, QEMU and the voter"),
    ("R_H", "reliability of the hardware; it is on both sides of Inequality (4)"),
    ("NV", "the plain (non-virtualized) node: one guest, clients connect to it without a voter"),
    ("R_sys", "reliability of the voted node"),
    ("f_k", "P(mission fails | k guests hit, voter not hit); the paper assumes 0, 0, 1, 1"),
    ("g_k", "P(mission succeeds | voter hit, k guests hit); the paper assumes 0"),
    ("s_k", "P(silent corruption | k guests hit)"),
    ("wrong reply", "a reply whose bytes differ from those of a correct service"),
    ("silent corruption", "a wrong reply that a client would believe: 2xx, 3xx, and a 4xx about "
                          "the service's data or the client's rights (401, 403, 404, 409, 410, "
                          "412, 416). Only the status line is judged"),
    ("declared error", "a wrong reply that a client does not believe: 5xx, a 4xx that calls its "
                       "correct request malformed, or no readable status line"),
    ("unclear", "old rows only: they hold the first wrong reply of a mission, which declares an "
                "error; whether a later one would be believed is unknown"),
    ("U, S, G", "U = Σ w_k f_k, S = 1 - U, G = Σ w_k g_k with binomial weights w_k"),
    ("R_V*", "break-even: the R_V above which the voted node is better than the plain one, "
             "(R_M - G)/(S - G); the paper assumes G = 0"),
    ("detected", "no majority: the client received an error, never a guess"),
    ("equal, different lies", "whether the lying guests of a mission return the same bytes. The "
                              "injector decides; two equal lies outvote the third guest in 2-of-3"),
    ("measured", "counted in missions of this campaign"),
    ("recombined", "computed from measured strata with assumed binomial weights"),
    ("computed", "follows from a formula alone"),
    ("by construction", "enforced by the injector, hence no result"),
)  # fmt: skip
