"""Directions from weights: singular vectors of the deltas of a RUN in the residual stream, and a layer's writers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from jaxtyping import Float64

from deltalens.checkpoint.identity import identity
from deltalens.checkpoint.pair import Pair, Row
from deltalens.direction.direction import Direction
from deltalens.direction.folded import Folded, Gains, Triples, leading
from deltalens.direction.spaces import gain, role_kind, sides, to_residual
from deltalens.errors import BadInput, Refused
from deltalens.store.run import Run
from deltalens.store.session import essence

WRITERS = ("o_proj", "down_proj")
"""Kinds whose output is added to the residual stream in every layer."""

Inputs = Mapping[str, Float64[np.ndarray, " n"]]
"""E[x] at the input of a matrix, by canonical name."""


def pair_of(run: Run) -> Pair:
    """The two checkpoints of a RUN, as they were when it was measured.

    Raises:
        BadInput: A checkpoint is no longer where it was.
        Refused: It is no longer the same.
    """
    recorded = run.record["pair"]
    pair = Pair.open(recorded["base"]["source"], recorded["tuned"]["source"], run.record["settings"].get("match"))
    now = essence({"base": identity(pair.base), "tuned": identity(pair.tuned)})
    was = essence({side: recorded[side]["identity"] for side in ("base", "tuned")})
    changed = [side for side in now if now[side] != was[side]]
    if changed:
        source = recorded[changed[0]]["source"]
        raise Refused(f"{source} has changed since {run.path} was measured", "measure again with --out NEW")
    return pair


def from_run(
    run: Run, pair: Pair, match: str, top: int, *, folded: bool = False, inputs: Inputs | None = None
) -> tuple[Direction, ...]:
    """The top singular vectors of both sides of every matrix that matches, and the writers of every layer.

    Sides that touch the residual stream are mapped to it (see `spaces`), as unit rows, no longer exactly orthogonal.
    Ids are `NAME.left`, `NAME.right` and, where all writers of a layer match, `layers.N.writers` for the σ-weighted
    left vectors of o_proj and down_proj together.

    Args:
        run: Where Δ was measured.
        pair: Its checkpoints, from `pair_of`.
        match: A glob on canonical names.
        top: Vectors per matrix, at most those that the RUN kept unless folded; fewer where Δ has lower rank.
        folded: Take the SVD of W_t·diag(γ_t) − W_b·diag(γ_b) from the checkpoints, in float64.
        inputs: Where given, signs are oriented so that ⟨u, ΔW·E[x]⟩ > 0; matrices without an input keep theirs.

    Raises:
        BadInput: Nothing matches, or the RUN kept fewer vectors.
    """
    if top < 1:
        raise BadInput(f"--top {top} is not possible", "--top 1 or more")
    kept = run.record["settings"]["top"]
    if not folded and top > kept:
        raise BadInput(
            f"{run.path} kept {kept} vectors per matrix", f"--top {kept}, --folded, or measure with --top {top}"
        )
    rows = {row.name.name: row for row in pair.rows}
    chosen = _chosen(run, match)
    found: list[Direction] = []
    written: dict[int, list[_Written]] = {}
    for record in chosen:
        row = rows[record["name"]]
        matrix = _matrix(run, pair, row, record, top, folded, inputs)
        if matrix is None:  # a zero delta has no direction
            continue
        found += matrix.directions
        if matrix.written is not None and row.name.layer is not None:
            written.setdefault(row.name.layer, []).append(matrix.written)
    partial = _writing(pair.rows, {record["name"] for record in chosen})
    found += [_writers(layer, parts, top) for layer, parts in written.items() if layer not in partial]
    if not found:
        raise BadInput(f"every delta that --matrix {match} names is zero")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Written:
    """What one writer adds to its layer's basis: σ-weighted columns, its mean write where inputs are known."""

    columns: Float64[np.ndarray, "d k"]
    write: Float64[np.ndarray, " d"] | None
    source: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Matrix:
    directions: tuple[Direction, Direction]
    written: _Written | None


def _chosen(run: Run, match: str) -> list[dict[str, Any]]:
    table = [r for r in run.matrices.to_pylist() if r["status"] == "measured"]
    found = [r for r in table if fnmatchcase(r["name"], match)]
    if not found:
        near = get_close_matches(match, [r["name"] for r in table], 1, 0) or ["none"]
        raise BadInput(f"--matrix {match} matches no measured matrix of {run.path}", f"the nearest name is {near[0]}")
    return found


def _writing(rows: Sequence[Row], chosen: set[str]) -> set[int | None]:
    """Layers of which a writer was measured but not chosen: what was chosen there is not all that is written."""
    return {
        row.name.layer
        for row in rows
        if row.status == "measured" and row.tuned is not None and row.name.name not in chosen
        if role_kind(row.tuned.name, row.name.kind) in WRITERS
    }


