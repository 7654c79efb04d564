"""What the page of a run tells of weights alone: spectra, zeros, the stage before, and overlaps of trainings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltalens.report.experiment_svg import Dot, dots
from deltalens.report.experiment_words import p_text, signed
from deltalens.report.headline import Finding
from deltalens.report.run_figures import Cell, Figure, heat, spectra, spike_energy
from deltalens.report.run_parts import Part, Table, records, sentence
from deltalens.report.run_read import Whole
from deltalens.report.view import View
from deltalens.report.words import NOTHING, join, number, percent


def of_spectra(whole: Whole) -> Part:
    """Leading σ of the pair, spikes of every pair by kind, and a row for each."""
    if not whole.pairs:
        return Part("spectra", "Spectra", absent=whole.why("pairs"))
    (name, main), *others = whole.pairs.items()
    said = []
    if main.leading is not None:
        beside = [f"{other} {percent(view.leading.share)}" for other, view in others if view.leading is not None]
        text = f"Share of Σσ² in the first spikes, at most q/20 of them, over all matrices of {name}"
        text += f"; {join(beside)}" if beside else ""
        title = f"Leading spikes hold {percent(main.leading.share)} of the change: {main.leading.word}"
        said.append(sentence(title, f"{text}."))
    figures = []
    if (drawn := spectra(main)) is not None:
        note = "Of the four kinds that changed most, the matrix with the largest ‖Δ‖. Above 1 a σ is a spike."
        figures.append(Figure("spectra", f"Leading singular values of {name}", note, drawn))
    if (drawn := spike_energy(whole.pairs)) is not None:
        note = "Per cent of ‖Δ‖² of each kind that stands above floor and bulk edge. Sizes differ: see the table."
        figures.append(Figure("spike-energy", "Energy of spikes by kind, every pair", note, drawn))
    rows = [_pair(name, view) for name, view in whole.pairs.items()]
    heads = ["pair", "‖Δ‖/‖W‖", "matrices with spikes", "leading share", "so", "effective rank, denoised", "raw"]
    return Part("spectra", "Spectra", said, figures, [Table("Every measured pair", heads, rows)])


def _pair(name: str, view: View) -> list[str]:
    s, led = view.summary, view.leading
    share, word = (NOTHING, NOTHING) if led is None else (percent(led.share), led.word)
    ranks = [number(s.denoised_rank), number(s.raw_rank)]
    return [name, percent(view.size), f"{s.with_spikes} of {s.counted}", share, word, *ranks]


def of_zeros(whole: Whole) -> Part:
    """Entries that did not change, beside what rounding alone predicts of a dense change."""
    title, lines, said = "Zeros and precision", [], []
    for i, (name, view) in enumerate(whole.pairs.items()):
        rows = [row for row in view.rows if None not in (row["zero_fraction"], row["predicted_zero_fraction"])]
        if not rows:
            continue
        sizes = [row["rows"] * row["cols"] for row in rows]
        observed, predicted = (
            float(np.average([row[key] for row in rows], weights=sizes))
            for key in ("zero_fraction", "predicted_zero_fraction")
        )
        lines.append(Dot(name, 100 * observed, None, None, f"{percent(observed)}; predicted {percent(predicted)}"))
        lines.append(Dot("predicted by rounding", 100 * predicted, None, None, "", "muted"))
        if i == 0:
            told = f"{percent(observed)} of the entries of {name} did not change, {percent(predicted)} are predicted"
            text = f"Predicted: what a dense change of the same size leaves, stored alike; {len(rows)} matrices."
            said = [sentence(told, text)]
    if not lines:
        return Part("zeros", title, absent="no pair has a prediction of its unchanged entries")
    note = "Per cent of entries with Δ = 0, and what storage in 16 bits would leave of a dense change."
    return Part("zeros", title, said, [Figure("zeros", "Entries that did not change, %", note, dots(lines, 0.0), True)])


_SHARES = {
    "cosine": "cosine of Δ₁ and Δ₂",
    "cancelled": "share of Δ₁ taken back",
    "shared_left": "of Δ₂ in the outputs of Δ₁",
    "shared": "of Δ₂ in both sides of Δ₁",
    "undone": "of Δ₂ against Δ₁",
    "repeated": "of Δ₂ along Δ₁",
    "new": "of Δ₂ outside of both",
    "overlap_left": "overlap of leading outputs",
}


def of_stages(whole: Whole) -> Part:
    """The three-way decomposition, each share beside the null that decides."""
    title, found = "Root → base → tuned, matrix by matrix", whole.values.get("stages")
    if not isinstance(found, dict) or not isinstance(found.get("values"), dict):
        return Part("stages", title, absent=whole.why("stages"))
    values, nulls, matrices = found["values"], found.get("nulls") or {}, records(found.get("matrices"))
    lines = []
    for name, said in _SHARES.items():
        if values.get(name) is None:
            continue
        each = [m["values"][name] for m in matrices if (m.get("values") or {}).get(name) is not None]
        low, high = np.quantile(each, [0.05, 0.95]).tolist() if each else (None, None)
        null = nulls.get(name)
        text = signed(values[name], sign=False) + ("" if null is None else f"; null {signed(null, sign=False)}")
        lines.append(Dot(said, values[name], low, high, text))
        if null is not None:
            lines.append(Dot("largest null", null, None, None, "", "muted"))
    note = "All matrices together; bars hold 90 % of single matrices and are no interval. Null: the one that decides."
    figure = Figure("stages", f"{' → '.join(map(str, found.get('sources') or ()))}", note, dots(lines, zero=True), True)
    return Part("stages", title, _along(values, nulls), [figure])


def _along(values: Mapping[str, float | None], nulls: Mapping[str, float | None]) -> list[Finding]:
    cosine, bound = values.get("cosine"), nulls.get("cosine")
    said = []
    if cosine is not None and bound is not None:
        turned = "points back along the first" if cosine < 0 else "goes on along the first"
        if abs(cosine) <= bound:
            turned = "is no more along the first than random signs"
        text = f"Random signs stay within ±{number(bound)} in 95 % of draws."
        said.append(sentence(f"The second stage {turned}: cosine {signed(cosine)}", text))
    new, null = values.get("new"), nulls.get("new")
    if new is not None:
        text = "Energy of Δ₂ outside of the leading inputs and outputs of Δ₁" + (
            "" if null is None else f"; the least of its nulls has {percent(null)}"
        )
        said.append(sentence(f"{percent(new)} of the second stage is new", f"{text}."))
    return said


def of_atlas(whole: Whole) -> Part:
    """Overlaps of every two trainings on either side."""
    title, found = "Overlaps of every two pairs", whole.values.get("atlas")
    if not isinstance(found, dict) or not (relations := records(found.get("relations"))):
        return Part("atlas", title, absent=whole.why("atlas"))
    names = list(map(str, found.get("names") or ()))
    figures = []
    for side, of in (("left", "outputs"), ("right", "inputs")):
        cells = {}
        for one in relations:
            if one.get("side") == side and {one.get("a"), one.get("b")} <= {*names}:
                i, j = sorted((names.index(one["a"]), names.index(one["b"])))
                cells[j, i] = _overlap(one)
        note = "Mean φ; colour: φ less its largest null; framed: shared at Holm .05; ×: not comparable."
        drawn = heat(names[1:], [(name, 1) for name in names[:-1]], {(j - 1, i): c for (j, i), c in cells.items()})
        figures.append(Figure(f"atlas-{side}", f"Leading {of} ({side} side)", note, drawn))
    left = [one for one in relations if one.get("side") == "left"]
    shared = [f"{one['a']} × {one['b']}" for one in left if one.get("word") == "shared"]
    text = "Words, left side: " + join(
        [f"{word} {n}" for word, n in _counted([str(one.get("word")) for one in left]).items()]
    )
    said = f"{len(shared)} of {len(left)} pairings share their leading outputs"
    return Part("atlas", title, [sentence(said + (f": {join(shared[:3])}" if shared else ""), f"{text}.")], figures)


def _counted(words: Sequence[str]) -> dict[str, int]:
    return {word: words.count(word) for word in dict.fromkeys(words)}


def _overlap(one: Mapping[str, Any]) -> Cell:
    said = f"{one['a']} and {one['b']}, {one['side']}: {one.get('word')}"
    said += f" ({one['reason']})" if one.get("reason") else ""
    if one.get("overlap") is None or one.get("null") is None:
        return Cell("×", said, None)
    said += f"; φ {number(one['overlap'])}, largest null {number(one['null'])}, k = {one.get('k')}"
    said += f", Holm {p_text(one['p_holm'])}" if one.get("p_holm") is not None else ""
    if "not comparable" in str(one.get("word")):
        return Cell("×", said, None)
    text = f"{one['overlap']:.2f}".lstrip("0")
    return Cell(text, said, one["overlap"] - one["null"], one.get("word") == "shared")
