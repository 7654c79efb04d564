"""Where a transformer's activations stand: one name per site, found in the module tree and validated.

    resid_pre → attn_in → q, k, v → head_in → attn_out → resid_mid → mlp_in → mlp_act → mlp_out → resid_post

`attn_out` and `mlp_out` are what is *added* to the residual stream, after the output norms of Gemma 2 and OLMo 2:
resid_pre + attn_out = resid_mid and resid_mid + mlp_out = resid_post. `attn_in` and `mlp_in` are what the readers (q,
k, v; gate, up) multiply, after the norm. `head_in` and `mlp_act` are what the writers (o, down) multiply; heads are cut
there, because behind o_proj they are mixed. q, k and v are the projections' outputs, before any norm of theirs and
before RoPE. `resid_mid` does not exist in parallel blocks, `mlp_act` not in mixtures of experts.
"""

import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deltalens.errors import BadInput, Refused
from deltalens.model.points import Point, Site
from deltalens.model.validate import validate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INPUTS = ("resid_pre", "attn_in", "head_in", "resid_mid", "mlp_in", "mlp_act")
_INPUT_OF = {
    "q_proj": "attn_in",
    "k_proj": "attn_in",
    "v_proj": "attn_in",
    "o_proj": "head_in",
    "gate_proj": "mlp_in",
    "up_proj": "mlp_in",
    "down_proj": "mlp_act",
}

# Which module of a block a site belongs to, per architecture; the first row whose modules all exist is taken.
_LLAMA = {
    "attn_in": "self_attn",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "head_in": "self_attn.o_proj",
    "attn_out": "self_attn",
    "resid_mid": "post_attention_layernorm",
    "mlp_in": "mlp",
    "mlp_act": "mlp.down_proj",
    "mlp_out": "mlp",
}
_NORMED_OUTPUTS = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
_FUSED = {"q": "self_attn.qkv_proj", "k": "self_attn.qkv_proj", "v": "self_attn.qkv_proj"}
_GPT2 = {
    "attn_in": "attn",
    "q": "attn.c_attn",
    "k": "attn.c_attn",
    "v": "attn.c_attn",
    "head_in": "attn.c_proj",
    "attn_out": "attn",
    "resid_mid": "ln_2",
    "mlp_in": "mlp",
    "mlp_act": "mlp.c_proj",
    "mlp_out": "mlp",
}
_NEOX = {
    "attn_in": "attention",
    "q": "attention.query_key_value",
    "k": "attention.query_key_value",
    "v": "attention.query_key_value",
    "head_in": "attention.dense",
    "attn_out": "attention",
    "resid_mid": "post_attention_layernorm",
    "mlp_in": "mlp",
    "mlp_act": "mlp.dense_4h_to_h",
    "mlp_out": "mlp",
}
_OPT = {
    "head_in": "self_attn.out_proj",
    "resid_mid": "final_layer_norm",
    "mlp_in": "fc1",
    "mlp_act": "fc2",
    "mlp_out": "fc2",
}
ARCHITECTURES: tuple[dict[str, str], ...] = (
    _LLAMA | _NORMED_OUTPUTS | {"resid_mid": "pre_feedforward_layernorm"},  # Gemma 2, 3
    _LLAMA | _NORMED_OUTPUTS | {"resid_mid": "mlp"},  # OLMo 2, 3: no norm before the MLP
    _LLAMA,  # Llama, Qwen2, Qwen3, Mistral, Gemma 1, OLMo, Granite, and their mixtures
    _LLAMA | _FUSED,  # Phi-3
    _GPT2,
    _LLAMA | _OPT,
    _NEOX,
)