def _matrix(
    run: Run, pair: Pair, row: Row, record: dict[str, Any], top: int, folded: bool, inputs: Inputs | None
) -> _Matrix | None:
    name = row.name.name
    assert row.tuned is not None
    left_side, right_side = sides(pair.tuned, row.tuned.name, row.name.kind)
    gains: list[Gains | None] = [
        None if side.norm is None else (gain(pair.base, side.norm), gain(pair.tuned, side.norm))
        for side in (left_side, right_side)
    ]
    delta = Folded(row, *gains, right_side.centred) if folded else Folded(row)
    triples = leading(delta, top) if folded else _stored(run, record, top)
    if triples is None:
        return None
    edge = _edge(record)
    if folded and edge is not None:  # what was noise in Δ grew by the largest gain at most
        edge *= float(np.prod([np.abs(g[1]).max() for g in gains if g is not None]))
    k, sigma = len(triples.left), triples.spectrum
    write = None
    if inputs is not None and name in inputs:
        write = Folded(row, gains[0] if folded else None).times(inputs[name])
    signs = np.ones(k) if write is None else np.where(triples.left @ write < 0, -1.0, 1.0)
    source = {
        **{"run": str(run.path), "base": pair.base.source, "tuned": pair.tuned.source, "matrix": name},
        **{"folded": folded, "certificate": triples.certificate, "edge": edge},
        "gap": float((sigma[k - 1] - (sigma[k] if k < len(sigma) else 0.0)) / sigma[0]),
        "above_edge": None if edge is None else int(np.count_nonzero(sigma[:k] > edge)),
    }
    made = []
    for part, side, vectors, gamma in (
        ("left", left_side, triples.left, gains[0]),
        ("right", right_side, triples.right, gains[1]),
    ):
        rows64 = vectors.astype(np.float64) * signs[:, None]
        if side.role != "inner":
            rows64 = to_residual(rows64, side, None if folded or gamma is None else gamma[1])
        made.append(
            Direction(
                id=f"{name}.{part}",
                vectors=rows64.astype(np.float32),
                layer=row.name.layer,
                kind=row.name.kind,
                space=side.space,
                site=side.site,
                sigma=tuple(map(float, sigma[:k])),
                unit="residual",
                sign="arbitrary" if write is None else "oriented",
                source=source | {"side": part, "role": side.role, "input": side.input, "norm": side.norm},
            )
        )
    written = None
    if role_kind(row.tuned.name, row.name.kind) in WRITERS:
        after = 1.0 if folded or gains[0] is None else gains[0][1]
        columns = (triples.left * signs[:, None] * after).T * sigma[:k]
        stretched = None if edge is None else edge * float(np.abs(after).max())
        written = _Written(
            columns,
            None if write is None else write * after,
            source | {"norm": left_side.norm, "edge": stretched},
        )
    return _Matrix((made[0], made[1]), written)


def _stored(run: Run, record: dict[str, Any], top: int) -> Triples | None:
    """What the RUN kept of a matrix, None of a zero delta."""
    spectrum = run.spectrum(record["name"])
    if not spectrum[0]:
        return None
    kept = run.directions(record["name"])
    return Triples(kept.left[:top], kept.right[:top], spectrum, record["certificate"])


def _edge(record: dict[str, Any]) -> float | None:
    """What a σ must exceed to be more than rounding and chance; None where the RUN has no edge."""
    edges = [record[key] for key in ("floor_edge", "bulk_edge") if record[key] is not None]
    return max(edges) if len(edges) == 2 else None


def _writers(layer: int, parts: Sequence[_Written], top: int) -> Direction:
    """An orthonormal basis of all that the writers of a layer add: left vectors of [σ₁u₁ σ₂u₂ …] over all of them.

    Its σ are those of the kept parts of the deltas side by side, Σ_w Δ_wΔ_wᵀ = M·Mᵀ.
    """
    stacked = np.concatenate([part.columns for part in parts], axis=1)
    left, sigma, _ = np.linalg.svd(stacked, full_matrices=False)
    k = min(top, int(np.count_nonzero(sigma > 1e-6 * sigma[0])))
    rows = left[:, :k].T
    writes = [part.write for part in parts if part.write is not None]
    if len(writes) == len(parts):
        signs = np.where(rows @ np.sum(writes, axis=0) < 0, -1.0, 1.0)
    else:
        signs = np.where(rows[np.arange(k), np.abs(rows).argmax(axis=1)] < 0, -1.0, 1.0)
    edges = [part.source["edge"] for part in parts]
    shared = {key: parts[0].source[key] for key in ("run", "base", "tuned", "folded")}
    return Direction(
        id=f"layers.{layer}.writers",
        vectors=(rows * signs[:, None]).astype(np.float32),
        layer=layer,
        kind="writers",
        space="residual",
        site="resid_post",
        sigma=tuple(map(float, sigma[:k])),
        unit="residual",
        sign="oriented" if len(writes) == len(parts) else "arbitrary",
        source=shared
        | {
            "matrices": [part.source["matrix"] for part in parts],
            "side": "left",
            "role": "write",
            "input": False,
            "norm": [part.source["norm"] for part in parts],
            "certificate": max(part.source["certificate"] for part in parts),
            "edge": None if None in edges else max(edges),
            "above_edge": None if None in edges else int(np.count_nonzero(sigma[:k] > max(edges))),
            "gap": float((sigma[k - 1] - (sigma[k] if k < len(sigma) else 0.0)) / sigma[0]),
        },
    )
