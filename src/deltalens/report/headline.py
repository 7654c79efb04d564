"""Sentences from numbers: every word on the page that says what a run found, as pure functions of its rows."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Row = Mapping[str, Any]
"""One row of `matrices.parquet`."""

NOTHING = "–"
"""Stands where a number is not defined: never "nan", never "None"."""

EXPLAINED = (-0.05, 0.12)
"""Observed minus predicted zero share inside which dense updates of every tested shape lie, both ends included."""

CONFINED = 0.25
"""Share of the squared delta norm in one row or column above which the matrix is called confined to it."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What the sentences are made of.

    Attributes:
        matrices: Matrices with numbers.
        refused: Matrices without.
        unchanged: Those whose delta is exactly zero.
        below_floor: Changed ones with a rounding floor and no singular value above it.
        floorless: Matrices stored so finely that no rounding floor is modelled.
        counted: Matrices with a spike count.
        with_spikes: Those of them that have at least one.
        spike_energy: Share of the squared delta norm of the counted matrices that their spikes hold, or None.
        ranked: Matrices with a denoised effective rank.
        raw_rank: Their median raw effective rank, or None.
        denoised_rank: Their median denoised effective rank, or None.
        possible_rank: The largest rank that any of them could have, or None.
        zeros: How many matrices each word about the share of unchanged entries fits.
    """

    matrices: int
    refused: int
    unchanged: int
    below_floor: int
    floorless: int
    counted: int
    with_spikes: int
    spike_energy: float | None
    ranked: int
    raw_rank: float | None
    denoised_rank: float | None
    possible_rank: int | None
    zeros: Mapping[str, int]


def number(value: int | float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits, "–" for None and for anything not finite."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if isinstance(value, int) or (abs(value) < 1e15 and value == int(value) and abs(value) >= 10**digits):
        return f"{int(value):,}".replace(",", "\u202f")
    if 10**digits <= abs(value) < 1e6:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.{digits}g}"


def percent(share: int | float | None) -> str:
    """A share as a percentage; one that is not whole never reads 100 %, one that is not nothing never reads 0 %."""
    if share is None or not math.isfinite(share):
        return NOTHING
    if 0 < share < 1e-6:
        return "< 0.0001 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.3g} %" if abs(share) < 10 else f"{number(100 * share)} %"


def zero_word(observed: int | float | None, predicted: int | float | None) -> str | None:
    """The word for a share of unchanged entries beside the one that rounding predicts, None without a prediction."""
    if observed is None or predicted is None:
        return None
    gap, slack = observed - predicted, 1e-12  # .35 − .40 is not −.05 in binary; a bound must not hang on that
    if gap > EXPLAINED[1] + slack:
        return "sparser"
    return "denser" if gap < EXPLAINED[0] - slack else "explained by precision"


def confined_words(row: Row) -> list[str]:
    """*row-confined*, *column-confined*, both or neither: such a change is no spike, however strong."""
    named = (("row_share_1", "row-confined"), ("col_share_1", "column-confined"))
    return [word for key, word in named if row[key] is not None and row[key] > CONFINED]


def measured(row: Row) -> bool:
    """Whether a row holds numbers: a refused tensor has a row without them."""
    return row["norm_delta"] is not None


def below_floor(row: Row) -> bool:
    """Whether a changed matrix has a rounding floor and nothing above it."""
    return measured(row) and row["norm_delta"] > 0 and row["noise_model"] != "none" and row["above_floor"] == 0


def summarise(rows: Sequence[Row]) -> Summary:
    """Counts and medians over the matrices of one run; raw and denoised rank are medians over the same matrices."""
    known = [row for row in rows if measured(row)]
    counted = [row for row in known if row["spikes"] is not None]
    ranked = [row for row in known if row["denoised_effective_rank"] is not None]
    energy = sum(row["norm_delta"] ** 2 for row in counted)
    held = sum((row["spike_energy"] or 0.0) * row["norm_delta"] ** 2 for row in counted)
    words = (zero_word(row["zero_fraction"], row["predicted_zero_fraction"]) for row in known)
    return Summary(
        matrices=len(known),
        refused=len(rows) - len(known),
        unchanged=sum(row["norm_delta"] == 0 for row in known),
        below_floor=sum(map(below_floor, known)),
        floorless=sum(row["noise_model"] == "none" for row in known),
        counted=len(counted),
        with_spikes=sum(row["spikes"] > 0 for row in counted),
        spike_energy=held / energy if energy > 0 else None,
        ranked=len(ranked),
        raw_rank=_median(row["effective_rank"] for row in ranked),
        denoised_rank=_median(row["denoised_effective_rank"] for row in ranked),
        possible_rank=max((min(row["rows"], row["cols"]) for row in ranked), default=None),
        zeros=dict(Counter(word for word in words if word)),
    )


def lead(norm_delta: int | float, relative_change: int | float | None, summary: Summary) -> str:
    """The one-sentence answer for a pair: how far the weights moved, where spikes are, which rank is left.

    Args:
        norm_delta: ‖Δ‖ over all compared tensors, vectors too.
        relative_change: The same over ‖W_base‖, None where that is zero.
        summary: From `summarise`.
    """
    count = summary.matrices
    if count == 0:
        return "No matrix could be measured."
    same = f"{_of(summary.unchanged, count)} identical on the two sides"
    if summary.unchanged == count and norm_delta == 0:
        return f"No compared tensor changed: {same}."
    moved = f"The weights moved by {percent(relative_change)} of their norm"
    if relative_change is None:
        moved = f"The weights moved from zero to a norm of {number(norm_delta)}"
    if summary.unchanged == count:
        return f"{moved}, none of it in a matrix: {same}."
    if summary.below_floor and summary.below_floor + summary.unchanged == count:
        return f"{moved}, and {_of(summary.below_floor, count)} below the rounding floor."
    parts = [moved]
    if summary.counted:
        null = "chance" if summary.floorless == count else "rounding and chance"
        parts.append(f"{_of(summary.with_spikes, summary.counted, 'has', 'have')} spikes above {null}")
    if summary.denoised_rank is not None:
        raw, denoised = number(summary.raw_rank), number(summary.denoised_rank)
        rank = f"{denoised} denoised ({raw} raw, at most {number(summary.possible_rank)})"
        if summary.floorless == count:
            rank = f"{raw} (at most {number(summary.possible_rank)}), with no rounding floor to correct for"
        parts.append(f"the median effective rank is {rank}")
    return f"{'; '.join(parts)}."


def support(summary: Summary, shares: Mapping[str, float]) -> list[str]:
    """The sentences under the answer, each with its numbers; only those that the numbers call for.

    Args:
        summary: From `summarise`.
        shares: Share of the squared delta norm of each kind of tensor, as in the ledger.
    """
    count = summary.matrices
    lines = []
    if summary.with_spikes and summary.spike_energy is not None:
        lines.append(
            f"Spikes (directions above both the rounding floor and the bulk edge, which is the same change with "
            f"random signs) hold {percent(summary.spike_energy)} of the squared change of "
            f"{_matrices(summary.counted)}."
        )
    if summary.below_floor:
        lines.append(
            f"{_of(summary.below_floor, count).capitalize()} below the rounding floor: no singular value "
            f"exceeds what rounding alone can show."
        )
    if summary.floorless:
        lines.append(
            f"{_of(summary.floorless, count, 'has', 'have').capitalize()} no rounding floor (float32 storage): "
            f"the bulk edge is the only null there, and ranks are not corrected for rounding."
        )
    if 0 < summary.ranked < count:
        lines.append(
            f"Median ranks are over {number(summary.ranked)} of {_matrices(count)}: those with a denoised rank."
        )
    if summary.zeros:
        total = sum(summary.zeros.values())
        words = sorted(summary.zeros.items(), key=lambda item: (-item[1], item[0]))
        said = _join([f"{word} in {number(times)}" for word, times in words])
        lines.append(f"Entries that did not change, in {_matrices(total)} with a prediction: {said}.")
    if half := _half(shares):
        verb = "holds" if len(half) == 1 else "hold"
        lines.append(f"{_join(half)} {verb} {percent(sum(shares[kind] for kind in half))} of ‖Δ‖².")
    if 0 < summary.unchanged < count:
        lines.append(f"{_of(summary.unchanged, count)} identical on the two sides.".capitalize())
    if summary.refused:
        verb = "was" if summary.refused == 1 else "were"
        lines.append(f"{_matrices(summary.refused)} {verb} refused and not measured; the ledger says why.")
    return lines


def size_note(labels: Sequence[str], changes: Sequence[int | float | None]) -> str | None:
    """Why pairs of different size may not be ranked, None where there is one run or the sizes agree within 5 %."""
    known = [(label, change) for label, change in zip(labels, changes, strict=True) if change]
    if len(known) < 2 or max(c for _, c in known) <= 1.05 * min(c for _, c in known):
        return None
    sizes = _join([f"{percent(change)} ({label})" for label, change in known])
    return (
        f"These changes differ in size: {sizes}. Ranks, spikes and zero shares depend on size, because a larger "
        f"change stands further above the same rounding floor: their order here is not a finding about training."
    )


def facts(row: Row) -> list[tuple[str, str]]:
    """The caption of one matrix: pairs of a term and its value, with the words that its numbers earn."""
    if not measured(row):
        return [("Shape", f"{row['rows']} × {row['cols']}"), ("Status", f"{row['status']}, see the ledger")]
    if row["norm_delta"] == 0:
        return [("Shape", f"{row['rows']} × {row['cols']}"), ("Change", "none: Δ = 0")]
    spikes, above, short = row["spikes"], row["above_floor"], min(row["rows"], row["cols"])
    floorless = row["noise_model"] == "none"
    word = zero_word(row["zero_fraction"], row["predicted_zero_fraction"])
    lines = [
        ("Shape", f"{row['rows']} × {row['cols']}, {row['dtype_base']} → {row['dtype_tuned']}"),
        ("Relative change", percent(row["relative_change"])),
        ("Effective rank", _rank(row, short)),
        ("Spikes", _spikes(row, spikes)),
        ("Above the floor", f"{number(above)} of {number(short)} σ (detectable, which is not low-rank)"),
        ("Unchanged entries", f"{percent(row['zero_fraction'])} observed, no prediction"),
        ("Rounding floor", f"{number(row['floor_edge'])} ({str(row['noise_model']).replace('_', ' ')})"),
        ("Bulk edge", number(row["bulk_edge"])),
    ]
    named = dict(lines)
    if floorless:
        named["Rounding floor"] = "none (float32 storage)"
        named.pop("Above the floor")
    elif above == 0:
        named["Above the floor"] = "nothing: below the rounding floor"
    if row["bulk_edge"] is None:
        named["Bulk edge"] = "not computed"
    if word:
        observed, predicted = percent(row["zero_fraction"]), percent(row["predicted_zero_fraction"])
        named["Unchanged entries"] = f"{observed} observed, {predicted} predicted: {word}"
    if confined := confined_words(row):
        share = max(row["row_share_1"] or 0.0, row["col_share_1"] or 0.0)
        named["Shape of the change"] = f"{' and '.join(confined)} ({percent(share)} of ‖Δ‖² in one line)"
    return list(named.items())


def spike_count(row: Row) -> str:
    """The number of spikes, "≥ 256" where the count stopped at its limit."""
    return f"≥ {row['spikes']}" if row["spikes_capped"] and row["spikes"] is not None else number(row["spikes"])


def _rank(row: Row, short: int) -> str:
    raw, denoised = number(row["effective_rank"]), number(row["denoised_effective_rank"])
    if row["noise_model"] == "none":
        return f"{raw} of {number(short)}, with no rounding floor to correct for"
    if row["denoised_effective_rank"] is None:  # a raw rank without its partner would be read as a finding
        return "none above the floor"
    return f"{raw} raw → {denoised} denoised, of {number(short)}"


def _spikes(row: Row, spikes: int | None) -> str:
    if spikes is None:
        return "not counted"
    return f"{spike_count(row)}, holding {percent(row['spike_energy'])} of ‖Δ‖²" if spikes else "none"


def _half(shares: Mapping[str, float]) -> list[str]:
    """The fewest kinds that together hold at least half, largest first; none where nothing changed."""
    chosen, total = [], 0.0
    for kind, share in sorted(shares.items(), key=lambda item: -item[1]):
        if total >= 0.5 or share <= 0:
            break
        chosen.append(kind)
        total += share
    return chosen


def _median(values: Iterable[int | float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None


def _matrices(count: int) -> str:
    return "1 matrix" if count == 1 else f"{number(count)} matrices"


def _of(part: int, whole: int, one: str = "is", many: str = "are") -> str:
    """A subject and its verb for `part` of `whole` matrices."""
    if part == 0:
        return f"none of {_matrices(whole)} {one}"
    if part == whole:
        named = {1: f"the only matrix {one}", 2: f"both matrices {many}"}
        return named.get(whole, f"all {_matrices(whole)} {many}")
    return f"{number(part)} of {_matrices(whole)} {one if part == 1 else many}"


def _join(words: Sequence[str]) -> str:
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"
