"""What the numbers of an experiment are called, what they mean, and how they are printed with their intervals."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from deltalens.report.words import NOTHING, Row, number

LEVEL = "95 %"

VERDICT_LEVEL = "99.4 %"
"""Of the intervals that a verdict rests on: 1 − .05/8."""

AT_AN_ARM = ("operating_point", "fraction", "causal", "sufficient", "necessary", "choice")
"""Numbers of a whole curve whose `reference` names the arm that they are of, and not one to take away."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of an arm.

    Attributes:
        head: Its short name.
        meaning: Its definition, plain text.
        unit: "rate" for shares of items, printed in per cent and differences in points; "number" for the rest.
    """

    head: str
    meaning: str
    unit: str = "number"


METRICS = {
    "accuracy": Metric("accuracy", "share of items answered right, left free to think; truncated is wrong", "rate"),
    "forced_accuracy": Metric("accuracy, forced", "the same with the think block opened: skill, not choice", "rate"),
    "closed_accuracy": Metric("accuracy, closed", "the same with thinking turned off", "rate"),
    "think_ratio": Metric("think ratio", "share of completions with a closed block of at least 8 characters", "rate"),
    "closed_think_ratio": Metric("think ratio, closed", "the same with thinking turned off", "rate"),
    "p_think": Metric("p(think)", "mean probability that a completion opens with the whole think tag; not sampled"),
    "p_skip": Metric("p(skip)", "mean probability that a block opened by the template is closed within four tokens"),
    "open_ratio": Metric("opened", "share of completions with a think block", "rate"),
    "close_ratio": Metric("closed", "share of completions whose think blocks are all closed", "rate"),
    "truncated": Metric("truncated", "share of completions that ran to the limit, counted wrong", "rate"),
    "truncated_inside": Metric("truncated inside", "share that ran to the limit while thinking", "rate"),
    "format_failures": Metric("form failures", "share of ended answers that have not the asked form", "rate"),
    "loops": Metric("loops", "share of completions in which a run of 8 tokens stands 5 times", "rate"),
    "think_tokens": Metric("think tokens", "mean length inside the block, of completions that open one"),
    "tokens": Metric("tokens", "mean length of a completion"),
    "kl": Metric("KL", "nats per token from reference to arm, along the reference's greedy text; 0 is no change"),
    "perplexity": Metric("perplexity", "of a fixed neutral text: how much of ordinary language is left"),
    "auc": Metric("AUC", "chance that a prompt of the first group scores above one of the second; .5 says nothing"),
    "auc_normalised": Metric("AUC of h·v/‖h‖", "the same with the length of the activation divided out"),
    "d": Metric("Cohen's d", "difference of the two groups' mean scores in their common standard deviations"),
    "operating_point": Metric("operating point", "least strength that reaches 90 % of the largest effect"),
    "breaking_point": Metric("breaking point", "least strength at which skill, form or ordinary language gives way"),
    "effect_minus_largest_control": Metric(
        "effect − largest control", "size of the edit's effect less that of its largest control, paired by item"
    ),
    "effect_minus_largest_random": Metric(
        "effect − largest random control", "the same, controls of another layer's direction left out"
    ),
    "strength": Metric("place", "where an arm stands on its curve: how much of the edit, or its rank"),
    "fraction": Metric(
        "F", "share of the way from base to tuned at which an arm stands; an edit of the tuned model has removed 1 − F"
    ),
    "causal": Metric("causal", "is its effect larger than every deciding control's, and F at least .2?"),
    "sufficient": Metric("sufficient", "put into the base, is it at least .8 of the difference?"),
    "necessary": Metric("necessary", "left out of the tuned model, is at least .8 of the difference gone?"),
    "choice": Metric("choice", "does thinking fall by at least .5 while forced accuracy falls by less than .1?"),
    "lambda50_p_think": Metric("λ50 of p(think)", "λ at which its mean reaches ½"),
    "lambda50_p_skip": Metric("λ50 of p(skip)", "λ at which the mean of 1 − p(skip) reaches ½"),
    "lambda50_think_ratio": Metric("λ50 of the think ratio", "λ at which half of the greedy completions think"),
    "width_p_think": Metric("width of p(think)", "λ(p = .9) − λ(p = .1)"),
    "width_p_skip": Metric("width of p(skip)", "λ(p = .1) − λ(p = .9)"),
    "sharpness": Metric(
        "J",
        "largest share of the change of log-odds inside .2 of λ: .2 for a straight line, sharp from .6, smooth to .4",
    ),
    "functional_rank": Metric("functional rank", "least k at which both measures lie in the tuned model's interval"),
    "functional_rank_p_think": Metric("functional rank by p(think)", "the same by this measure alone"),
    "functional_rank_p_skip": Metric("functional rank by p(skip)", "the same by this measure alone"),
    "functional_rank_accuracy": Metric("functional rank by accuracy", "the same by this measure alone"),
    "energy": Metric("energy", "share of Σ‖Δ‖² that the leading part holds"),
}  # fmt: skip
"""By the name that the tables use."""

WORDS = {
    "eval": (
        ("difference", "a model less the first one, on the same items; Holm p: corrected for every test of the table"),
        ("forced", "the think block is opened for the model, so that choosing to think is taken out of the question"),
    ),
    "probe": (
        ("direction", "one vector per layer; its score on a prompt is the mean of ⟨h, v̂⟩ over the selected tokens"),
        ("random directions", "isotropic vectors scored on the same prompts: 95 % of them lie in the band"),
        ("label-permuted", "differences of means of other prompts under shuffled labels: same covariance, no meaning"),
        ("against", "the same ids read in a second model, usually the base"),
        ("raw, normalised, z", "⟨h, v̂⟩; the same over ‖h‖; raw in standard deviations of the second group's tokens"),
        ("beyond", "|d| with its whole interval outside both bands, and both corrected p at most .05"),
    ),
    "steer": (
        ("α, strength", "how much of the direction is added; its unit is in the settings"),
        ("effect", "an arm less the baseline, on the same items"),
        ("control", "the same push along a vector of equal length without the meaning; the largest one decides"),
        ("permuted", "a control: difference of means under shuffled labels, with the covariance of activations"),
        ("isotropic", "a control: a random vector of the same length"),
        (
            "v of layer N",
            "a control: the direction of another layer put where this one goes; it may well be the same one",
        ),
    ),
    "sweep": (
        ("curve", "one edit at growing strength or rank; it starts at the base or at the tuned model"),
        ("effect", "an arm less the start of its curve, on the same items"),
        ("control", "an edit of matched size without the meaning, at the operating point; the largest one decides"),
        ("never decides", "a control with far less effect on activations, shown for comparison only"),
        (
            "supported, contradicted, undecided",
            f"a verdict by the bounds of {VERDICT_LEVEL} intervals; undecided without control, interval or 200 items",
        ),
    ),
}
"""Other words, by kind of experiment."""

GENERAL = (
    ("interval", f"{LEVEL}: Wilson for a rate, Newcombe for paired rates, bootstrap by item for a mean of 50 or more"),
    ("n", "items; without an interval where there are too few for one"),
)


def metric(name: str) -> Metric:
    """The metric called `name`, or one that only repeats a name that this page does not know."""
    return METRICS.get(name) or Metric(name.replace("_", " "), "", "rate" if name.startswith("pass@") else "number")


def value(row: Row | None, digits: int = 3) -> str:
    """The value of a row of `store.results.SUMMARY` with its interval, "–" without a row."""
    if row is None or row["value"] is None:
        return NOTHING
    rate, difference = metric(row["metric"]).unit == "rate", is_difference(row)
    factor = 100 if rate else 1
    head = _one(factor * row["value"], digits, difference)
    unit = (" points" if difference else " %") if rate else ""
    if row["low"] is None or row["high"] is None:
        return f"{head}{unit}"
    low, high = (_one(factor * row[end], digits, difference) for end in ("low", "high"))
    return f"{head}{unit} [{low}, {high}]"


def is_difference(row: Row) -> bool:
    """Whether a row is the difference from another arm."""
    return (bool(row["reference"]) and row["metric"] not in AT_AN_ARM) or row["metric"].startswith("effect_minus_")


def p_value(p: float | None) -> str:
    """A p-value, "–" without one."""
    if p is None:
        return NOTHING
    return "<\u00a0.0001" if p < 1e-4 else f"{p:.2g}".lstrip("0") if p < 1 else "1"


def p_text(p: float | None) -> str:
    """The same as it stands in a sentence, kept on one line."""
    return f"p\u00a0{'' if p is not None and p < 1e-4 else '= '}{p_value(p)}".replace(" ", "\u00a0")


def signed(x: float | None, digits: int = 3, sign: bool = True) -> str:
    """A number with a true minus, and with its plus where `sign`."""
    return NOTHING if x is None else _one(x, digits, sign)


def _one(x: float, digits: int, sign: bool) -> str:
    if not math.isfinite(x):
        return NOTHING
    small = abs(x) < 0.01  # a tiny probability is not known to three digits, and six places are enough to read
    text = number(abs(x), min(digits, 2) if small else digits) if abs(x) >= 1e-12 else "0"
    return f"{'−' if x < 0 and text != '0' else '+' if sign and text != '0' else ''}{text}"


def definitions(kinds: Sequence[str], metrics: Collection[str]) -> list[tuple[str, str]]:
    """Every word and number that a page of these kinds and metrics uses."""
    words = [pair for kind in dict.fromkeys(kinds) for pair in WORDS[kind]]
    named = [(one.head, one.meaning) for name, one in METRICS.items() if name in metrics]
    return [*named, *dict(words).items(), *GENERAL]


FILTERS = {"value": value, "p": p_value, "signed": signed, "head": lambda name: metric(name).head}
"""What templates call these."""