@dataclass(frozen=True, slots=True, eq=False)
class Sites:
    """The sites of one model.

    Args:
        layers: Number of blocks.
        width: Of the residual stream.
        heads: Query heads.
        kv_heads: Key-value heads; `kv_head` says which one a query head reads.
        head_dim: Width of a head.
        blocks: Name of every block in the model.
        modules: For every block, the module of each of its sites, relative to the block.
        sizes: Last dimension of every site, by name and layer.
        faults: Why a site is not offered.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    blocks: tuple[str, ...]
    modules: tuple[Mapping[str, str], ...]
    sizes: Mapping[tuple[str, int | None], int] = field(default_factory=dict)
    faults: Mapping[tuple[str, int | None], str] = field(default_factory=dict)

    def point(self, site: Site) -> Point:
        """Where a site stands.

        Raises:
            BadInput: The model has no such layer, site or head.
            Refused: The site did not pass its validation.
        """
        self._check(site)
        if site.layer is None:
            return Point("", "output")
        block, module = self.blocks[site.layer], self.modules[site.layer].get(site.name)
        return Point(
            path=block if module is None else f"{block}.{module}",
            side="input" if site.name in _INPUTS else "output",
            columns=self._columns(site),
            carried_to=block if site.name == "resid_mid" else None,
        )

    def size(self, site: Site) -> int:
        """The last dimension of a site's activation; errors as `point`."""
        self._check(site)
        return self.head_dim if site.head is not None else self.sizes[site.name, site.layer]

    def kv_head(self, head: int) -> int:
        """The key-value head that a query head reads (grouped-query attention, arXiv 2305.13245)."""
        return head // (self.heads // self.kv_heads)

    def _check(self, site: Site) -> None:
        if site.layer is not None and not 0 <= site.layer < self.layers:
            raise BadInput(f"the model has no layer {site.layer}", f"a layer from 0 to {self.layers - 1}")
        if site.layer is not None and site.name not in ("resid_pre", "resid_post", *self.modules[site.layer]):
            raise BadInput(
                f"layer {site.layer} of this model has no {site.name}",
                f"one of resid_pre, {', '.join(self.modules[site.layer])}, resid_post",
            )
        heads = self.kv_heads if site.name in ("k", "v") else self.heads
        if site.head is not None and not 0 <= site.head < heads:
            raise BadInput(f"{site.name} has no head {site.head}", f"a head from 0 to {heads - 1}")
        if (site.name, site.layer) in self.faults:
            raise Refused(f"{site} cannot be used: {self.faults[site.name, site.layer]}")

    def _columns(self, site: Site) -> Tensor | None:
        """Which columns of the module's activation are the site's: a head, or q, k or v of a fused projection."""
        heads = self.kv_heads if site.name in ("k", "v") else self.heads
        chosen = range(heads) if site.head is None else [site.head]
        starts = torch.tensor([head * self.head_dim for head in chosen])
        within = torch.arange(self.head_dim)
        modules = self.modules[site.layer or 0]
        if site.name in ("q", "k", "v") and modules["q"] == modules["k"]:
            if modules["q"].endswith("query_key_value"):  # GPT-NeoX: q, k and v of a head side by side
                starts = 3 * starts + "qkv".index(site.name) * self.head_dim
            else:  # all of q, then all of k, then all of v
                starts = starts + {"q": 0, "k": self.heads, "v": self.heads + self.kv_heads}[site.name] * self.head_dim
        elif site.head is None:
            return None
        return (starts[:, None] + within).flatten()


_KNOWN: "weakref.WeakKeyDictionary[nn.Module, Sites]" = weakref.WeakKeyDictionary()


def sites_of(model: "PreTrainedModel") -> Sites:
    """The sites of a model: found by name or by structure, then validated once.

    Raises:
        Refused: The blocks cannot be found, or the residual stream does not run through them; names what did not fit.
    """
    if model not in _KNOWN:
        sites = _found(model)
        sizes, faults = validate(model, sites)
        _KNOWN[model] = replace(sites, sizes=sizes, faults=faults)
    return _KNOWN[model]


def input_of(kind: str, layer: int) -> Site:
    """The site that a matrix of one of the seven linear kinds multiplies: the x of E[ΔW x] and of Σ = E[xxᵀ].

    Raises:
        BadInput: Another kind has no such site.
    """
    if kind not in _INPUT_OF:
        raise BadInput(f"the input of {kind} is not a site", f"one of {', '.join(_INPUT_OF)}")
    return Site(_INPUT_OF[kind], layer)


def _found(model: "PreTrainedModel") -> Sites:
    config = model.config.get_text_config()
    layers = config.num_hidden_layers
    decoder = model.get_decoder()
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    if not lists:
        raise Refused(f"{type(model).__name__} has no list of {layers} blocks, its num_hidden_layers")
    blocks = lists[0]  # the outermost: modules() visits parents first
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    heads = config.num_attention_heads
    return Sites(
        layers=layers,
        width=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        blocks=tuple(f"{prefix}.{i}" for i in range(layers)),
        modules=tuple(_modules(block, config.hidden_size) for block in blocks),
    )


def _modules(block: nn.Module, width: int) -> dict[str, str]:
    """The module of each site in a block: the first architecture that fits, else what the structure suggests."""
    names = {name for name, _ in block.named_modules()}
    for architecture in ARCHITECTURES:
        if names.issuperset(set(architecture.values()) - {architecture["mlp_act"]}):  # experts have no down_proj
            return {site: module for site, module in architecture.items() if module in names}
    return _by_structure(block, width)


def _by_structure(block: nn.Module, width: int) -> dict[str, str]:
    """Attention and MLP by what such modules are called everywhere, their writers by shape: validation has the say."""
    found: dict[str, str] = {}
    parts = {
        r"attn|attention": ("attn_in", "head_in", "attn_out"),
        r"mlp|ffn|feed_forward": ("mlp_in", "mlp_act", "mlp_out"),
    }
    for pattern, (inner, writes, outer) in parts.items():
        for name, child in block.named_children():
            linear = [at for at, module in child.named_modules() if _out_features(module) == width]
            if re.search(pattern, name) and linear:  # a norm has no linear map
                found |= {inner: name, writes: f"{name}.{linear[-1]}", outer: name}
                break
    return found


def _out_features(module: nn.Module) -> int | None:
    return getattr(module, "out_features", getattr(module, "nf", None))  # nf: transformers' Conv1D
