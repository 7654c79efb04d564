"""The change head by head: slices of the attention matrices, and the products in which a head acts.

A slice (rows of q, k, v, columns of o) depends on the basis inside a head: W_v → RW_v, W_o → W_oR⁻¹ leaves the model as
it was and changes both slices. What a head computes is W_oW_v ("ov", what it writes for what it reads) and W_qᵀW_k
("qk", which positions it looks at), [hidden, hidden] matrices of rank ≤ head_dim. Their changes have rank ≤ 2·head_dim
and are measured exactly from thin factors: W'_oW'_v − W_oW_v = [W'_o, −W_o]·[W'_v; W_v], two QR factorisations and the
SVD of a 2·head_dim square. No [hidden, hidden] matrix is ever formed.

What the products leave out: rotary embeddings turn q and k by position, so "qk" is the product at distance 0; gains of
q_norm and k_norm (Qwen3) and of the norm before attention are not folded in, nor are biases. Each is its own row of the
ledger. (Elhage et al. 2021 for the circuits; the low-rank form is ours.)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from deltalens.checkpoint.pair import Pair, Row
from deltalens.checkpoint.read import read_matrix
from deltalens.store.parts import Part

SLICES = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"}
"""Canonical kinds of the four attention matrices, and what their slices are called."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How attention divides its matrices.

    Attributes:
        heads: Query heads H.
        groups: Key-value heads G; query head h reads group h // (H/G).
        width: Entries of one head (head_dim).
    """

    heads: int
    groups: int
    width: int


def head_layers(pair: Pair) -> tuple[int, ...]:
    """Layers of which q, k, v and o are all measured, ascending."""
    return tuple(sorted(layer for layer, rows in _attention(pair).items() if len(rows) == len(SLICES)))


def layout(pair: Pair) -> Layout | str:
    """Heads, groups and head width as the configs have them, or why they are not known.

    `head_dim` where the config names it (Qwen3: not hidden_size/heads), else hidden_size / num_attention_heads.
    """
    found = []
    for side, checkpoint in (("base", pair.base), ("tuned", pair.tuned)):
        heads = checkpoint.setting("num_attention_heads")
        groups = checkpoint.setting("num_key_value_heads")
        width, hidden = checkpoint.setting("head_dim"), checkpoint.setting("hidden_size")
        groups = heads if groups is None else groups
        if not _count(heads):
            return f"the config of the {side} side names no attention heads"
        if not _count(groups) or heads % groups:
            return f"the {side} side has {heads} query heads, which {groups} key-value heads do not divide"
        if width is None:
            if not _count(hidden) or hidden % heads:
                return f"the {side} side names no head_dim, and {heads} heads do not divide hidden_size {hidden}"
            width = hidden // heads
        if not _count(width):
            return f"the config of the {side} side has head_dim {width}"
        found.append(Layout(heads, groups, width))
    if found[0] != found[1]:
        return f"the sides divide their heads differently ({found[0]} and {found[1]})"
    return found[0]


def measure_heads(pair: Pair, layer: int, block_bytes: int) -> Part:
    """Measure every head of one layer.

    Args:
        pair: The two checkpoints.
        layer: Any layer; one that `head_layers` does not list has no rows.
        block_bytes: Largest block read at once, as float32; the four matrices of both sides are held whole.

    Returns:
        A part without arrays whose `row` holds `rows`, dicts of `heads.parquet`, and `reason`, why there are none.
        Kinds q and o have a `head` and its `group`, k and v a `group` only, qk and ov both. `share` is left None: its
        total, ‖Δ‖² of q, k, v and o over all layers, is known only when all are measured; products have no share. A
        stable rank is None for a slice that did not change, a relative change where the base is zero.
    """
    division = layout(pair)
    if isinstance(division, str):
        return _none(division)
    rows = _attention(pair).get(layer, {})
    if len(rows) != len(SLICES):
        missing = ", ".join(kind for kind in SLICES if kind not in rows)
        return _none(f"layer {layer} has no measured {missing}")
    inner = {"q_proj": division.heads, "k_proj": division.groups, "v_proj": division.groups, "o_proj": division.heads}
    hidden = rows["q_proj"].shape[1]
    for kind, count in inner.items():
        expected = (hidden, count * division.width) if kind == "o_proj" else (count * division.width, hidden)
        if rows[kind].shape != expected:
            shape = list(rows[kind].shape)
            return _none(f"{rows[kind].name.name} is {shape}, the config's heads make it {list(expected)}")
    sides: list[dict[str, np.ndarray]] = [
        {kind: _whole(row, tuned, block_bytes) for kind, row in rows.items()} for tuned in (False, True)
    ]
    if not all(np.isfinite(matrix).all() for side in sides for matrix in side.values()):
        return _none(f"NaN or Inf in the attention of layer {layer}")
    base, tuned = (
        {kind: _split(matrix, division.width, kind == "o_proj") for kind, matrix in side.items()} for side in sides
    )
    found = []
    for kind, short in SLICES.items():
        per_query = inner[kind] == division.heads and kind in ("q_proj", "o_proj")
        for i in range(inner[kind]):
            head, group = (i, i // (division.heads // division.groups)) if per_query else (None, i)
            numbers = _slice(base[kind][i], tuned[kind][i])
            found.append(_row(rows[kind].name.name, layer, short, head, group, numbers))
    for short, left, right in (("qk", "q_proj", "k_proj"), ("ov", "o_proj", "v_proj")):
        name = rows[left].name.name.removesuffix(left) + short
        # Every factor is [width, hidden]: q, k and v as they are, o turned by `_split`.
        shared = [_right(b, t) for b, t in zip(base[right], tuned[right], strict=True)]
        for head in range(division.heads):
            group = head // (division.heads // division.groups)
            numbers = _product(base[left][head], tuned[left][head], *shared[group])
            found.append(_row(name, layer, short, head, group, numbers))
    return Part({"rows": found, "reason": None}, {})


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _none(reason: str) -> Part:
    return Part({"rows": [], "reason": reason}, {})


def _attention(pair: Pair) -> dict[int, dict[str, Row]]:
    """Measured attention matrices by layer and kind."""
    found: dict[int, dict[str, Row]] = {}
    for row in pair.rows:
        if row.status == "measured" and row.name.kind in SLICES and row.name.layer is not None:
            found.setdefault(row.name.layer, {})[row.name.kind] = row
    return found


def _whole(row: Row, tuned: bool, block_bytes: int) -> Float32[np.ndarray, "m n"]:
    """One side of a matrix in its [out, in] orientation."""
    info = row.tuned if tuned else row.base
    assert info is not None
    whole = read_matrix(info, block_bytes)
    return whole.T if row.transposed else whole


def _split(matrix: Float32[np.ndarray, "m n"], width: int, columns: bool) -> Float32[np.ndarray, "k width d"]:
    """Heads of a matrix as [width, hidden] each: its rows, or its columns turned."""
    turned = matrix.T if columns else matrix
    return turned.reshape(-1, width, turned.shape[1])


def _slice(base: Float32[np.ndarray, "w d"], tuned: Float32[np.ndarray, "w d"]) -> tuple[float, float, float]:
    """(‖Δ‖², ‖W_b‖², σ₁(Δ)²) of one slice, from the Gram of its short side."""
    delta = (tuned - base).astype(np.float64)  # a float32 difference, as everywhere
    wide = base.astype(np.float64)
    gram = delta @ delta.T if len(delta) <= delta.shape[1] else delta.T @ delta
    return float(np.trace(gram)), float(np.vdot(wide, wide)), float(max(0.0, np.linalg.eigvalsh(gram)[-1]))


def _right(b: Float32[np.ndarray, "w d"], b_tuned: Float32[np.ndarray, "w d"]) -> tuple[np.ndarray, np.ndarray]:
    """What every query head of a group needs of its right factor: the triangle of [B' − B, B] and BBᵀ."""
    b64, d64 = b.astype(np.float64), b_tuned.astype(np.float64)
    return _triangle(d64 - b64, b64), b64 @ b64.T


def _product(
    a: Float32[np.ndarray, "w d"],
    a_tuned: Float32[np.ndarray, "w d"],
    right: Float64[np.ndarray, "r two_w"],
    right_gram: Float64[np.ndarray, "w w"],
) -> tuple[float, float, float]:
    """(‖Δ‖², ‖AᵀB‖², σ₁(Δ)²) of Δ = A'ᵀB' − AᵀB for factors [width, hidden].

    Written with the differences, Δ = A'ᵀ(B' − B) + (A' − A)ᵀB, so that a small change of large factors is not lost
    in the subtraction of two nearly equal products.
    """
    a64, c64 = a.astype(np.float64), a_tuned.astype(np.float64)
    sigma = np.linalg.svd(_triangle(c64, c64 - a64) @ right.T, compute_uv=False)
    # ‖AᵀB‖² = ⟨AAᵀ, BBᵀ⟩
    return float(sigma @ sigma), float(np.vdot(a64 @ a64.T, right_gram)), float(sigma[0] ** 2)


def _triangle(first: Float64[np.ndarray, "w d"], second: Float64[np.ndarray, "w d"]) -> np.ndarray:
    """R of the QR factorisation of [firstᵀ, secondᵀ]: the pair without the directions that a norm ignores."""
    return np.asarray(np.linalg.qr(np.concatenate([first, second]).T, mode="r"))


def _row(
    name: str, layer: int, kind: str, head: int | None, group: int, numbers: tuple[float, float, float]
) -> dict[str, Any]:
    delta_sq, base_sq, top_sq = numbers
    return {
        "name": name,
        "layer": layer,
        "kind": kind,
        "head": head,
        "group": group,
        "norm_delta_sq": delta_sq,
        "share": None,
        "relative_change": (delta_sq / base_sq) ** 0.5 if base_sq > 0 else None,
        "sigma_max": top_sq**0.5,
        "stable_rank": delta_sq / top_sq if top_sq > 0 else None,
    }
