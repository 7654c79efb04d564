"""The section of `probe`: how far a direction separates two groups of prompts, layer by layer, beside its nulls."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from deltalens.errors import printable
from deltalens.report.experiment_read import Trial
from deltalens.report.experiment_svg import Band, Line, Point, chart
from deltalens.report.experiment_words import metric, p_text, signed, value
from deltalens.report.headline import Finding
from deltalens.report.words import NOTHING, Row, join, number

SIDES = ("", "against: ")
NULLS = ("random", "label-permuted")
MEASURES = ("d", "auc", "auc_normalised")
LENGTH = "prompt length"
ALPHA = 0.05

SCALES = ("z", "raw", "normalised")
"""What the heat strip can show, the first by default."""

SATURATED = 3.0
"""|z| of full colour."""

TOKENS = 60_000
"""Numbers of the heat strips on one page, about 0.5 MB."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of one model: its rows of the summary by metric, and those of its nulls by (null, metric)."""

    number: int
    scores: dict[str, Row]
    nulls: dict[tuple[str, str], Row]

    @property
    def beyond(self) -> bool | None:
        """Whether |d| is beyond every null: its whole interval outside both bands, and both corrected p at most .05."""
        d, area = self.scores.get("d"), self.scores.get("auc")
        bands = [row for (_, name), row in self.nulls.items() if name == "d"]
        ends = [row[end] for row in bands for end in ("low", "high")]
        if d is None or area is None or not bands or None in (d["low"], d["high"], d["p_holm"], area["p_holm"], *ends):
            return None
        return max(d["low"], -d["high"]) > max(map(abs, ends)) and max(d["p_holm"], area["p_holm"]) <= ALPHA


@dataclass(frozen=True, slots=True)
class Strip:
    """One example: its tokens with their phase, and for every scale and layer one number per token."""

    title: str
    tokens: list[tuple[str, str]]
    layers: list[int]
    values: dict[str, list[list[float | None]]]
    left_out: int


@dataclass(frozen=True, slots=True)
class Side:
    """One model: its name, its layers."""

    name: str
    layers: list[Layer]


@dataclass(frozen=True, slots=True)
class ProbeView:
    """The section.

    Attributes:
        groups: The two prompt sets, as one text.
        names: What they are called.
        sides: The model, then the one it is set against.
        figures: The d profile and the AUC profile, with their captions.
        strips: Examples.
        start: The place, in the layers of the strips, of the one that is shown first.
        length: The row of prompt length alone, None without.
    """

    groups: str
    names: tuple[str, str]
    sides: list[Side]
    figures: list[tuple[str, str, Markup]]
    strips: list[Strip]
    start: int
    length: Row | None

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Its sections: the end of their anchors, and what they are called."""
        return [("profile", "Layer profile"), *([("tokens", "Token by token")] if self.strips else [])]


def view(trial: Trial) -> ProbeView:
    """Everything the section shows."""
    sides = [Side(name, _layers(trial, prefix)) for name, prefix in zip(trial.models, SIDES, strict=False)]
    sides = [side for side in sides if side.layers]
    length = next((row for row in trial.summary if row["arm"] == LENGTH), None)
    found = strips(trial)
    best = strongest(sides[0].layers) if sides else None
    start = found[0].layers.index(best.number) if found and best and best.number in found[0].layers else 0
    captions = {
        "d": "Separation by layer: Cohen's d",
        "auc": "Separation by layer: AUC, which stops at 1",
    }
    figures = [(captions[name], metric(name).meaning, profile(sides, name, length)) for name in captions]
    groups = next((row["task"] for row in trial.summary), NOTHING)
    return ProbeView(groups, _names(trial), sides, figures, found, start, length)


def _names(trial: Trial) -> tuple[str, str]:
    prompts = trial.record.get("prompts")
    names = prompts.get("names") if isinstance(prompts, dict) else None
    first, second = names if isinstance(names, list) and len(names) == 2 else ("the first group", "the second group")
    return printable(first), printable(second)


def _layers(trial: Trial, side: str) -> list[Layer]:
    found: dict[int, Layer] = {}
    for row in trial.summary:
        where = re.fullmatch(r"layer (\d+)", row["group"] or "")
        if where is None or row["arm"].startswith(SIDES[1]) != bool(side):
            continue
        layer = found.setdefault(int(where[1]), Layer(int(where[1]), {}, {}))
        arm = row["arm"].removeprefix(side)
        if arm in NULLS:
            layer.nulls[arm, row["metric"]] = row
        else:
            layer.scores.setdefault(row["metric"], row)
    return [found[key] for key in sorted(found)]


def strongest(layers: Sequence[Layer]) -> Layer | None:
    """The layer with the largest |d|, of those beyond every null where there is one."""
    known = [one for one in layers if "d" in one.scores and one.scores["d"]["value"] is not None]
    known = [one for one in known if one.beyond] or known
    return max(known, key=lambda one: abs(one.scores["d"]["value"]), default=None)


def profile(sides: Sequence[Side], name: str, length: Row | None = None) -> Markup:
    """A measure over layers: the models as lines, the bands of the first model's nulls under them."""
    lines = [
        Line(side.name, [_point(side, layer, layer.scores[name]) for layer in side.layers if name in layer.scores], i)
        for i, side in enumerate(sides)
    ]
    bands = [_band(f"{null}, 95 %", sides[0].layers, null, name, style)
             for null, style in zip(NULLS, ("a", "b"), strict=True)] if sides else []  # fmt: skip
    bands += [_band(f"label-permuted, {side.name}", side.layers, NULLS[1], name, "line") for side in sides[1:]]
    level = None
    if name == "auc" and length is not None and length["value"] is not None:
        level = (length["value"], "prompt length alone")
    ends = (0.0, 1.0) if name == "auc" else (None, None)
    return chart(lines, [b for b in bands if b.xs], ("layer", metric(name).head), ends, level, whole=True)


