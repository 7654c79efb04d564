"""Are the sites what they are called? Three passes of a few tokens through the model decide, before any use.

A wrong tensor is a silent failure: hooks fire, numbers come out. So every site must have the shape that the config
promises, the residual stream must add up from its parts, values must be the heads' outputs where a token can attend to
itself only, and a change at a site must reach the logits.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from deltalens.errors import Refused
from deltalens.model.points import Site, attach

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from deltalens.model.sites import Sites

_TOKENS = 4
Key = tuple[str, int | None]
Faults = dict[Key, str]


@torch.no_grad()
def validate(model: "PreTrainedModel", sites: "Sites") -> tuple[dict[Key, int], Faults]:
    """The last dimension of every site, and the reason for every one that failed.

    Raises:
        Refused: The residual stream itself does not run through the blocks.
    """
    every: list[Key] = [(name, layer) for layer in range(sites.layers) for name in _offered(sites, layer)]
    every.append(("logits", None))
    vocabulary = model.config.get_text_config().vocab_size
    # Spread over the vocabulary; not its ends, where padding and other untrained ids stand.
    ids = (torch.arange(1, _TOKENS + 1) * vocabulary // (_TOKENS + 1)).to(model.device)[None]
    seen: dict[Key, Tensor] = {}
    handles = []
    try:
        for key in every:
            handles += attach(model, sites.point(Site(*key)), lambda x, key=key: seen.update({key: x[0]}), lambda: 1)
        model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    faults: Faults = {}
    for layer in range(sites.layers):
        _check_stream(sites, seen, layer)
        _check_parts(sites, seen, layer, faults)
        _check_heads(sites, seen, layer, faults)
    _check_effects(model, sites, ids, faults)
    return {key: x.shape[-1] for key, x in seen.items()}, faults


def _offered(sites: "Sites", layer: int) -> list[str]:
    return ["resid_pre", *sites.modules[layer], "resid_post"]


def _check_stream(sites: "Sites", seen: dict[Key, Tensor], layer: int) -> None:
    for name in ("resid_pre", "resid_post"):
        x = seen.get((name, layer))
        if x is None or x.shape != (_TOKENS, sites.width):
            shape = "nothing" if x is None else "×".join(map(str, x.shape))
            raise Refused(f"{name} of {sites.blocks[layer]} is {shape}, not {_TOKENS}×{sites.width}")
    if layer and not torch.equal(seen["resid_pre", layer], seen["resid_post", layer - 1]):
        raise Refused(f"the input of {sites.blocks[layer]} is not the output of {sites.blocks[layer - 1]}")


def _check_parts(sites: "Sites", seen: dict[Key, Tensor], layer: int, faults: Faults) -> None:
    """Shapes, and that the stream is the sum of what is added to it."""
    wide = {
        "q": sites.heads * sites.head_dim,
        "k": sites.kv_heads * sites.head_dim,
        "v": sites.kv_heads * sites.head_dim,
        "head_in": sites.heads * sites.head_dim,
    }
    for name in sites.modules[layer]:
        x = seen.get((name, layer))
        size = wide.get(name, sites.width)
        if x is None:
            faults[name, layer] = "its module did not run"
        elif name != "mlp_act" and x.shape[-1] != size:  # the MLP's inner width is nowhere promised
            faults[name, layer] = f"its width is {x.shape[-1]}, not {size}"
    usable = {name: x for (name, at), x in seen.items() if at == layer and (name, at) not in faults}
    parts = [usable[name].double() for name in ("resid_pre", "attn_out", "mlp_out") if name in usable]
    if len(parts) == 3 and not _sums_to(parts, usable["resid_post"]):
        for name in ("attn_out", "mlp_out", "resid_mid"):
            faults[name, layer] = "resid_pre + attn_out + mlp_out is not resid_post"
    elif "resid_mid" in usable and len(parts) == 3 and not _sums_to(parts[:2], usable["resid_mid"]):
        faults["resid_mid", layer] = "it is not resid_pre + attn_out; the block may be parallel"


def _check_heads(sites: "Sites", seen: dict[Key, Tensor], layer: int, faults: Faults) -> None:
    """The first token attends to itself alone, so every head's output is there the value of its key-value head."""
    if any((name, layer) not in seen or (name, layer) in faults for name in ("v", "head_in")):
        return
    values = seen["v", layer][0].view(sites.kv_heads, sites.head_dim)
    group = [sites.kv_head(head) for head in range(sites.heads)]
    if not _sums_to([values[group].double()], seen["head_in", layer][0].view(sites.heads, sites.head_dim)):
        for name in ("q", "k", "v"):
            faults[name, layer] = "at the first token, v is not what its heads pass on"


def _sums_to(parts: list[Tensor], whole: Tensor) -> bool:
    """Whether a sum that the model took in its own dtype is this one: each addition rounds by half an epsilon."""
    scale = torch.stack([part.abs() for part in parts]).sum(0)
    return bool(((sum(parts) - whole.double()).abs() <= 2 * torch.finfo(whole.dtype).eps * scale).all())


def _check_effects(model: "PreTrainedModel", sites: "Sites", ids: Int[Tensor, "1 tokens"], faults: Faults) -> None:
    """A change of the last token at a site must change that token's logits.

    One row of a batch for every site of the first, a middle and the last layer; the others are built alike.
    """
    layers = sorted({0, sites.layers // 2, sites.layers - 1})
    keys = [(n, at) for at in layers for n in _offered(sites, at) if (n, at) not in faults]
    batch = ids.expand(len(keys), -1)
    generator = torch.Generator().manual_seed(0)
    plain = model(input_ids=batch, use_cache=False).logits[:, -1]
    handles = []
    try:
        for row, key in enumerate(keys):

            def shaken(x: Tensor, row: int = row) -> Tensor:
                noise = torch.randn(x.shape[-1], generator=generator).to(x)
                shaken = x.clone()
                shaken[row, -1] += noise * (float(x[row, -1].std()) or 1.0)
                return shaken

            handles += attach(model, sites.point(Site(*key)), shaken, lambda: len(keys))
        changed = (model(input_ids=batch, use_cache=False).logits[:, -1] != plain).any(-1)
    finally:
        for handle in handles:
            handle.remove()
    for (name, layer), moved in zip(keys, changed.tolist(), strict=True):
        if moved:
            continue
        if name in ("resid_pre", "resid_post"):
            raise Refused(f"changing {name} of {sites.blocks[layer]} changes no logit")
        faults[name, layer] = "changing it changes no logit"
