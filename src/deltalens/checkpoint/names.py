"""One canonical name per weight, whatever the wrapper a checkpoint was saved from."""

import re
from dataclasses import dataclass

KINDS = [
    "embed",
    "pos_embed",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "router",
    "lm_head",
    "other",
]

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The seven kinds of matrix of a dense block."""

# Wrappers around the text stack. Vision, audio and speculative (`mtp.`) stacks have others, and must not
# pass for it.
_PREFIXES = (
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.model.",
    "model.",
    "transformer.",
)
_NUMBER = r"(0|[1-9][0-9]{0,5})"
_LAYER = re.compile(rf"layers\.{_NUMBER}\.(.+)", re.DOTALL)
_ANY_LAYER = re.compile(rf"(?:^|\.)(?:layers|h|blocks)\.{_NUMBER}(?:\.|$)")
_TOP = {
    "embed_tokens": "embed",
    "wte": "embed",
    "wpe": "pos_embed",
    "embed_positions": "pos_embed",
    "embed_in": "embed",
    "embed_out": "lm_head",
    "lm_head": "lm_head",
}
_ATTENTION = re.compile(r"self_attn\.([qkvo]_proj)")
_EXPERT = re.compile(rf"(mlp|block_sparse_moe)\.experts\.{_NUMBER}\.(gate_proj|up_proj|down_proj|w1|w2|w3)")
_MLP = re.compile(r"mlp\.(shared_experts?\.)?(gate_proj|up_proj|down_proj)")
_ROUTER = re.compile(r"(?:mlp|block_sparse_moe)\.(?:gate|router)")
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_CONV1D = re.compile(rf"(?:^|\.)h\.{_NUMBER}\.(?:attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
_AFTER = 10**9  # sorts what has no layer and is not an embedding behind every layer


@dataclass(frozen=True, slots=True)
class Name:
    """What a tensor is.

    Args:
        name: The canonical name, such as `layers.3.mlp.up_proj`; of a matrix of kind `other` the stored one.
        layer: Which layer it belongs to.
        kind: One of `KINDS`; everything that is not a matrix is `other`.
        expert: Which routed expert it belongs to.
    """

    name: str
    layer: int | None
    kind: str
    expert: int | None


def canonical(stored: str, ndim: int) -> Name:
    """The canonical name of a stored tensor of `ndim` dimensions.

    Knows the trees of Llama, Qwen2, Qwen3, Mistral and their mixtures of experts, under the usual wrappers or
    none. Any other matrix keeps its stored name and has kind `other`. Vectors and stacks of matrices lose
    only the wrapper and `.weight`.
    """
    bare = stem(stored)
    module = bare.removesuffix(".weight")
    if ndim == 2:
        return _matrix(stored, module) if module != bare else _other(stored)
    found = _LAYER.fullmatch(bare)
    if found is None:
        return _other(module if bare != stored or module in ("norm", *_TOP) else stored)
    layer, part = found.groups()
    owner = part.removesuffix(".weight").removesuffix(".bias")
    named = _in_layer(int(layer), owner)
    if named is None or not part.endswith((".weight", ".bias")):
        return Name(module, int(layer), "other", None)
    bias = ".bias" if part.endswith(".bias") else ""
    return Name(named.name + bias, int(layer), "other", named.expert)


def stem(stored: str) -> str:
    """The stored name without the wrapper around the text stack."""
    for prefix in _PREFIXES:
        if stored.startswith(prefix):
            return stored.removeprefix(prefix)
    return stored


def conv1d(stored: str) -> bool:
    """Whether a stored name is one that GPT-2 keeps as [in, out]; only its config can confirm it."""
    return _CONV1D.search(stored) is not None


def sort_key(name: Name) -> tuple[int, int, int, str]:
    """Order of tables: embeddings, then by layer, kind and expert, then what has no layer, the head last."""
    if name.kind == "lm_head":
        depth = _AFTER + 1
    elif name.kind in ("embed", "pos_embed"):
        depth = -1
    else:
        depth = _AFTER if name.layer is None else name.layer
    return depth, KINDS.index(name.kind), -1 if name.expert is None else name.expert, name.name


def _matrix(stored: str, module: str) -> Name:
    if module in _TOP:
        return Name(_TOP[module], None, _TOP[module], None)
    found = _LAYER.fullmatch(module)
    named = None if found is None else _in_layer(int(found[1]), found[2])
    return _other(stored) if named is None else named


def _in_layer(layer: int, module: str) -> Name | None:
    """The canonical name of a linear module of a layer, None for a module that is none of the known kinds."""
    if found := _ATTENTION.fullmatch(module):
        return Name(f"layers.{layer}.self_attn.{found[1]}", layer, found[1], None)
    if found := _MLP.fullmatch(module):
        shared = "shared_expert." if found[1] else ""
        return Name(f"layers.{layer}.mlp.{shared}{found[2]}", layer, found[2], None)
    if found := _EXPERT.fullmatch(module):
        kind = _MIXTRAL.get(found[3], found[3])
        return Name(f"layers.{layer}.mlp.experts.{found[2]}.{kind}", layer, kind, int(found[2]))
    if _ROUTER.fullmatch(module):
        return Name(f"layers.{layer}.mlp.router", layer, "router", None)
    return None


def _other(name: str) -> Name:
    found = _ANY_LAYER.search(name)
    return Name(name, None if found is None else int(found[1]), "other", None)