def _point(side: Side, layer: Layer, row: Row) -> Point:
    text = f"{side.name}, layer {layer.number}: {metric(row['metric']).head} {value(row)}"
    for null in NULLS:
        band = layer.nulls.get((null, row["metric"]))
        if band is not None:
            text += f"; {null} {_ends(band)}"
    return Point(float(layer.number), row["value"] or 0.0, row["low"], row["high"], text)


def _band(title: str, layers: Sequence[Layer], null: str, name: str, style: str) -> Band:
    rows = [(layer.number, layer.nulls[null, name]) for layer in layers if (null, name) in layer.nulls]
    rows = [(x, row) for x, row in rows if None not in (row["low"], row["high"])]
    low, high = ([row[end] for _, row in rows] for end in ("low", "high"))
    return Band(title, [float(x) for x, _ in rows], low, high, style)


def strips(trial: Trial) -> list[Strip]:
    """The examples, cut where a page would grow too large."""
    by_item: dict[str, list[Row]] = {}
    for row in trial.tokens:
        by_item.setdefault(row["item"], []).append(row)
    found = []
    for item, rows in by_item.items():
        layers = sorted({row["layer"] for row in rows})
        positions = sorted({row["position"] for row in rows})
        kept = positions[: max(1, TOKENS // (len(SCALES) * len(layers) * len(by_item)))]
        cells = {(row["layer"], row["position"]): row for row in rows}
        first = [next(cells[layer, p] for layer in layers if (layer, p) in cells) for p in kept]
        values = {scale: [[_short(cells.get((layer, p)), scale) for p in kept] for layer in layers] for scale in SCALES}
        tokens = [(row["token"] or "", row["phase"]) for row in first]
        found.append(Strip(f"{rows[0]['group']}: {item}", tokens, layers, values, len(positions) - len(kept)))
    return found


def _short(row: Row | None, scale: str) -> float | None:
    return None if row is None or row[scale] is None else float(f"{row[scale]:.3g}")


def payload(one: Strip) -> dict[str, Any]:
    """What the page's script needs of a strip."""
    return {"layers": one.layers, "values": one.values, "scales": SCALES, "saturated": SATURATED}


def findings(trial: Trial) -> list[Finding]:
    """Up to five sentences: the separation beside its nulls, the other model, length, and what examples show."""
    seen = view(trial)
    if not seen.sides:
        return []
    best = strongest(seen.sides[0].layers)
    if best is None:
        return []
    anchor = trial.anchor("profile")
    rules = (
        _separates(seen, best, _undecided(trial, seen), anchor),
        _in_other(seen, best, anchor),
        _area(seen.sides[0], best, anchor),
        _length(seen, anchor),
    )
    return [one for one in rules if one is not None]


def _undecided(trial: Trial, seen: ProbeView) -> str | None:
    """Why separation on these prompts would say nothing, None where it does."""
    row, prompts = seen.length, trial.record.get("prompts")
    if row is not None and None not in (row["low"], row["high"]) and not row["low"] <= 0.5 <= row["high"]:
        return "prompt length alone tells the groups apart"
    if isinstance(prompts, dict) and prompts.get("seen"):
        return "the direction was made from these very prompts"
    return None


def _separates(seen: ProbeView, best: Layer, undecided: str | None, anchor: str) -> Finding:
    side, groups = seen.sides[0], seen.groups
    where = _where(side, seen.names)
    title = f"Beyond every null in {side.name}: {where}" if where else f"Beyond the nulls in no layer of {side.name}"
    if undecided:
        title = f"Undecided: {undecided}"
    d = best.scores["d"]
    text = (
        f"{groups}: in layer {best.number}, the largest of {len(side.layers)}, Cohen's d is {value(d)}; 95 % of "
        f"{_nulls(best, 'd')}; among label-permuted directions {p_text(d['p_holm'])}, corrected over layers."
    )
    return Finding(title, text, anchor, "profile")


def _where(side: Side, names: tuple[str, str]) -> str:
    """In which layers a direction is beyond its nulls, and on which group it is higher there; empty for none."""
    said = []
    for name, sign in zip(names, (1, -1), strict=True):
        which = [str(layer.number) for layer in side.layers if layer.beyond and sign * layer.scores["d"]["value"] > 0]
        if which:
            named = which if len(which) <= 6 else [*which[:5], f"{len(which) - 5} more"]
            said.append(f"higher on {name} in layer{'s' * (len(which) > 1)} {join(named)}")
    return join(said)


def _in_other(seen: ProbeView, best: Layer, anchor: str) -> Finding | None:
    if len(seen.sides) < 2:
        return None
    other = seen.sides[1]
    same = next((layer for layer in other.layers if layer.number == best.number), None)
    if same is None or "d" not in same.scores:
        return None
    where = _where(other, seen.names)
    said = f"beyond its nulls, {where}" if where else "in no layer beyond its nulls"
    title = f"The same direction in {other.name}: {said}"
    text = (
        f"Layer {same.number} of {other.name}: d {value(same.scores['d'])} ({value(best.scores['d'])} in "
        f"{seen.sides[0].name}); there 95 % of {_nulls(same, 'd')}."
    )
    return Finding(title, text, anchor, "profile")


def _area(side: Side, best: Layer, anchor: str) -> Finding | None:
    area, normalised = best.scores.get("auc"), best.scores.get("auc_normalised")
    if area is None:
        return None
    text = f"Layer {best.number} of {side.name}: AUC {value(area)}"
    if normalised is not None:
        text += f", {value(normalised)} with ‖h‖ divided out"
    bands = [row for (_, name), row in best.nulls.items() if name == "auc" and row["high"] is not None]
    easy = any(max(row["high"], 1 - row["low"]) >= 0.95 for row in bands)
    title = f"AUC {number(area['value'])} with layer {best.number}"
    if easy:
        title += ": chance directions reach that too, so it decides nothing"
    return Finding(
        title,
        f"{text}; 95 % of {_nulls(best, 'auc')}; permuted labels {p_text(area['p_holm'])}, Holm over layers.",
        anchor,
        "profile",
    )


def _length(seen: ProbeView, anchor: str) -> Finding | None:
    row = seen.length
    if row is None or None in (row["value"], row["low"], row["high"]):
        return None
    told = not row["low"] <= 0.5 <= row["high"]
    title = f"Prompt length {'alone tells' if told else 'does not tell'} the groups apart"
    text = f"AUC of the token count {value(row)}, over {row['n']} prompts; .5 says nothing."
    return Finding(title, text, anchor, "profile")


def _nulls(layer: Layer, name: str) -> str:
    said = [f"{null} directions lie in {_ends(row)}" for null in NULLS if (row := layer.nulls.get((null, name)))]
    return join(said) or "null directions: not drawn"


def _ends(row: Row) -> str:
    low, high = (None if row[end] is None else round(row[end], 3) for end in ("low", "high"))
    return f"[{signed(low, sign=False)}, {signed(high, sign=False)}]"
