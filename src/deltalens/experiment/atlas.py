"""Which deltas share their leading subspaces: overlaps between measured pairs, beside the largest null (ours).

Of every two pairs and every matrix that both changed, φ = ‖A_kᵀB_k‖²_F/k of the k leading left vectors, and of the
right ones; k = 4, or the least number that all these deltas have. Nulls per matrix, of which the largest decides:

    isotropic     k/d
    other layer   the mean of φ(A at layer i, B at layer j) over i ≠ j, one of them this layer: same kind and shape
    sibling       the delta of another training that is not in question, in place of A or of B

Over all matrices: means with the energy shares in both deltas as weights, of those matrices that have other layers. The
p-value is that of the mean φ against layers permuted, with Holm's correction over all tests of the atlas. Matrices that
read the same input are permuted together, for even unrelated deltas share the subspaces of their inputs. For the same
reason the right side is undecided without a sibling (docs/measures.md §4).

Subspaces are compared in coordinates: pairs of another random start or architecture are marked (`experiment.gauge`).
Overlaps know no signs: a delta shares everything with one that undoes it (`experiment.stages` tells).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import factorial, prod
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from deltalens.direction.compare import overlap
from deltalens.direction.spaces import role_kind
from deltalens.experiment.gauge import OTHER, UNDECIDED, gauge
from deltalens.experiment.stages import place
from deltalens.statistics import holm, permutation_p
from deltalens.store.results import SUMMARY
from deltalens.store.run import Run

TOP = 4
"""k where all deltas have as many vectors: safety needs 3 to 6 (LoX, arXiv 2506.15606)."""

DRAWS = 1999
"""Permutations: Holm over two sides of 15 pairs of pairs needs p-values below .05/30."""

ALPHA = 0.05
MARGIN = 0.05
"""Excess over the largest null below which nothing is called shared (the margin of docs/measures.md §7): p knows other
layers, but not how far one more sibling would reach."""

SIDES = ("left", "right")
NULLS = ("isotropic", "other layer", "sibling")
_SAME_INPUT = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention"}
_SAME_INPUT |= {"gate_proj": "mlp", "up_proj": "mlp", "router": "mlp"}

SHARED = "shared"
NOT_SHARED = "not above its nulls"


@dataclass(frozen=True, slots=True)
class Member:
    """One measured pair.

    Attributes:
        name: What it is called.
        role: main, safety, sibling, sft, rl or seed; siblings serve as nulls of the others.
        run: Its RUN, with vectors.
    """

    name: str
    role: str
    run: Run


@dataclass(frozen=True, slots=True)
class Relation:
    """Two pairs on one side.

    Attributes:
        a: Name of the first.
        b: Name of the second.
        side: left (outputs) or right (inputs).
        k: Rank of both subspaces.
        matrices: How many entered the mean.
        share: Of the energy of all matrices, in the pair where they hold less of it.
        overlap: Mean φ, None where there is nothing to compare.
        null: Mean of each matrix's largest null.
        nulls: Mean of each null over the matrices that have it.
        p: Permutation p, None where no claim is made.
        least: The least p that permutations of so many layers give.
        p_holm: Corrected.
        base_cosine: Median cosine of the bases' matrices, None where it was not needed.
        word: One of the three words of this module, or of the three of `experiment.gauge`.
        reason: Why, where the word does not say it.
        each: By matrix: φ, its largest null, the name of that null.
    """

    a: str
    b: str
    side: str
    k: int | None = None
    matrices: int = 0
    share: float | None = None
    overlap: float | None = None
    null: float | None = None
    nulls: Mapping[str, float] | None = None
    p: float | None = None
    least: float | None = None
    p_holm: float | None = None
    base_cosine: float | None = None
    word: str = UNDECIDED
    reason: str | None = None
    each: Mapping[str, tuple[float, float, str]] | None = None


@dataclass(frozen=True, slots=True)
class Atlas:
    """Every two of several pairs.

    Attributes:
        names: Of the pairs, in the order given.
        relations: Two for every two pairs, left then right.
    """

    names: tuple[str, ...]
    relations: tuple[Relation, ...]

    def grid(self, side: str, what: str) -> list[list[Any]]:
        """A symmetric table over the pairs of one attribute of `Relation`, None on its diagonal."""
        at = {name: i for i, name in enumerate(self.names)}
        table: list[list[Any]] = [[None] * len(at) for _ in at]
        for r in self.relations:
            if r.side == side:
                table[at[r.a]][at[r.b]] = table[at[r.b]][at[r.a]] = getattr(r, what)
        return table

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of `store.results.SUMMARY`: arm `A × B`, group empty for the mean, else the matrix.

        `overlap_SIDE` and `overlap_SIDE_null`; the word and its reason are in `method`.
        """
        found = []
        for r in self.relations:
            arm, metric = f"{r.a} × {r.b}", f"overlap_{r.side}"
            said = r.word if r.reason is None else f"{r.word}: {r.reason}"
            lines: list[dict[str, Any]] = [
                {"group": "", "metric": metric, "value": r.overlap, "p": r.p, "p_holm": r.p_holm, "method": said},
                {"group": "", "metric": f"{metric}_null", "value": r.null, "method": "mean of the largest nulls"},
            ]
            for name, (phi, null, largest) in (r.each or {}).items():
                lines.append({"group": name, "metric": metric, "value": phi, "n": 1, "method": f"k = {r.k}"})
                lines.append({"group": name, "metric": f"{metric}_null", "value": null, "n": 1, "method": largest})
            found += [dict.fromkeys(SUMMARY.names) | {"arm": arm, "n": r.matrices} | line for line in lines]
        return found


