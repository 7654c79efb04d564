"""The causal map on the page of a run: which cells of Δ move thinking, layer by kind by band, in both directions."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from deltalens.checkpoint.names import LINEAR
from deltalens.errors import printable
from deltalens.report.experiment_arms import Arms, printed, read_arms
from deltalens.report.experiment_read import Trial
from deltalens.report.experiment_words import metric, p_text, p_value, signed, value
from deltalens.report.headline import Finding
from deltalens.report.run_figures import Cell, Figure, heat, short
from deltalens.report.run_parts import Table, Told
from deltalens.report.run_read import Whole
from deltalens.report.words import Row, number, percent

DIRECTIONS = {"put in": "Put into the base alone", "leave out": "Left out of the tuned model"}
BANDS = ("top", "rest", "whole")
LISTED = 40
"""Cells in the printed table."""
NAMED = 6
"""Cells of a set that a sentence names."""
FINE = 0.2
"""Largest share moved up to which per cent are printed with a decimal."""


@dataclass(frozen=True, slots=True)
class MapCell:
    """A cell of Δ in one direction.

    Attributes:
        arm: Of its summary.
        direction: One of `DIRECTIONS`.
        layer: None outside of the layers.
        kind: As the map names it.
        band: One of `BANDS`.
        effect: Its paired difference from the start; None where it was not run.
        moved: Share of the pair's difference that it moves towards the other end.
        matters: Whether it counts by the rule of the map; None where that is not known.
        first_order: What a gradient says of it.
    """

    arm: str
    direction: str
    layer: int | None
    kind: str
    band: str
    effect: Row | None
    moved: float | None
    matters: bool | None
    first_order: Row | None

    @property
    def name(self) -> str:
        """In words."""
        return self.kind if self.layer is None else f"layer {self.layer} {self.kind} {self.band}"


def map_cells(arms: Arms) -> list[MapCell]:
    """Every cell of a map in both directions."""
    found = []
    for arm, edit in arms.edits.items():
        cell, direction = edit.get("cell"), edit.get("direction")
        if arms.roles[arm] != "edit" or not isinstance(cell, dict) or direction not in DIRECTIONS:
            continue
        share, matters = arms.of(arm, "fraction", reference=True), arms.of(arm, "matters")
        moved = None if share is None else share["value"]
        layer = cell.get("layer")
        found.append(
            MapCell(
                arm,
                direction,
                layer if isinstance(layer, int) else None,
                printable(cell.get("kind")),
                printable(cell.get("band")),
                arms.of(arm, arms.metric, reference=True),
                moved if moved is None or direction == "put in" else 1 - moved,
                None if matters is None or matters["value"] is None else bool(matters["value"]),
                arms.of(arm, "first_order"),
            )
        )
    return found


def of_map(_: Whole, trial: Trial) -> Told:
    """Heat maps, sentences and the table of the cells that matter."""
    arms = read_arms(trial)
    cells = map_cells(arms)
    most = max((abs(c.moved) for c in cells if c.moved is not None), default=1.0) or 1.0
    figures = [
        Figure(f"map-{direction.replace(' ', '-')}", title, _NOTE.format(percent(most)), drawn, wide=True)
        for direction, title in DIRECTIONS.items()
        if (drawn := _drawn([c for c in cells if c.direction == direction], most)) is not None
    ]
    mattering = sorted((c for c in cells if c.matters), key=lambda c: -abs(c.moved or 0.0))
    heads = ["cell", "direction", f"change of {metric(arms.metric).head}", "share moved", "p, Holm", "first order"]
    rows = [
        [c.name, c.direction, value(c.effect), signed(c.moved), p_value((c.effect or {}).get("p_holm")),
         value(c.first_order)]
        for c in mattering[:LISTED]
    ]  # fmt: skip
    caption = "Cells that matter" + (f", the first {LISTED} of {len(mattering)}" if len(mattering) > LISTED else "")
    return _said(arms, cells), figures, [Table(caption, heads, rows)] if rows else []


_NOTE = (
    "Per cent of the pair's difference that the cell moves towards the other end; full colour at {}. Framed: "
    "it matters (Holm p ≤ .05 and at least 5 %). Empty: not run, its first-order effect was too small."
)


def _drawn(cells: Sequence[MapCell], most: float) -> Markup | None:
    placed = [(c.layer, c) for c in cells if c.layer is not None and c.band in BANDS]
    if not placed:
        return None
    layers = sorted({layer for layer, _ in placed})
    kinds = sorted(
        {c.kind for _, c in placed}, key=lambda kind: (LINEAR.index(kind) if kind in LINEAR else len(LINEAR), kind)
    )
    bands = {kind: [b for b in BANDS if any((c.kind, c.band) == (kind, b) for _, c in placed)] for kind in kinds}
    places = [(kind, band) for kind in kinds for band in bands[kind]]
    found = {(layers.index(layer), places.index((c.kind, c.band))): _cell(c, most) for layer, c in placed}
    columns = [(short(kind), len(bands[kind])) for kind in kinds]
    return heat([f"layer {layer}" for layer in layers], columns, found, [band for _, band in places])


def _cell(c: MapCell, most: float) -> Cell:
    if c.effect is None:
        first = "" if c.first_order is None else f", first order {value(c.first_order)} nats"
        return Cell("", f"{c.direction} {c.name}: not run{first}", None)
    says = f"{c.direction} {c.name}: {metric(c.effect['metric']).head} {value(c.effect)}"
    says += f", {p_text(c.effect['p_holm'])} (Holm)" if c.effect["p_holm"] is not None else ""
    if c.moved is None:
        return Cell("", says, 0.0)
    text = signed(round(100 * c.moved, 0 if most > FINE else 1), 3, False)
    return Cell(text, f"{says}; moves {signed(c.moved)}", c.moved / most, bool(c.matters))


def _said(arms: Arms, cells: Sequence[MapCell]) -> list[Finding]:
    said = []
    for direction in DIRECTIONS:
        own = [c for c in cells if c.direction == direction and c.effect is not None and c.moved is not None]
        if not own:
            continue
        best = max(own, key=lambda c: c.moved or 0.0)
        mattering = [c for c in own if c.matters]
        title = f"{direction.capitalize()}: {len(mattering)} of {len(own)} cells that ran matter"
        text = f"Largest: {best.name}, {value(best.effect)}, {signed(best.moved)} of the pair's difference"
        held = arms.of(f"smallest set, {direction}", "cells")
        if held is not None and held["value"] is not None:
            said_of, names = printed(held["method"]), held["method"].split(", ")
            if len(names) > NAMED:
                said_of = f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
            text += f". Smallest set tried: {number(held['value'])} cells ({said_of})"
        rank = arms.of(direction, "spearman")
        if rank is not None and rank["value"] is not None:
            text += f". Rank correlation of first-order and true effects: {signed(rank['value'])}"
        said.append(Finding(title, f"{text}.", "", ""))
    return said
