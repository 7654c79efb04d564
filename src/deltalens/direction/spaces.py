"""Which space each side of a matrix lives in, and how a vector there reaches the residual stream.

A writer (o_proj, down_proj, embed) adds its output to the residual stream, a reader (q, k, v, gate, up, router,
lm_head) sees the stream after a norm. Both are compared in the stream alone, and never with each other's other side:

    reader   W·(γ∘n(h)) reads the stream along γ∘v: the gain of the norm before it is multiplied in
    writer   where the sublayer's output is normalised (Gemma 2 and 3, OLMo 2), γ∘n(W·x) writes along γ∘u

A LayerNorm also subtracts the mean, so what W reads through it is γ∘v less its own mean. Gains are those of the tuned
side; `--folded` takes each side's own. Norms are found by their names; where none is found nothing is guessed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from deltalens.checkpoint.names import stem
from deltalens.checkpoint.read import Reader
from deltalens.checkpoint.source import Checkpoint
from deltalens.errors import BadInput

SPACE_OF = {
    **dict.fromkeys(("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"), "residual"),
    "attn_in": "attn_in",  # behind a norm, whose gain differs from that of any other: comparable with nothing else
    "mlp_in": "mlp_in",
    **dict.fromkeys(("q", "k", "v"), "heads"),
    "head_in": "head space",
    "mlp_act": "neurons",
    "logits": "vocabulary",
}
"""The space of the activations at every site of `model.sites`."""

# Matrices that keep their stored name, by its last part: GPT-2, GPT-NeoX, Phi and their relatives.
_ROLES = {
    "attn.c_attn": "q_proj",
    "attn.c_proj": "o_proj",
    "mlp.c_fc": "up_proj",
    "mlp.c_proj": "down_proj",
    "attention.query_key_value": "q_proj",
    "attention.dense": "o_proj",
    "mlp.dense_h_to_4h": "up_proj",
    "mlp.dense_4h_to_h": "down_proj",
    "self_attn.qkv_proj": "q_proj",
    "self_attn.dense": "o_proj",
    "mlp.gate_up_proj": "up_proj",
    "mlp.fc1": "up_proj",
    "mlp.fc2": "down_proj",
}
_LAYER = re.compile(r"(?:[\w.]*\.)?(?:layers|h|blocks)\.[0-9]+\.")
_BEFORE_ATTENTION = ("input_layernorm", "ln_1")
_BEFORE_MLP = ("post_attention_layernorm", "ln_2")
_FINAL = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
# Norms whose weight is stored as γ − 1, and norms without a bias that subtract the mean all the same.
_PLUS_ONE = ("gemma", "gemma2", "gemma3", "gemma3_text", "vaultgemma", "recurrent_gemma", "nemotron")
_PLUS_ONE += ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")
_CENTRED = ("olmo", "cohere", "cohere2")
_NO_GAIN = ("olmo",)  # LayerNorms without any parameter


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a matrix.

    Attributes:
        space: What the entries of its singular vectors are.
        site: The activation site that they live at or act on, None where there is none.
        role: `write` or `read` for the residual stream, else `inner`.
        input: Whether the matrix takes its input here. Unrelated deltas on the same inputs share these subspaces.
        norm: Stored name, without wrapper and `.weight`, of the norm whose gain maps to the stream; None for none.
        centred: Whether that norm subtracts the mean.
    """

    space: str
    site: str | None
    role: str
    input: bool
    norm: str | None = None
    centred: bool = False