@dataclass(frozen=True, slots=True)
class _Matrix:
    """What a RUN holds of one delta: vectors as rows, `place` and `block` say which others it is permuted with."""

    layer: int | None
    place: tuple[str, int, int]
    block: str
    energy: float
    left: Float64[np.ndarray, "h m"]
    right: Float64[np.ndarray, "h n"]


_Deltas = dict[str, _Matrix]


def atlas(members: Sequence[Member], seed: int = 0) -> Atlas:
    """Compare every two measured pairs.

    Args:
        members: With names of their own.
        seed: Of the permutations.

    Raises:
        BadInput: A RUN is damaged.
    """
    deltas = [_deltas(member.run) for member in members]
    every = list(combinations(range(len(members)), 2))
    gauges = {(i, j): gauge(members[i].run, members[j].run) for i, j in every}
    found: list[Relation] = []
    for i, j in every:
        against = gauges[i, j]
        siblings = [
            deltas[s]
            for s, member in enumerate(members)
            if member.role == "sibling"
            and s not in (i, j)
            and all(gauges[min(s, t), max(s, t)].word is None for t in (i, j))
        ]
        for side in SIDES:
            made = Relation(members[i].name, members[j].name, side, base_cosine=against.cosine)
            if against.word != OTHER:
                made = _relate(made, deltas[i], deltas[j], siblings, seed)
            if against.word is not None:
                made = replace(made, p=None, word=against.word, reason=against.reason)
            found.append(made)
    return Atlas(tuple(member.name for member in members), tuple(_judged(found)))


def _deltas(run: Run) -> _Deltas:
    """The leading vectors of every matrix that changed."""
    found = {}
    for row in run.matrices.to_pylist():
        if row["norm_delta"]:  # neither refused nor zero
            stored, name = run.directions(row["name"]), place(row["name"], row["layer"])
            kind = role_kind(row["tensor_tuned"], row["kind"])
            found[row["name"]] = _Matrix(
                row["layer"],
                (name, row["rows"], row["cols"]),
                _SAME_INPUT.get(kind, name),
                row["norm_delta"] ** 2,
                *(vectors[:TOP].astype(np.float64) for vectors in (stored.left, stored.right)),
            )
    return found


@dataclass(frozen=True, slots=True)
class _Table:
    """One matrix in all its layers: φ of A at layer i with B at layer j, the weight of each layer."""

    phi: Float64[np.ndarray, "l l"]
    layers: tuple[int, ...]
    weights: Float64[np.ndarray, " l"]
    block: str


