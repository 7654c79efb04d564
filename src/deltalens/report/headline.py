"""The first sentences of the page: each a number, its null and where to see it, chosen by rules over the data.

The last run is the one in question; those before it are what it is read beside. A sentence whose data is absent, or
whose null was not computed, is left out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from deltalens.report import context
from deltalens.report.card import equal_size
from deltalens.report.ledger import entries
from deltalens.report.nulls import Outcome, outcomes
from deltalens.report.view import View
from deltalens.report.words import Row, join, measured, number, percent
from deltalens.spectrum.reading import CHANCE, principal, zero_word

NOTABLE = 0.05
"""Share of ‖Δ‖² below which a kind of matrix is not named in a sentence."""

LONGEST = 5
"""Sentences at most."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence.

    Attributes:
        title: What it comes to.
        text: The sentence, with its number and its null.
        anchor: The id of the section that shows it.
        where: What that section is called in the link.
    """

    title: str
    text: str
    anchor: str
    where: str


def findings(views: Sequence[View]) -> list[Finding]:
    """Up to five sentences on the last run, read beside the others."""
    if not views or not (views[-1].record["totals"]["norm_delta"] or 0) > 0:
        return []
    subject, beside = views[-1], list(views[:-1])
    rules = (_size(subject, beside), _rank(subject, beside), _principal(subject, beside), _zeros(subject))
    return [one for one in (*rules, _survival(subject, beside)) if one is not None][:LONGEST]


def over_rounding(rows: Sequence[Row]) -> tuple[float, float] | None:
    """Relative change of the matrices with a rounding model, and what rounding alone shows of them; None without."""
    known = [row for row in rows if measured(row) and row["noise_sigma"] and row["norm_base"]]
    if not known:
        return None
    base = sum(row["norm_base"] ** 2 for row in known)
    change = sum(row["norm_delta"] ** 2 for row in known)
    noise = sum(row["rows"] * row["cols"] * row["noise_sigma"] ** 2 for row in known)
    return (change / base) ** 0.5, (noise / base) ** 0.5


def _size(subject: View, beside: Sequence[View]) -> Finding | None:
    found = over_rounding(subject.rows)
    if found is None or not found[0]:
        return None
    change, noise = found
    title = f"A change of {percent(change)}, {number(change / noise, 2)} × what rounding shows"
    if change < 1.5 * noise:
        title = f"A change of {percent(change)}, hardly more than rounding shows"
    if change <= noise:
        title = f"A change of {percent(change)}, no more than rounding shows"
    text = f"{subject.label}: ‖Δ‖/‖W‖ of the matrices is {percent(change)}; rounding alone would leave {percent(noise)}"
    others = [(view.label, pair[0]) for view in beside if (pair := over_rounding(view.rows)) is not None]
    if others:
        text += f" ({join([f'{percent(size)} in {label}' for label, size in others])})"
    return Finding(title, f"{text}.{_kinds(subject)}", "map", "heat map")


def _kinds(subject: View) -> str:
    """The kind whose share of the squared change is furthest above its share of the entries, in a sentence."""
    sizes = entries(subject.rows, subject.ledger)
    known = [(share / sizes[kind], kind) for kind, share in subject.shares.items() if share >= NOTABLE and sizes[kind]]
    if len(sizes) < 2 or not known:
        return ""
    ratio, kind = max(known)
    if ratio < CHANCE[1]:
        return f" No kind of matrix changed beyond its size: at most {number(ratio, 2)} × its share of the entries."
    share, size = percent(subject.shares[kind]), percent(sizes[kind])
    return f" For its size {kind} changed most: {share} of ‖Δ‖² with {size} of the entries."


def _rank(subject: View, beside: Sequence[View]) -> Finding | None:
    found = subject.leading
    if found is None:
        return None
    others = [view for view in beside if view.leading is not None]
    also = [view for view in others if view.leading is not None and view.leading.word == "low-rank"]
    ranks = [(view, pair) for view in others if (pair := paired_ranks(subject, view)) is not None]
    no_lower = [view for view, (own, other) in ranks if own >= other]
    titles = {
        "low-rank": "Low-rank above noise",
        "not low-rank": "Not low-rank above noise",
        "undecided": "Low rank above noise: undecided",
    }
    title = titles[found.word]
    if found.word == "low-rank" and also:
        title = f"Low-rank, but not specific to {subject.label}"
    elif no_lower and found.word == "undecided":
        title = f"No lower in rank than {no_lower[0].label}"
    told = [f"{percent(view.leading.share)} in {view.label}" for view in (subject, *others) if view.leading]
    text = (
        f"The leading spikes (the first q/20 directions at most, above rounding floor and random-sign edge) hold this "
        f"share of ‖Δ‖²: {join(told)}. Low-rank is 50 % or more, not low-rank 20 % or less."
    )
    if found.noisy:
        text += " Half of the squared change is no stronger than rounding, so this decides nothing."
    for view, (own, other) in ranks:
        text += f" {_ranked(subject, view, own, other)}"
    return Finding(title, text, "depth", "rank over depth")


def _ranked(subject: View, view: View, own: float, other: float) -> str:
    said = f"median denoised effective rank {number(own)} against {number(other)}"
    if own >= other:
        sizes = "" if equal_size(subject, view) else ", at different sizes"
        return f"{subject.label} is no lower in rank than {view.label}: {said}{sizes}."
    if equal_size(subject, view):
        return f"{subject.label} is lower in rank than {view.label}: {said}."
    return f"Against {view.label}: {said}, but the changes differ in size, which alone can do that."


def paired_ranks(first: View, second: View) -> tuple[float, float] | None:
    """Median denoised effective rank of two runs over the matrices that have one in both, None where none has."""
    own, other = (
        {row["name"]: row["denoised_effective_rank"] for row in view.rows if row["denoised_effective_rank"] is not None}
        for view in (first, second)
    )
    common = own.keys() & other.keys()
    return (median(own[n] for n in common), median(other[n] for n in common)) if common else None


def _principal(subject: View, beside: Sequence[View]) -> Finding | None:
    found = principal(subject.rows)
    if found is None:
        return None
    held, chance = found
    ratio = held / chance
    title = f"On the base's principal directions: {number(ratio, 2)} × chance"
    if ratio < CHANCE[0]:
        title = f"Off the base's principal directions: {number(ratio, 2)} × chance"
    elif ratio <= CHANCE[1]:
        title = "Neither on nor off the base's principal directions"
    ks = {row["context_k"] for row in subject.rows if row["principal_energy"] is not None}
    top = f"top {ks.pop()}" if len(ks) == 1 else "top"
    text = (
        f"{subject.label}: the base's {top} left and right directions hold {percent(held)} of ‖Δ‖²; "
        f"a change without structure puts {percent(chance)} there ({number(ratio, 2)} ×, in the median matrix "
        f"{number(context.middle(subject.rows, 'principal_energy_ratio'), 2)} ×)"
    )
    others = [(view.label, pair[0] / pair[1]) for view in beside if (pair := principal(view.rows)) is not None]
    if others:
        text += f"; {join([f'{number(times, 2)} × in {label}' for label, times in others])}"
    return Finding(title, f"{text}.{_against(subject, 'principal_energy')}", "context", "context")


def _against(subject: View, statistic: str) -> str:
    """In how many matrices each null of the ensemble fails to explain it, as a sentence; empty where none ran."""
    line = next((one for one in outcomes(subject.nulls) if one.statistic == statistic), None)
    if line is None or not line.decided:
        return ""
    if not any(one.outside for one in line.decided):
        return f" The null ensemble ({_named_nulls([line])}) shows the same in every matrix tested."
    said = [f"{one.null} in {one.outside} of {one.tested}" for one in line.decided]
    return f" Not explained by the null draws: {join(said)} matrices tested."


def _zeros(subject: View) -> Finding | None:
    known = [row for row in subject.rows if zero_word(row["zero_fraction"], row["predicted_zero_fraction"])]
    size = sum(row["rows"] * row["cols"] for row in known)
    if not size:
        return None
    observed, predicted = (
        sum(row[key] * row["rows"] * row["cols"] for row in known) / size
        for key in ("zero_fraction", "predicted_zero_fraction")
    )
    words = Counter(zero_word(row["zero_fraction"], row["predicted_zero_fraction"]) for row in known)
    word, times = words.most_common(1)[0]
    titles = {
        "explained by precision": "Unchanged entries are explained by storage precision",
        "sparser": "Sparser than storage precision explains",
        "denser": "Denser than storage precision predicts",
    }
    title = titles[word or ""] if 2 * times > len(known) else "Unchanged entries: precision explains some matrices only"
    line = next((one for one in outcomes(subject.nulls) if one.statistic == "zero_fraction"), None)
    if line is not None and line.survives and word == "explained by precision":
        title = f"Unchanged entries: near what precision predicts, but not explained by {_named_nulls([line])} draws"
    stored = join(sorted({str(row["dtype_tuned"]) for row in known}))
    text = (
        f"{subject.label}: {percent(observed)} of the entries did not change, where a dense Gaussian change of this "
        f"size stored as {stored} would leave {percent(predicted)}; {word} in {times} of {len(known)} matrices."
    )
    return Finding(title, f"{text}{_against(subject, 'zero_fraction')}", "zeros", "zeros and precision")


def _survival(subject: View, beside: Sequence[View]) -> Finding | None:
    decided = [line for line in outcomes(subject.nulls) if line.decided]
    if not decided:
        return None
    kept = [line for line in decided if line.survives]
    gone = [line for line in decided if not line.survives]
    verb = "survives" if len(kept) == 1 else "survive"
    title = f"{len(kept)} of {len(decided)} statistics {verb} every structureless update"
    if not kept:
        title = "No statistic survives every structureless update"
    if not gone:
        title = f"All {len(decided)} statistics survive every structureless update"
    text = f"{subject.label}, not explained in most matrices by the null ensemble ({_named_nulls(decided)})"
    if kept:
        text += f": {_some(kept)}"
    if gone:
        text += f"; not so: {_some(gone)}"
    same = [(view.label, _kept(view)) for view in beside if any(line.decided for line in outcomes(view.nulls))]
    own = _kept(subject)
    equal = [label for label, other in same if own and own <= other]
    if equal:
        text += f". What survives here survives in {join(equal)} too"
    return Finding(title, f"{text}.", "nulls", "null ensemble")


def _kept(view: View) -> set[str]:
    return {line.statistic for line in outcomes(view.nulls) if line.survives}


def _named_nulls(lines: Sequence[Outcome]) -> str:
    return join(list(dict.fromkeys(one.null for line in lines for one in line.decided)))


def _some(lines: Sequence[Outcome], most: int = 5) -> str:
    heads = [line.head.replace(", raw", " (raw)") for line in lines]
    return join(heads if len(heads) <= most else [*heads[: most - 1], f"{len(heads) - most + 1} more"])
