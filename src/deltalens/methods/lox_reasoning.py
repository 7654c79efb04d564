"""LoX on a reasoning delta: further along its leading directions, without them, and with them alone (arXiv 2506.15606).

W_t + αU_kU_kᵀΔ = W_t + αΔ_k of every matrix, embeddings and output head included, at the paper's k = 6 around its
α = 1.25; then W_t − Δ_k and W_b + Δ_k of the seven linear kinds over k. The paper amplifies a safety delta against
later fine-tuning; here the same operator asks whether reasoning lies in those directions (ours).

R_align = ‖P_kΔ‖/‖Δ‖ and, given a model fine-tuned further from the tuned one, R_ft = ‖P_k(Δ + Δ_ft)‖/‖Δ + Δ_ft‖, both
energy-weighted over the seven kinds, with P_k = U_kU_kᵀ of Δ itself (the paper: k = 100). R_ft below R_align: the
fine-tuning has left the subspace; a random subspace would hold √(k/m). Controls are those of `sweep.matched`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deltalens.checkpoint.source import Checkpoint
from deltalens.edit.form import Triples, triples
from deltalens.edit.plan import Plan
from deltalens.edit.shares import change_norm
from deltalens.evaluate.scores import Row
from deltalens.store.engine import Progress
from deltalens.sweep.bench import TUNED, Point, bench, edited
from deltalens.sweep.curves import Curve, Swept, sweep, write
from deltalens.sweep.matched import Matched
from deltalens.sweep.pair import Pairing, opened
from deltalens.sweep.spectrum import Ranks, Spectrum, along_ranks, energy, ranks, spectra

VERSION = 1
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""

RANK = 6
"""k of the paper's headline setting."""
STRENGTHS = (0.25, 0.5, 1.0, 1.25, 1.5, 2.0)
"""α; 1.25 is the paper's."""

LEGEND = (
    "Δ_k: the leading k singular triples of the delta of every matrix: of the seven linear kinds, for + αΔ_k of all.\n"
    "from: where strength 0 stands, and what effects are taken from. F: (arm − base)/(tuned − base); on a curve from\n"
    "tuned it is what is left. Where the tuned model already thinks, + αΔ_k has nothing to gain.\n"
    "r align: ‖P_kΔ‖/‖Δ‖; r ft: the same of the delta after further fine-tuning, on the same subspace; null: √(k/m).\n"
    "Controls keep the functional norm ‖ΔΣ^½‖ of the edit. Intervals of claims are 99.4 %."
)


def lox_reasoning(
    asked: Pairing,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
    kl: bool = True,
) -> Swept:
    """Amplifies Δ_6, takes Δ_k out of the tuned model and puts it into the base.

    Holds half of the singular vectors of the seven kinds in float64.

    Args:
        asked: From `sweep.pair.pairing`; its `sibling` gives a control, its `further` R_ft.
        out: Directory for the tables, where an interrupted sweep resumes; None keeps nothing.
        progress: Called after every point.
        command: The command line to record.
        kl: Whether KL from the base is taken.

    Raises:
        BadInput: The model does not load.
        Refused: The linear kinds do not differ, the further model lacks a matrix, or `out` holds something else.
    """
    kept: dict[tuple[str, ...], Triples] = {}
    of = spectra(asked, kept)
    rank = min(RANK, max(s.full for s in of))

    def plan_of(strength: float) -> Plan:
        return opened(asked, {"operator": "lox", "rank": rank, "strength": strength}, kept)

    length = change_norm(plan_of(1.0))

    def make(strength: float) -> Point:
        arm = f"tuned + {strength:g}Δ_{rank}"
        return edited(arm, "edit", plan_of(strength), strength, strength * length)

    with bench(asked, {"recipe": "lox-reasoning", "version": VERSION}, out, progress, command, kl) as at:
        matched, xs = Matched(at), ranks(of)

        def controls(point: Point) -> list[Point]:
            assert point.strength is not None
            return matched.points(point, plan_of(point.strength))

        amplified = Curve(f"tuned + αΔ_{rank}", TUNED, STRENGTHS, make, controls, asks=())
        taken = along_ranks(asked, kept, "tuned − Δ_k", of, xs, ("causal", "necessary", "choice"), matched, out=True)
        put = along_ranks(asked, kept, "base + Δ_k", of, xs, ("causal", "sufficient"), matched)
        rows = aligned(put, of, asked.others.get("further"), asked)
        found = sweep(at, [amplified, taken, put], more=rows)
        write(out, "lox-reasoning", found)
    return found


def aligned(curve: Curve, of: Sequence[Spectrum], further: Checkpoint | None, asked: Pairing) -> list[Row]:
    """R_align of every rank of a curve and, with a model fine-tuned further, R_ft and its null.

    Args:
        curve: Over ranks; its arms bear the rows.
        of: Its matrices.
        further: A model fine-tuned further from the tuned one.
        asked: The pair.
    """
    whole = sum(s.norm_sq for s in of)
    measured = {"r_align": ([(energy(of, k) / whole) ** 0.5 for k in curve.xs], "‖P_kΔ‖/‖Δ‖")}
    if further is not None:
        kept, null = _after(of, curve.xs, further, asked)
        measured["r_ft"] = (kept, f"‖P_k(Δ + Δ_ft)‖/‖Δ + Δ_ft‖ of {further.source}")
        measured["r_ft_null"] = (null, "√(k/m): a random subspace")
    labels = {"task": asked.prompts.task.name, "group": curve.name}
    return [
        labels | {"arm": curve.make(k).arm.name, "metric": metric, "value": value, "method": how}
        for metric, (values, how) in measured.items()
        for k, value in zip(curve.xs, values, strict=True)
    ]


def _after(of: Sequence[Spectrum], ks: Ranks, further: Checkpoint, asked: Pairing) -> tuple[list[float], list[float]]:
    """R_ft and what a random subspace would hold, by rank; decomposes again, one matrix at a time."""
    source = further.source
    plan = opened(asked, {"operator": "contrast", "plus": source, "minus": "base"})
    held, null, whole = np.zeros(len(ks)), np.zeros(len(ks)), 0.0
    for s in of:
        base = plan.of("base", s.row)
        delta, own = plan.of(source, s.row) - base, triples(plan.of("tuned", s.row) - base, s.full)
        size = delta.norm_sq()
        energies = np.sum(delta.transposed_times(own.left) ** 2, axis=1)
        held += [energies[: int(k)].sum() for k in ks]
        null += [size * min(k, s.full) / s.row.shape[0] for k in ks]
        whole += size
    return np.sqrt(held / whole).tolist(), np.sqrt(null / whole).tolist()
