"""The card that asks "like supervised or like reinforcement training?": values beside named pairs, never a verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deltalens.report.context import middle
from deltalens.report.view import View
from deltalens.report.words import NOTHING, join, number, percent
from deltalens.spectrum import reading

SHRUNK = 0.1
"""A difference that falls below this part of itself at equal size was a difference of size."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One column of the card.

    Attributes:
        key: What of a matrix it is the median of; the relative change is of the whole run.
        head: Its short name.
        show: How it is printed.
        partner: What of a matrix it is read beside.
        null: How that is printed; a text without {} where it is the same everywhere.
    """

    key: str
    head: str
    show: Callable[[float | None], str]
    partner: str | None = None
    null: str = "null 1"


MEASURES = (
    Measure("zero_fraction", "unchanged entries", percent, "predicted_zero_fraction", "{} predicted"),
    Measure("stable_rank", "stable rank, raw", number, "denoised_effective_rank", "{} effective, denoised"),
    Measure("principal_energy_ratio", "principal energy / null", number),
    Measure("spectral_energy", "κ", number),
    Measure("left_rotation_ratio", "output rotation / null", number),
    Measure("right_rotation_ratio", "input rotation / null", number),
)


def value(view: View, measure: Measure) -> float | None:
    """The median of one measure over the matrices of a run that has it."""
    return middle([row for row in view.rows if row["norm_delta"]], measure.key)


def table(views: Sequence[View]) -> list[tuple[View, list[tuple[str, str]]]]:
    """Each run with its printed values, each beside its null or partner: relative change, then `MEASURES`."""
    return [(view, [(percent(view.size), ""), *(_beside(view, m) for m in MEASURES)]) for view in views]


def _beside(view: View, measure: Measure) -> tuple[str, str]:
    found = value(view, measure)
    partner = middle([row for row in view.rows if row["norm_delta"]], measure.partner) if measure.partner else 1.0
    if found is None or (partner is None and measure.key == "stable_rank"):
        return NOTHING, ""  # a raw rank is not shown without its denoised partner
    return measure.show(found), measure.null.format(measure.show(partner))


def equal_size(first: View, second: View) -> bool:
    """Whether two changes may be compared: neither is more than 5 % larger than the other."""
    return reading.equal_size(first.size, second.size)


def comparable(views: Sequence[View]) -> str | None:
    """Which rows of the card may be compared with one another; None for a single run."""
    if len(views) < 2:
        return None
    pairs = [
        f"{a.label} with {b.label}"
        for i, a in enumerate(views)
        for b in views[i + 1 :]
        if equal_size(a, b) and (a.base, a.tuned) != (b.base, b.tuned)
    ]
    if not pairs:
        return "No two of these changes are of equal size (within 5 %): no row may be ranked against another."
    return f"Of equal size within 5 %, so comparable: {join(pairs)}."


def size_effects(views: Sequence[View]) -> list[str]:
    """For each size-matched run beside its original and its target: which differences vanish or turn at equal size."""
    lines = []
    for matched in views:
        if matched.matched is None:
            continue
        originals = [v for v in views if v.matched is None and (v.base, v.tuned) == (matched.base, matched.tuned)]
        others = [v for v in views if v.matched is None and (v.base, v.tuned) != (matched.base, matched.tuned)]
        targets = [v for v in others if matched.matched in (v.label, v.run.path.resolve().name)] or others
        if len(originals) != 1 or len(targets) != 1 or not equal_size(matched, targets[0]):
            continue
        words: dict[bool, list[str]] = {True: [], False: []}
        for measure in MEASURES:
            numbers = (value(view, measure) for view in (originals[0], matched, targets[0]))
            original, same_size, target = numbers
            if original is not None and same_size is not None and target is not None and original != target:
                words[_effect_of_size(original - target, same_size - target)].append(measure.head)
        said = f"At equal size, {originals[0].label} against {targets[0].label}"
        if words[True]:
            lines.append(f"{said}: size effect in {join(words[True])} (the difference vanishes or turns).")
        if words[False]:
            lines.append(f"{said}: the order stays in {join(words[False])}.")
    return lines


def _effect_of_size(before: float, after: float) -> bool:
    return before * after <= 0 or abs(after) < SHRUNK * abs(before)
