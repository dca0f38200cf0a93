"""What the page says of each question: what is asked, what the answer tests, what it does not."""

from __future__ import annotations

import msgspec

from faultinject.results.outcome import Outcome, Question

__all__ = ["GLOSSARY", "OUTCOME_WORDS", "QUESTIONS", "QuestionWords"]


class QuestionWords(msgspec.Struct, frozen=True, kw_only=True):
    """The texts around one question; ``x_y`` is a subscript, ``x^y`` a superscript."""

    kind: str
    asks: str
    tests_title: str
    tests: tuple[str, ...]
    not_title: str
    tests_not: tuple[str, ...]


QUESTIONS: dict[Question, QuestionWords] = {
    "inequality4": QuestionWords(
        kind="Inequality (4)",
        asks=(
            "Does the voter do what the paper's 2-of-3 formula assumes of it, and where, with "
            "that voter, is a voted node more reliable than a plain one?"
        ),
        tests_title="It tests the voter.",
        tests=(
            "Guests that are hit here fail for sure: they are crashed, hung or made to lie, and it "
            "is read back that the fault acts. What is measured is what the voter then does: "
            "f_k, the share of missions that fail with k guests hit.",
            "From f_k the node's unreliability follows for every q = 1 - R_M at once: "
            "U(q) = Σ C(3,k) q^k (1-q)^{3-k} f_k. The paper's own values are "
            "f_0 = f_1 = 0 and f_2 = f_3 = 1.",
        ),
        not_title="It does not test the model.",
        tests_not=(
            "The weights C(3,k) q^k (1-q)^{3-k} are the paper's assumption that guests fail "
            "independently, put in by us. That the curve of Figure 7 comes out is therefore "
            "no evidence that real guests fail independently.",
            "Whether they do is asked by the campaigns softerrors and commoncause.",
        ),
    ),
    "designs": QuestionWords(
        kind="Inequalities (1), (2) and beyond",
        asks=(
            "What are n guests worth if the first reply counts, or if m of n must agree: is it "
            "what the paper's formulas say, and how many guests are enough?"
        ),
        tests_title="It tests the voter.",
        tests=(
            "For each vote policy by itself: guests that are hit fail for sure, and what is "
            "measured is f_k, the share of missions that fail with k of the n guests hit. The "
            "paper's own values are 0 up to k = n - m, and 1 from there on.",
            "R_sys follows for every R_M at once, as for 2-of-3.",
        ),
        not_title="It does not test independence, nor lies.",
        tests_not=(
            "The binomial weights are the paper's assumption. And with 1 of n a guest that lies "
            "is released: in this design nobody compares. Where a campaign has such faults, the "
            "share of wrong replies stands beside the others, in red.",
        ),
    ),
    "softerrors": QuestionWords(
        kind="Soft errors",
        asks=(
            "Is the paper's model true of real faults? Bits of the guests' memory are flipped, and "
            "nothing is forced to fail."
        ),
        tests_title="It tests the model.",
        tests=(
            "At each dose (bits flipped in a guest in a mission, anywhere in its memory, at any "
            "time) two things are measured apart from each other: how often one guest alone, its "
            "client straight to it, gets through a mission (R_M), and how often the "
            "voted node does (R_sys), every guest of it under the same dose.",
            "If guests fail independently and the voter does its part, R_sys is "
            "3R_M^2 - 2R_M^3. Nothing in the measurement makes it so.",
        ),
        not_title="Where it departs, the suspects have names.",
        tests_not=(
            "Shared workload: the same request is hard on all three (Eckhardt and Lee). "
            "Compensating failures: guests fail at different requests, so that each request still "
            "has its majority (Siewiorek). Host load: three guests share what one has to itself. "
            "The voter itself.",
            "And note that “dependence makes these upper bounds” (the paper) is not always so: "
            "below R_M = .5 a shared cause helps 2-of-3.",
        ),
    ),
    "commoncause": QuestionWords(
        kind="Shared causes",
        asks=(
            "What is left of a majority when one cause strikes all guests at once? Here "
            "independence is broken on purpose."
        ),
        tests_title="It tests the model.",
        tests=(
            "Each mission gets one shot: a cause that reaches every guest. What is measured is "
            "c_j, the share of shots after which exactly j guests had failed, and what "
            "the voted node made of it.",
            "How often such shots come is not measured and cannot be here: it is an input, "
            "and is named as one wherever it is used.",
        ),
        not_title="It does not say how common shared causes are.",
        tests_not=(
            "The dashed bars are what the same guests would have done had they fallen "
            "independently, each as often as it did. The paper's formula knows only those.",
            "“Dependence makes these upper bounds” (the paper) is not always so: at "
            "R_M = .3, when with probability .2 all three share one draw, 2-of-3 rises from "
            ".216 to .233.",
        ),
    ),
}

OUTCOME_WORDS = {
    Outcome.CORRECT: "correct",
    Outcome.DETECTED: "refused",
    Outcome.TIMEOUT: "timeout",
    Outcome.VOTER_LOST: "voter lost",
    Outcome.SILENT: "wrong reply",
}

GLOSSARY = (
    ("mission", "a bounded workload from a clean start; the trial of all statistics here"),
    ("R_M", "the reliability of one guest: P(it gets through a mission); q = 1 - R_M"),
    ("R_V", "the reliability of the voting layer: host Linux, QEMU and the voter"),
    ("R_H", "the reliability of the hardware; it stands on both sides of Inequality (4)"),
    ("NV", "the plain node: one guest, its client straight to it, past the voter"),
    ("R_sys", "the reliability of the voted node"),
    ("f_k", "P(mission fails | k guests hit, voter not hit); the paper: 0, 0, 1, 1"),
    ("g_k", "P(mission succeeds | voter hit, k guests hit); the paper: 0"),
    ("s_k", "P(a wrong reply is released | k guests hit): silent, the worst of outcomes"),
    ("U, S, G", "U = Σ w_k f_k, S = 1 - U, G = Σ w_k g_k with binomial weights w_k"),
    ("R_V*", "the R_V above which the measured voted node is better than the plain one: "
             "(R_M - G)/(S - G); the paper's G is 0"),
    ("refused", "no majority: the client got an error that says so, never a guess"),
    ("lies alike, apart", "whether the liars of a mission lie with the same bytes; the injector "
                          "chooses, and two that lie alike outvote the third in any 2-of-3"),
)  # fmt: skip
