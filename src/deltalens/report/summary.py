"""One run in sentences: how far its weights moved, where spikes are, which rank is left."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from deltalens.report.words import Row, below_floor, join, matrices, measured, number, of, percent
from deltalens.spectrum.reading import zero_word


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
    same = f"{of(summary.unchanged, count)} identical on the two sides"
    if summary.unchanged == count and norm_delta == 0:
        return f"No compared tensor changed: {same}."
    moved = f"The weights moved by {percent(relative_change)} of their norm"
    if relative_change is None:
        moved = f"The weights moved from zero to a norm of {number(norm_delta)}"
    if summary.unchanged == count:
        return f"{moved}, none of it in a matrix: {same}."
    if summary.below_floor and summary.below_floor + summary.unchanged == count:
        return f"{moved}, and {of(summary.below_floor, count)} below the rounding floor."
    parts = [moved]
    if summary.counted:
        null = "chance" if summary.floorless == count else "rounding and chance"
        parts.append(f"{of(summary.with_spikes, summary.counted, 'has', 'have')} spikes above {null}")
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
            f"{matrices(summary.counted)}."
        )
    if summary.below_floor:
        lines.append(
            f"{of(summary.below_floor, count).capitalize()} below the rounding floor: no singular value "
            f"exceeds what rounding alone can show."
        )
    if summary.floorless:
        lines.append(
            f"{of(summary.floorless, count, 'has', 'have').capitalize()} no rounding floor (float32 storage): "
            f"the bulk edge is the only null there, and ranks are not corrected for rounding."
        )
    if 0 < summary.ranked < count:
        lines.append(
            f"Median ranks are over {number(summary.ranked)} of {matrices(count)}: those with a denoised rank."
        )
    if summary.zeros:
        total = sum(summary.zeros.values())
        words = sorted(summary.zeros.items(), key=lambda item: (-item[1], item[0]))
        said = join([f"{word} in {number(times)}" for word, times in words])
        lines.append(f"Entries that did not change, in {matrices(total)} with a prediction: {said}.")
    if half := _half(shares):
        verb = "holds" if len(half) == 1 else "hold"
        lines.append(f"{join(half)} {verb} {percent(sum(shares[kind] for kind in half))} of ‖Δ‖².")
    if 0 < summary.unchanged < count:
        lines.append(f"{of(summary.unchanged, count)} identical on the two sides.".capitalize())
    if summary.refused:
        verb = "was" if summary.refused == 1 else "were"
        lines.append(f"{matrices(summary.refused)} {verb} refused and not measured; the ledger says why.")
    return lines


def size_note(labels: Sequence[str], changes: Sequence[int | float | None]) -> str | None:
    """Why pairs of different size may not be ranked, None where there is one run or the sizes agree within 5 %."""
    known = [(label, change) for label, change in zip(labels, changes, strict=True) if change]
    if len(known) < 2 or max(c for _, c in known) <= 1.05 * min(c for _, c in known):
        return None
    sizes = join([f"{percent(change)} ({label})" for label, change in known])
    return (
        f"These changes differ in size: {sizes}. Ranks, spikes and zero shares depend on size, because a larger "
        f"change stands further above the same rounding floor: their order here is not a finding about training."
    )


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
