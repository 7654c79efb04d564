"""Spectrum against behaviour: which kinds of matrix does Δ act through, and through its spikes or its bulk (ours)?

Δ_k, the leading k singular triples of the delta of every matrix, is put into the base: in all seven linear kinds, in
attention or the MLP alone, and in one kind at a time; beside each stands its energy, ‖W′ − W_b‖²/Σ‖Δ‖². Then Δ is
parted where `measure` counts spikes, at the edge of rounding and chance: the spikes alone, the bulk alone, and the bulk
stretched to the length of Δ, since a part may do nothing only because it is short. The rank at which behaviour returns
is LoX's (arXiv 2506.15606), which has neither the parts nor controls.

Controls keep the functional norm of what they stand beside (`sweep.matched`): of the curve of all kinds, and of each
part. The curves of fewer kinds have none, and claim nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltalens.checkpoint.names import LINEAR
from deltalens.edit.form import Triples
from deltalens.edit.ranks import leading
from deltalens.edit.select import GROUPS, editable
from deltalens.evaluate.scores import Row
from deltalens.store.engine import Progress
from deltalens.sweep.bench import BASE, bench, edited
from deltalens.sweep.curves import Curve, Swept, sweep, write
from deltalens.sweep.matched import Matched
from deltalens.sweep.pair import Pairing, opened
from deltalens.sweep.spectrum import ENERGY, Spectrum, along_ranks, energies, energy_row, ranks, spectra
from deltalens.sweep.verdicts import CONTRADICTED, ITEMS, SUPPORTED, UNDECIDED, Verdict, enough

VERSION = 1
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""

LEGEND = (
    "Δ_k: the leading k singular triples of the delta of every matrix of the named kinds, put into the base; all else\n"
    "stays at base, embeddings, norms and output head included, so that F of all of Δ may be below 1.\n"
    "spikes: singular values above rounding and chance; bulk: all others; stretched bulk: at the length of Δ.\n"
    "F: (arm − base)/(tuned − base). A part carries the behaviour where the lower bound of its F is ≥ 0.8, and not\n"
    "where the upper bound is < 0.5. Intervals of claims are 99.4 %. Controls keep the edit's functional norm ‖ΔΣ^½‖."
)

COARSE = 4.0
"""Ranks of one kind go up by this factor, those of several by 2: it claims nothing, and there are seven."""

Steps = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def spectrum_behaviour(
    asked: Pairing,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
    kl: bool = True,
) -> Swept:
    """Puts Δ_k of all kinds, of some, and of one at a time into the base; then the spikes, the bulk, and it stretched.

    Holds half of the singular vectors of the seven kinds in float64.

    Args:
        asked: From `sweep.pair.pairing`; its `sibling` gives a control.
        out: Directory for the tables, where an interrupted sweep resumes; None keeps nothing.
        progress: Called after every point.
        command: The command line to record.
        kl: Whether KL from the base is taken.

    Raises:
        BadInput: The model does not load.
        Refused: The linear kinds do not differ, the tuned side is an adapter (spikes are those of stored matrices), or
            `out` holds something else.
    """
    kept: dict[tuple[str, ...], Triples] = {}
    task = asked.prompts.task.name
    of = spectra(asked, kept)
    whole = sum(s.norm_sq for s in of)
    count, held = spikes_in(asked, kept)
    share = min(held / whole, 1.0)
    with bench(asked, {"recipe": "spectrum-behaviour", "version": VERSION}, out, progress, command, kl) as at:
        matched = Matched(at)
        curves = [along_ranks(asked, kept, _PUT, of, ranks(of), _ASKS, matched)]
        rows = energies(curves[0], of, whole, task)
        for name, kinds in selections(of).items():
            some = [s for s in of if set(s.kinds) <= set(kinds)]
            xs = ranks(some, 2.0 if name in GROUPS else COARSE)
            curves.append(along_ranks(asked, kept, f"{_PUT} of {name}", some, xs, kinds=kinds))
            rows += energies(curves[-1], some, whole, task)
        for curve, part in parted(asked, kept, share, whole, matched):
            curves.append(curve)
            rows.append(energy_row(_arm(curve.name), curve.name, part, task))
        labels = {"arm": "pair", "task": task, "group": ""}
        rows.append(
            labels | {"metric": "spikes", "value": float(count), "method": "of all matrices, as measure counts"}
        )
        rows.append(labels | {"metric": "energy_in_spikes", "value": share, "method": ENERGY})
        found = sweep(at, curves, more=rows)
        shares = {row["arm"]: row for row in found.summary if row["metric"] == "fraction" and row["arm"] in _PARTS}
        said = spikes_or_bulk(shares).text
        found.summary.append(labels | {"metric": "spikes_or_bulk", "value": None, "method": said})
        write(out, "spectrum-behaviour", found)
    return found


_PUT = "base + Δ_k"
_PARTS = ("spikes", "bulk", "stretched bulk")
_ASKS = ("causal", "sufficient")


def selections(of: Sequence[Spectrum]) -> dict[str, tuple[str, ...]]:
    """Kinds that are put in apart from the others, by name: attention, MLP, then one at a time (fused ones together).

    Those without a matrix that differs are left out.
    """
    apart = sorted({s.kinds for s in of}, key=lambda kinds: LINEAR.index(kinds[0]))
    found = {"attention": LINEAR[:4], "mlp": LINEAR[4:]} | {"+".join(kinds): kinds for kinds in apart}
    there = {name: tuple(k for k in kinds if any(k in a for a in apart)) for name, kinds in found.items()}
    return {name: kinds for name, kinds in there.items() if kinds}


def spikes_in(asked: Pairing, kept: dict[tuple[str, ...], Triples]) -> tuple[int, float]:
    """How many spikes all matrices have, and Σσ² of them.

    Raises:
        Refused: The tuned side is an adapter.
    """
    plan = opened(asked, _SPIKES, kept)
    steps = [(row, step) for row in editable(plan.pair) for step in plan.steps.get(row.name.name, ())]
    lefts = [leading(plan, row, step).left for row, step in steps]
    return sum(left.shape[1] for left in lefts), float(sum(np.sum(left**2) for left in lefts))


def parted(
    asked: Pairing, kept: dict[tuple[str, ...], Triples], share: float, whole: float, matched: Matched
) -> list[tuple[Curve, float]]:
    """Spikes, bulk and stretched bulk as curves of one point, each with its energy.

    Args:
        asked: The pair.
        kept: Triples found so far.
        share: Of Σ‖Δ‖² in the spikes.
        whole: Σ‖Δ‖² of the seven kinds.
        matched: Gives the controls.
    """
    parts = {"spikes": (_SPIKES, 1.0, share), "bulk": (_without_spikes(1.0), 1.0, 1 - share)}
    if 1 - share > _ROUNDING:
        stretch = (1 - share) ** -0.5
        parts["stretched bulk"] = (_without_spikes(stretch), stretch, 1.0)

    def curve(name: str, steps: Steps, strength: float, energy: float) -> Curve:
        plan = opened(asked, steps, kept)
        point = edited(_arm(name), "edit", plan, strength, (energy * whole) ** 0.5)
        return Curve(name, BASE, (strength,), lambda _: point, lambda p: matched.points(p, plan), _ASKS)

    return [(curve(name, *part), part[2]) for name, part in parts.items()]


def spikes_or_bulk(shares: Mapping[str, Row]) -> Verdict:
    """Which part of Δ carries the behaviour: `spikes`, `bulk`, `both` or `undecided`.

    A part carries it where it is sufficient, and does not where it is shown not to be. A short bulk that would carry it
    at the length of Δ is not said not to: then it is undecided.

    Args:
        shares: F of `spikes`, of `bulk` and, where there is a bulk, of `stretched bulk`.
    """
    spikes = shares["spikes"]
    if spikes["low"] is None or spikes["n"] < ITEMS:
        return Verdict(UNDECIDED, enough(spikes).why)
    word = {name: enough(share).word for name, share in shares.items()}
    why = "F = " + ", ".join(f"{s['value']:.2f} [{s['low']:.2f}, {s['high']:.2f}] ({n})" for n, s in shares.items())
    if word["spikes"] == word["bulk"] == SUPPORTED:
        return Verdict("both", why)
    if word["spikes"] == CONTRADICTED and word["bulk"] == SUPPORTED:
        return Verdict("bulk", why)
    if word["spikes"] == SUPPORTED and {word[name] for name in word if name != "spikes"} == {CONTRADICTED}:
        return Verdict("spikes", why)
    return Verdict(UNDECIDED, why)


_SPIKES = {"operator": "truncate", "rank": "spikes"}
_ROUNDING = 1e-9  # a share of energy below this is what float64 leaves of nothing


def _without_spikes(strength: float) -> Steps:
    """W_b + α(Δ − Δ_spikes), as all of αΔ put in and the spikes taken out again."""
    whole = {"operator": "truncate", "rank": "full", "strength": strength}
    return [whole, {"operator": "revert", "rank": "spikes", "strength": strength}]


def _arm(part: str) -> str:
    return f"base + {part}"
