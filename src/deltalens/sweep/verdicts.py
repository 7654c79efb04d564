"""What a sweep lets us claim: F, the share of a pair's difference that an edit makes, and verdicts (docs/behaviour.md).

Every verdict is a word and its reason. Where the pair does not differ, an interval is missing or items are too few, the
word is `undecided`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deltalens.evaluate.scores import Row, mean
from deltalens.statistics import ratio

LEVEL = 1 - 0.05 / 8
"""Coverage of the intervals of a verdict: there are eight of them."""
ITEMS = 200
"""Fewest items of the test split for a verdict on a cause."""
CAUSAL, NOTHING = 0.2, 0.1
"""F from which on an effect counts, and the F within which nothing has happened."""
LEAST = 0.05
"""A pair whose measure differs by less does not differ in thinking, and has no F (ours). A probability of 1e-6 moves
evenly over all prompts: the interval of its difference excludes 0, and a share of that is any number."""
ENOUGH, PART = 0.8, 0.5
"""Lower bound of F that is sufficient (of 1 − F: necessary), and the upper bound that is not."""
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`supported`, `contradicted` or `undecided`, and why."""

    word: str
    why: str

    @property
    def text(self) -> str:
        """As a summary stores it."""
        return f"{self.word}: {self.why}"


def fraction(base: Sequence[float], arm: Sequence[float], tuned: Sequence[float], level: float = LEVEL) -> Row:
    """F = (m_arm − m_base)/(m_tuned − m_base), with the interval [L_e/U_t, U_e/L_t] of the paired differences.

    Args:
        base: The measure of the base on every item.
        arm: The same of the arm.
        tuned: The same of the tuned model.
        level: Coverage of both intervals.

    Returns:
        The columns n, value, low, high, method and p of a summary; no value where the pair is not separated.
    """
    effect, whole = gap(base, arm, level), gap(base, tuned, level)
    row = {"n": len(arm), "value": None, "low": None, "high": None, "p": None}
    if (why := unseparated(whole)) is not None:
        return row | {"method": why}
    if effect["low"] is None or whole["low"] is None:
        return row | {"value": effect["value"] / whole["value"], "method": effect["method"]}
    ends = ratio((effect["low"], effect["high"]), (whole["low"], whole["high"]))
    assert ends is not None  # the denominator is not 0
    return row | {
        "value": effect["value"] / whole["value"],
        "low": ends[0],
        "high": ends[1],
        "method": "ratio of paired bootstrap intervals",
    }


def unseparated(whole: Row) -> str | None:
    """Why the difference of a pair is nothing to take a share of; None where it is something.

    Args:
        whole: The paired difference, tuned − base, with its interval where there is one.
    """
    if whole["low"] is not None and whole["low"] <= 0 <= whole["high"]:
        return "the tuned model is not shown to differ from the base"
    if abs(whole["value"]) < LEAST:
        return f"the pair differs by {whole['value']:.1g}, less than {LEAST}"
    return None


def left_out(share: Row) -> Row:
    """1 − F: what an edit of the tuned model has taken away."""
    if share["value"] is None:
        return share
    low, high = (None if share[end] is None else 1 - share[end] for end in ("high", "low"))
    return share | {"value": 1 - share["value"], "low": low, "high": high}


def causal(moved: Row, claim: Row | None) -> Verdict:
    """Is the edited part a cause? Its effect exceeds the largest control's, and is a fifth of the pair's difference.

    Args:
        moved: F of what was put in, or 1 − F of what was left out.
        claim: Effect − largest control; None without a control.
    """
    lacking = _lacking(moved)
    if lacking is not None:
        return lacking
    if moved["low"] >= -NOTHING and moved["high"] <= NOTHING:
        return Verdict(CONTRADICTED, f"F lies within ±{NOTHING}: {_interval(moved)}")
    if claim is None or claim["low"] is None:
        return Verdict(UNDECIDED, "no control to compare with")
    if claim["low"] > 0 and moved["value"] >= CAUSAL:
        return Verdict(SUPPORTED, f"effect − largest control is above 0: {_interval(claim)}")
    if moved["value"] < CAUSAL:
        return Verdict(UNDECIDED, f"F = {moved['value']:.2f}, below {CAUSAL}")
    return Verdict(UNDECIDED, f"no more than its largest control is shown: {_interval(claim)}")


def enough(moved: Row) -> Verdict:
    """Is it sufficient (F of what was put in), or necessary (1 − F of what was left out)?"""
    lacking = _lacking(moved)
    if lacking is not None:
        return lacking
    if moved["low"] >= ENOUGH:
        return Verdict(SUPPORTED, f"at least {ENOUGH} of the difference: {_interval(moved)}")
    if moved["high"] < PART:
        return Verdict(CONTRADICTED, f"less than {PART} of the difference: {_interval(moved)}")
    return Verdict(UNDECIDED, f"between {PART} and {ENOUGH}: {_interval(moved)}")


def choice(thinking: Row, skill: Row) -> Verdict:
    """Was the choice to think taken, and the skill left?

    Args:
        thinking: Paired difference of the greedy think ratio, edited − tuned.
        skill: The same of forced accuracy.
    """
    if thinking["low"] is None or skill["low"] is None:
        return Verdict(UNDECIDED, "too few items for an interval")
    if min(thinking["n"], skill["n"]) < ITEMS:
        return Verdict(UNDECIDED, f"{min(thinking['n'], skill['n'])} items, {ITEMS} are needed")
    fell, lost = -thinking["high"], (-skill["high"], -skill["low"])
    said = f"{_fall('thinking falls', thinking)}, {_fall('forced accuracy', skill)}"
    if lost[0] >= 0.3:
        return Verdict(CONTRADICTED, f"the skill goes too: {said}")
    if fell >= 0.5 and lost[1] < 0.1:
        return Verdict(SUPPORTED, said)
    return Verdict(UNDECIDED, said)


def _fall(name: str, change: Row) -> str:
    """A change that is expected to be a fall, in words."""
    if change["value"] > 0:
        return f"{name.removesuffix(' falls')} does not fall: +{change['value']:.2f}"
    return f"{name} by {0 - change['value']:.2f}"


def gap(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Row:
    """The paired difference of a measure, second − first, at a verdict's level; a summary's columns."""
    return mean([b - a for a, b in zip(first, second, strict=True)], level)


def _lacking(moved: Row) -> Verdict | None:
    """Why nothing can be said, None where something can."""
    if moved["n"] < ITEMS:
        return Verdict(UNDECIDED, f"{moved['n']} items, {ITEMS} are needed")
    if moved["value"] is None or moved["low"] is None:
        return Verdict(UNDECIDED, moved["method"])
    return None


def _interval(row: Row) -> str:
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