def sides(ckpt: Checkpoint, stored: str, kind: str) -> tuple[Side, Side]:
    """The output (left) and input (right) side of a matrix.

    Args:
        ckpt: The checkpoint that holds it, for the norms of its layer.
        stored: Its stored name.
        kind: Its canonical kind.

    Raises:
        BadInput: It reads the residual stream, but no norm before it was found.
    """
    kind = role_kind(stored, kind)
    norms = {stem(name).removesuffix(".weight"): name for name in ckpt.tensors}
    found = _LAYER.match(stem(stored))
    layer = found.group() if found else ""
    here = {name.removeprefix(layer) for name in norms if name.startswith(layer)} if layer else set()
    # Gemma 2 and 3, OLMo 2 and EXAONE 4 call the norm behind the MLP so, and the one behind attention
    # `post_attention_layernorm`; GLM-4 has names of its own and keeps that one for the norm before the MLP.
    sandwich = "post_feedforward_layernorm" in here
    if kind == "o_proj":
        behind = _first(here, ("post_self_attn_layernorm", *(("post_attention_layernorm",) if sandwich else ())))
        return _writer(layer, behind, "resid_mid"), _inner("head_in", True)
    if kind == "down_proj":
        behind = _first(here, ("post_mlp_layernorm", "post_feedforward_layernorm"))
        return _writer(layer, behind, "resid_post"), _inner("mlp_act", True)
    if kind in ("embed", "pos_embed"):
        space = "vocabulary" if kind == "embed" else "positions"
        return Side(space, None, "inner", True), _writer("", None, "resid_pre")
    if kind in ("q_proj", "k_proj", "v_proj"):
        before = _first(here, _BEFORE_ATTENTION)
        return _inner(kind[0], False), _reader(ckpt, stored, layer, before, "resid_pre", sandwich)
    if kind in ("gate_proj", "up_proj", "router"):
        wanted = ("pre_feedforward_layernorm",) if sandwich else (*_BEFORE_MLP, *_BEFORE_ATTENTION)
        space = "experts" if kind == "router" else "neurons"
        reader = _reader(ckpt, stored, layer, _first(here, wanted), "resid_mid", sandwich)
        return Side(space, None, "inner", False), reader
    if kind == "lm_head":
        reader = _reader(ckpt, stored, "", _first(norms, _FINAL), "resid_post", False)
        return _inner("logits", False), reader
    return Side("unknown", None, "inner", False), Side("unknown", None, "inner", True)


def role_kind(stored: str, kind: str) -> str:
    """The kind whose place a matrix of kind `other` takes, by the last part of its stored name; else its kind."""
    if kind != "other":
        return kind
    part = _LAYER.sub("", stem(stored), count=1).removesuffix(".weight")
    return _ROLES.get(part, kind)


def gain(ckpt: Checkpoint, norm: str) -> Float64[np.ndarray, " d"]:
    """γ of a norm; Gemma and some others store γ − 1."""
    stored = next(name for name in ckpt.tensors if stem(name).removesuffix(".weight") == norm)
    with Reader(ckpt.tensors[stored]) as tensor:
        weight = tensor.all().astype(np.float64)
    return weight + 1 if ckpt.setting("model_type") in _PLUS_ONE else weight


def to_residual(
    rows: Float64[np.ndarray, "k d"], side: Side, gamma: Float64[np.ndarray, " d"] | None
) -> Float64[np.ndarray, "k d"]:
    """Vectors of a side that touches the residual stream as unit vectors of the stream."""
    mapped = rows if gamma is None else rows * gamma
    if side.role == "read" and side.centred:
        mapped = mapped - mapped.mean(axis=1, keepdims=True)
    return mapped / np.linalg.norm(mapped, axis=1, keepdims=True)


def _inner(site: str, takes_input: bool) -> Side:
    return Side(SPACE_OF[site], site, "inner", takes_input)


def _writer(layer: str, norm: str | None, site: str) -> Side:
    return Side(SPACE_OF[site], site, "write", False, None if norm is None else layer + norm)


def _reader(ckpt: Checkpoint, stored: str, layer: str, norm: str | None, site: str, sandwich: bool) -> Side:
    kind = ckpt.setting("model_type")
    if norm is None:
        if not sandwich and kind not in _NO_GAIN:
            fix = "--matrix '*o_proj' and '*down_proj' write to the stream and need none"
            raise BadInput(f"no norm before {stored} was found in {ckpt.source}", fix)
        return Side(SPACE_OF[site], site, "read", True, None, kind in _CENTRED)
    bias = any(stem(name) == f"{layer}{norm}.bias" for name in ckpt.tensors)
    return Side(SPACE_OF[site], site, "read", True, layer + norm, bias or kind in _CENTRED)


def _first(names: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    present = set(names)
    return next((name for name in wanted if name in present), None)
