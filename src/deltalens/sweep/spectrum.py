"""Δ of the seven linear kinds by its singular values, and its leading part Δ_k as a curve over k."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Float64

from deltalens.checkpoint.pair import Row as Tensor
from deltalens.edit.form import Triples
from deltalens.edit.plan import Plan
from deltalens.edit.ranks import leading
from deltalens.edit.select import editable, kinds_of
from deltalens.errors import Refused
from deltalens.evaluate.scores import Row
from deltalens.sweep.bench import BASE, TUNED, Point, edited
from deltalens.sweep.curves import Curve
from deltalens.sweep.matched import Matched
from deltalens.sweep.pair import Pairing, opened

Ranks = tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Δ of one matrix.

    Attributes:
        row: Where it belongs.
        kinds: What it holds, several where projections are fused.
        sigma: Its leading singular values.
        norm_sq: ‖Δ‖².
        full: Its rank, where that is among the leading ones; else its short side.
    """

    row: Tensor
    kinds: tuple[str, ...]
    sigma: Float64[np.ndarray, " k"]
    norm_sq: float
    full: int

    def energy(self, k: float) -> float:
        """Σ_{i≤k} σ_i², k no more than is known of σ, or all."""
        return self.norm_sq if k >= self.full else float(np.sum(self.sigma[: int(k)] ** 2))


def spectra(asked: Pairing, kept: dict[tuple[str, ...], Triples], most: int | None = None) -> list[Spectrum]:
    """Δ of every matrix of the seven linear kinds that differs, decomposed once for every plan that shares `kept`.

    Vectors are found for every rank of `ranks`: by default half of them all, at most twice the seven kinds in float32.

    Args:
        asked: The pair.
        kept: Where the triples are left.
        most: The largest rank below the full one.

    Raises:
        Refused: No matrix differs.
    """
    plan = opened(asked, {"operator": "truncate", "rank": 1}, kept)
    found = []
    for row in editable(plan.pair):
        for step in plan.steps.get(row.name.name, ()):
            delta = plan.of("tuned", row) - plan.of("base", row)
            if not (norm_sq := delta.norm_sq()):
                continue
            q = min(row.shape)
            k = max(1, min(_below(q) + 1, q - 1, (most or q) + 1))  # one more tells a rank that ends there
            form = leading(plan, row, replace(step, operation=replace(step.operation, rank=k)))
            sigma = np.linalg.norm(form.left, axis=0)
            full = len(sigma) if len(sigma) < k < q else q
            found.append(Spectrum(row, kinds_of(row, plan.owners), sigma, norm_sq, full))
    if not found:
        raise Refused(f"{asked.base} and {asked.tuned} do not differ in any matrix of the seven linear kinds")
    return found


def ranks(of: Sequence[Spectrum], factor: float = 2.0, most: int | None = None) -> Ranks:
    """1, `factor`, its square, … below the full rank and up to `most`, then the full rank.

    Args:
        of: The matrices.
        factor: A power of two.
        most: As in `spectra`.
    """
    full = max(s.full for s in of)
    below = []
    while (k := factor ** len(below)) < full and (most is None or k <= most):
        below.append(k)
    return (*below, float(full))


def energy(of: Sequence[Spectrum], k: float) -> float:
    """Σ‖Δ_k‖² over matrices."""
    return sum(s.energy(k) for s in of)


def along_ranks(
    asked: Pairing,
    kept: dict[tuple[str, ...], Triples],
    name: str,
    of: Sequence[Spectrum],
    xs: Ranks,
    asks: tuple[str, ...] = (),
    matched: Matched | None = None,
    *,
    kinds: tuple[str, ...] | None = None,
    out: bool = False,
    stretched: bool = False,
) -> Curve:
    """Δ_k of some matrices put into the base, or taken out of the tuned model, over k.

    Args:
        asked: The pair.
        kept: Triples found so far.
        name: Of the curve; the arms have the rank in place of its k.
        of: The matrices.
        xs: Ranks; full rank, which needs no decomposition, included.
        asks: Verdicts.
        matched: Gives the controls; None for none.
        kinds: Those of the matrices; None for the seven.
        out: Whether it is taken out of the tuned model.
        stretched: Whether every Δ_k is made as long as Δ.
    """
    full = float(max(s.full for s in of))
    whole = energy(of, full)

    def rank(k: float) -> int | str:
        return "full" if k >= full else int(k)

    @cache  # opening reads the headers of both sides
    def plan_of(k: float) -> Plan:
        strength = (whole / energy(of, k)) ** 0.5 if stretched else 1.0
        step = {"operator": "revert" if out else "truncate", "rank": rank(k), "strength": strength}
        return opened(asked, step | ({} if kinds is None else {"kinds": list(kinds)}), kept)

    def make(k: float) -> Point:
        arm = name.replace("Δ_k", f"Δ_{rank(k)}").replace("e_k", f"e_{rank(k)}")
        return edited(arm, "edit", plan_of(k), k, (whole if stretched else energy(of, k)) ** 0.5)

    def controls(point: Point) -> list[Point]:
        assert point.strength is not None
        return [] if matched is None else matched.points(point, plan_of(point.strength))

    return Curve(name, TUNED if out else BASE, xs, make, controls, asks)


def energies(curve: Curve, of: Sequence[Spectrum], whole: float, task: str) -> list[Row]:
    """How much of Σ‖Δ‖² each point of a curve over ranks holds.

    Args:
        curve: From `along_ranks`.
        of: Its matrices.
        whole: Σ‖Δ‖² of the seven kinds.
        task: What the rows stand under.
    """
    return [energy_row(curve.make(k).arm.name, curve.name, energy(of, k) / whole, task) for k in curve.xs]


def energy_row(arm: str, curve: str, share: float, task: str) -> Row:
    """The share of Σ‖Δ‖² that an arm of a curve holds, as a row of a summary."""
    return {"arm": arm, "task": task, "group": curve, "metric": "energy", "value": share, "method": ENERGY}


ENERGY = "‖W′ − W_b‖²/Σ‖Δ‖², of the seven linear kinds"


def _below(q: int) -> int:
    """The largest power of two below a whole number; 0 for 1."""
    return 1 << (q - 1).bit_length() >> 1
