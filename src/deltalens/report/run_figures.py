"""The figures that only the page of a whole run has: heat maps, spectra against their edge, dots of claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from markupsafe import Markup

from deltalens.report.experiment_svg import Dot, Line, Point, chart
from deltalens.report.view import View
from deltalens.report.words import Row, measured, number

LEADING = 24
"""Singular values drawn of a matrix."""

NAMED = 4
"""Matrices drawn: as many kinds as there are line styles that stay apart."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure.

    Attributes:
        name: Of its file.
        caption: What it shows.
        note: How to read it.
        drawing: SVG in HTML, without script.
        wide: Whether it takes the whole width.
        folded: Whether it is opened by a click: long, and summed up by another figure.
    """

    name: str
    caption: str
    note: str
    drawing: Markup
    wide: bool = False
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """One field of a heat map.

    Attributes:
        text: What stands in it.
        says: What it says to whoever asks.
        size: Its colour, from −1 to 1; None for nothing known.
        marked: Whether it has a frame.
    """

    text: str
    says: str
    size: float | None
    marked: bool = False


def heat(
    rows: Sequence[str],
    columns: Sequence[tuple[str, int]],
    cells: Mapping[tuple[int, int], Cell],
    under: Sequence[str] = (),
) -> Markup:
    """A heat map in per cent of its width: rows of equal height, a name over each column or group of columns.

    Args:
        rows: From top to bottom.
        columns: Names, and how many columns each spans.
        cells: By row and column; a place without one stays empty.
        under: Names of the single columns, beneath the map.
    """
    count = sum(span for _, span in columns)
    wide, high = 100 / count, 100 / len(rows)
    field = Markup(
        '<g class="field{}" style="--z:{}"><title>{}</title><rect x="{}%" y="{}%" width="{}%" height="{}%"/>'
        '<text class="middle" x="{}%" y="{}%" dy=".35em">{}</text></g>'
    )
    drawn = [
        field.format(
            (" unknown" if one.size is None else " under" if one.size < 0 else "") + (" marked" if one.marked else ""),
            round(max(-1.0, min(1.0, one.size or 0.0)), 3),
            one.says,
            *(round(x, 2) for x in (wide * column, high * row, wide, high, wide * (column + 0.5), high * (row + 0.5))),
            one.text,
        )
        for (row, column), one in sorted(cells.items(), key=lambda item: item[1].marked)
    ]
    side = Markup('<text class="end" x="-8" y="{}%" dy=".35em">{}</text>')
    drawn += [side.format(round(high * (i + 0.5), 2), name) for i, name in enumerate(rows)]
    at, over = 0, Markup('<text class="middle" x="{}%" y="-8">{}</text>')
    for name, span in columns:
        drawn.append(over.format(round(wide * (at + span / 2), 2), name))
        at += span
    below = Markup('<text class="middle" x="{}%" y="100%" dy="1.3em">{}</text>')
    drawn += [below.format(round(wide * (i + 0.5), 2), name) for i, name in enumerate(under)]
    return Markup('<div class="heat-map"><svg role="img" height="{}">{}</svg></div>').format(
        30 * len(rows), Markup("").join(drawn)
    )


def edge(row: Row) -> float | None:
    """What a singular value must exceed to count: the larger of rounding floor and bulk edge."""
    known = [row[key] for key in ("floor_edge", "bulk_edge") if row[key]]
    return max(known) if known else None


def spectra(view: View) -> Markup | None:
    """Leading σ over their edge, of the matrix that changed most of each of four kinds; None where no edge is known."""
    known = [row for row in view.rows if measured(row) and row["norm_delta"] and edge(row) and row["layer"] is not None]
    first = {row["kind"]: row for row in sorted(known, key=lambda row: row["norm_delta"])}
    lines = []
    for style, row in enumerate(islice(sorted(first.values(), key=lambda row: -row["norm_delta"]), NAMED)):
        values = view.run.spectrum(row["stored_name"])[:LEADING] / edge(row)
        said = [f"{row['name']}, σ {i}: {number(float(v))} × its edge" for i, v in enumerate(values, 1)]
        points = [Point(float(i), float(v), None, None, said[i - 1]) for i, v in enumerate(values, 1)]
        lines.append(Line(row["name"], points, style))
    if not lines:
        return None
    return chart(lines, [], ("place of σ", "σ over its edge"), (0.0, None), (1.0, "edge"), whole=True)


def spike_energy(views: Mapping[str, View]) -> Markup | None:
    """Share of ‖Δ‖² that spikes hold, by kind and pair; None where none were counted."""
    kinds: dict[str, None] = {}
    held: dict[tuple[str, str], tuple[float, float, int]] = {}
    for name, view in views.items():
        for row in view.rows:
            if measured(row) and row["norm_delta"] and row["spikes"] is not None:
                kinds.setdefault(row["kind"])
                whole, energy = row["norm_delta"] ** 2, row["spike_energy"] or 0.0
                a, b, n = held.get((name, row["kind"]), (0.0, 0.0, 0))
                held[name, row["kind"]] = a + energy * whole, b + whole, n + 1
    if not held:
        return None
    cells = {}
    for i, name in enumerate(views):
        for j, kind in enumerate(kinds):
            if (name, kind) in held:
                spikes, whole, n = held[name, kind]
                share = spikes / whole
                says = f"{name}, {kind}: spikes hold {number(share)} of ‖Δ‖² of {n} matrices"
                cells[i, j] = Cell(f"{100 * share:.0f}", says, share)
    return heat(list(views), [(short(kind), 1) for kind in kinds], cells)


def short(kind: str) -> str:
    """A kind of matrix as it fits over a column."""
    return kind.replace("_proj", "")


def claim(name: str, row: Row, text: str, role: str = "edit") -> Dot:
    """A row of a summary as a line of a dot plot."""
    return Dot(name, row["value"], row["low"], row["high"], text, role)
