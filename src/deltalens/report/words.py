"""Numbers and the words of one matrix: every term that the page uses for a value, in one place."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deltalens.spectrum.reading import zero_word

Row = Mapping[str, Any]
"""One row of `matrices.parquet`."""

NOTHING = "–"
"""Stands where a number is not defined: never "nan", never "None"."""

CONFINED = 0.25
"""Share of the squared delta norm in one row or column above which the matrix is called confined to it."""


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


def matrices(count: int) -> str:
    """As in 1 matrix, 12 matrices."""
    return "1 matrix" if count == 1 else f"{number(count)} matrices"


def of(part: int, whole: int, one: str = "is", many: str = "are") -> str:
    """A subject and its verb for `part` of `whole` matrices."""
    if part == 0:
        return f"none of {matrices(whole)} {one}"
    if part == whole:
        named = {1: f"the only matrix {one}", 2: f"both matrices {many}"}
        return named.get(whole, f"all {matrices(whole)} {many}")
    return f"{number(part)} of {matrices(whole)} {one if part == 1 else many}"


def join(words: Sequence[str]) -> str:
    """As in: a; a and b; a, b and c."""
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"