def _relate(made: Relation, a: _Deltas, b: _Deltas, siblings: list[_Deltas], seed: int) -> Relation:
    """One side of two pairs of one architecture: overlaps, nulls and, where a claim can be made, p."""
    both = [name for name in a if name in b and a[name].place == b[name].place]
    if not both:
        return replace(made, reason="no matrix changed in both")
    k = min(len(deltas[name].left) for deltas in (a, b) for name in both)

    def basis(deltas: _Deltas, name: str) -> Float64[np.ndarray, "d k"]:
        return getattr(deltas[name], made.side)[:k].T

    whole = [sum(deltas[name].energy for name in both) for deltas in (a, b)]
    weights = {name: (a[name].energy / whole[0] + b[name].energy / whole[1]) / 2 for name in both}
    groups: dict[Any, list[str]] = {}
    for name in both:
        groups.setdefault(a[name].place, []).append(name)
    overlaps: dict[str, float] = {}
    nulls: dict[str, dict[str, float]] = {}
    tables: list[_Table] = []
    for names in groups.values():
        phi = crossed([basis(a, name) for name in names], [basis(b, name) for name in names])
        for i, name in enumerate(names):
            overlaps[name] = float(phi[i, i])
            nulls[name] = {"isotropic": k / len(basis(a, name))}
            if len(names) > 1:
                others = phi[i].sum() + phi[:, i].sum() - 2 * phi[i, i]
                nulls[name]["other layer"] = float(others) / (2 * len(names) - 2)
            twins = [basis(s, name) for s in siblings if name in s and s[name].place == a[name].place]
            if twins:
                nulls[name]["sibling"] = max(overlap(t, basis(d, name)) for t in twins for d in (a, b))
        if len(names) > 1:
            layers = tuple(int(a[name].layer or 0) for name in names)
            tables.append(_Table(phi, layers, np.array([weights[name] for name in names]), a[names[0]].block))
    largest = {name: max((value, which) for which, value in null.items()) for name, null in nulls.items()}
    made = replace(made, k=k, each={name: (phi, *largest[name]) for name, phi in overlaps.items()})
    used = [name for name in both if "other layer" in nulls[name]]
    if not used:
        return replace(made, reason="no matrix has another layer of its kind")

    def mean(values: Mapping[str, float]) -> float:
        at = [name for name in used if name in values]
        return float(np.average([values[name] for name in at], weights=[weights[name] for name in at]))

    by_null = {which: {name: null[which] for name, null in nulls.items() if which in null} for which in NULLS}
    made = replace(
        made,
        matrices=len(used),
        share=min(sum(d[name].energy for name in used) / sum(m.energy for m in d.values()) for d in (a, b)),
        overlap=mean(overlaps),
        null=mean({name: value for name, (value, _) in largest.items()}),
        nulls={which: mean(values) for which, values in by_null.items() if values.keys() & set(used)},
    )
    if made.side == "right" and "sibling" not in (made.nulls or {}):
        return replace(made, reason="unrelated deltas share the subspaces of their inputs: needs a sibling")
    p, least = layers_p(tables, seed)
    return replace(made, p=p, least=least)


def crossed(
    a: Sequence[Float64[np.ndarray, "d k"]], b: Sequence[Float64[np.ndarray, "d k"]]
) -> Float64[np.ndarray, "l l"]:
    """Overlap φ of every subspace of one list with every one of another."""
    k = a[0].shape[1]
    inner = (np.hstack(a).T @ np.hstack(b)).reshape(len(a), k, len(b), k)
    return np.minimum(1.0, np.sum(inner**2, axis=(1, 3)) / k)


def layers_p(tables: Sequence[_Table], seed: int) -> tuple[float, float]:
    """Permutation p of the weighted sum of φ at equal layers, and the least p that these layers can give.

    Which layer of A stands beside which of B is drawn once per block, for all its matrices together.
    """
    rng = np.random.default_rng(seed)
    present: dict[str, set[int]] = {}
    for table in tables:
        present.setdefault(table.block, set()).update(table.layers)
    # The first line is the identity, summed as all others are: it ties with itself when it is drawn again.
    keys = {block: np.vstack([np.arange(len(at)), rng.random((DRAWS, len(at)))]) for block, at in present.items()}
    drawn: dict[Any, Int64[np.ndarray, "draws l"]] = {}
    sums = np.zeros(DRAWS + 1)
    for table in tables:
        chosen = (table.block, table.layers)
        if chosen not in drawn:
            at = np.searchsorted(sorted(present[table.block]), table.layers)
            drawn[chosen] = np.argsort(keys[table.block][:, at], axis=1)
        sums += np.sum(table.phi[drawn[chosen], np.arange(len(table.layers))] * table.weights, axis=1)
    arrangements = prod(factorial(len(layers)) for layers in present.values())
    return permutation_p(float(sums[0]), sums[1:]), 1 / min(DRAWS + 1, arrangements)


def _judged(relations: Sequence[Relation]) -> list[Relation]:
    """Holm's correction over all tests, and the words."""
    adjusted = iter(holm([r.p for r in relations if r.p is not None]))
    tests = sum(r.p is not None for r in relations)
    found = []
    for r in relations:
        if r.p is None or r.overlap is None or r.null is None or r.least is None:
            found.append(r)
            continue
        p, excess = next(adjusted), r.overlap - r.null
        if excess <= 0:
            word, reason = NOT_SHARED, "no more than the largest null"
        elif p > ALPHA:
            powerless = r.least * tests > ALPHA
            word, reason = (
                (UNDECIDED, "too few layers to permute")
                if powerless
                else (NOT_SHARED, "not significant over the atlas")
            )
        elif excess < MARGIN:
            word, reason = UNDECIDED, f"above the largest null, by less than {MARGIN}"
        else:
            word, reason = SHARED, None if "sibling" in (r.nulls or {}) else "no sibling among the nulls"
        found.append(replace(r, p_holm=p, word=word, reason=reason))
    return found
