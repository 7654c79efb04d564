"""Attention patterns read, and spans hidden from later tokens, through transformers' own attention interface.

The registered function computes what eager attention computes, one layer at a time, so a pattern [rows, heads, new,
keys] lives only while its layer runs: statistics are summed inside, nothing of size layers × heads × T² is stored.
"""

import contextlib
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from deltalens.errors import BadInput, Refused
from deltalens.model.forward import check_prompts, forward, in_batches, left_padded
from deltalens.model.select import LAST, Selector, Track, batch
from deltalens.model.sites import sites_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "deltalens"
Spans = Sequence[tuple[int, int] | None]
Read = Callable[[int, Float[Tensor, "rows heads new keys"], Track], None]


@dataclass(slots=True)
class _Open:
    """What the attention of a model does while it is open."""

    read: Read | None
    hide: Spans | None
    layers: Collection[int] | None
    track: Track
    met: int = 0


_OPEN: dict[nn.Module, _Open] = {}  # by module, so that two models can be open at a time


@contextlib.contextmanager
def attend(
    model: "PreTrainedModel",
    read: Read | None = None,
    hide: Spans | None = None,
    layers: Collection[int] | None = None,
) -> Generator[None, None, None]:
    """Runs the model's attention through an open function within the block; afterwards its own one is back.

    Args:
        model: A causal language model whose attention goes through transformers' `AttentionInterface`.
        read: Gets the layer, its attention probabilities and what the rows have read.
        hide: Of each of the caller's rows, a half-open span of positions that later tokens may not attend to; tokens
            of the span still see each other. None hides nothing from a row.
        layers: Where `hide` acts; every layer if left out.

    Raises:
        BadInput: A span that is empty or starts below 0.
        Refused: The model's attention cannot be exchanged or has a term that is not known here; it is open already;
            or, on leaving, no token was kept from a hidden span.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    if model in _OPEN:
        raise Refused("the attention of this model is open already", "one `attend` with both read and hide")
    for row, hidden in enumerate(hide or []):
        if hidden is not None and not 0 <= hidden[0] < hidden[1]:
            raise BadInput(f"the span {hidden[0]}:{hidden[1]} of row {row} is empty or starts below 0")
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    before = model.config._attn_implementation
    opened = _Open(read, hide, layers, Track())
    modules = list(model.modules())
    handle = model.register_forward_pre_hook(opened.track.observe, with_kwargs=True)
    try:
        _OPEN.update(dict.fromkeys(modules, opened))
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise Refused(f"the attention of {type(model).__name__} cannot be exchanged")
        yield
    finally:
        handle.remove()
        model.set_attn_implementation(before)
        for module in modules:
            del _OPEN[module]
    if hide is not None and any(hide) and not opened.met:
        raise Refused("no token was kept from a hidden span", "a span within the texts, or run the model")


def _attention(
    module: nn.Module,
    query: Float[Tensor, "rows heads new d"],
    key: Float[Tensor, "rows kv_heads keys d"],
    value: Float[Tensor, "rows kv_heads keys e"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "rows new heads e"], Float[Tensor, "rows heads new keys"]]:
    """Attention as transformers' eager one computes it, with what the open model wants in between."""
    unknown = [name for name in ("s_aux", "position_bias") if others.get(name) is not None]
    if unknown:
        raise Refused(f"the attention of {type(module).__name__} has a term {unknown[0]} that is not known here")
    opened, layer = _OPEN[module], module.layer_idx
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    if opened.hide is not None and (opened.layers is None or layer in opened.layers):
        hidden = _hidden(opened.track, opened.hide, key.shape[2]).to(scores.device)
        opened.met += int(hidden.sum())
        scores = scores.masked_fill(hidden[:, None], torch.finfo(scores.dtype).min)
    probs = scores.softmax(dim=-1, dtype=torch.float32)
    if opened.read is not None:
        opened.read(int(layer), probs, opened.track)  # ty: ignore[invalid-argument-type]
    return (probs.to(query.dtype) @ value).transpose(1, 2).contiguous(), probs


def _hidden(track: Track, hide: Spans, keys: int) -> Bool[Tensor, "rows new keys"]:
    """Which keys each query may not see; a sliding cache holds the last `keys` columns only."""
    rows = track.rows.tolist()
    if max(rows) >= len(hide):
        raise BadInput(
            f"row {max(rows)} of the batch has none of the {len(hide)} spans", "a span or None for every row"
        )
    spans = [hide[row] or (0, 0) for row in rows]
    start, stop = torch.tensor(spans, device=track.real.device).T[..., None]
    position = track.position
    inside = ((position >= start) & (position < stop) & track.real)[:, None, -keys:]
    return inside & (position >= stop)[:, -track.new :, None]


@dataclass(frozen=True, slots=True, eq=False)
class HeadStatistics:
    """Means over the chosen tokens as queries, per layer and head.

    Args:
        tokens: How many queries.
        entropy: Of the attention probabilities, in nats.
        first: Probability of the first real token, the attention sink.
        distance: Mean distance to the attended key, in tokens.
        span: Probability of a given span of each prompt, where one was given.
    """

    tokens: int
    entropy: Float64[Tensor, "layers heads"]
    first: Float64[Tensor, "layers heads"]
    distance: Float64[Tensor, "layers heads"]
    span: Float64[Tensor, "layers heads"] | None


@torch.no_grad()
def head_statistics(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    select: Selector = LAST,
    *,
    spans: Sequence[tuple[int, int]] | None = None,
    turns: Sequence[Sequence[int]] | None = None,
    batch_size: int = 16,
) -> HeadStatistics:
    """What every head attends to, summed in float64 while its layer runs.

    Args:
        model: A causal language model in evaluation mode.
        prompts: Token ids of any lengths.
        select: Which tokens count as queries.
        spans: Of every prompt, half-open positions whose attention mass is wanted.
        turns: Of every prompt, the lengths of prompt and completion, as `select.batch` takes them.
        batch_size: Prompts at a time; a layer's pattern takes 4·rows·heads·T² bytes.

    Raises:
        BadInput: An empty prompt.
        Refused: The selector matches no token; see also `attend`.
    """
    sites = sites_of(model)
    check_prompts(model, prompts, [0] * len(prompts))

    def work(where: list[int]) -> tuple[int, Tensor]:
        sums = torch.zeros(4, sites.layers, sites.heads, dtype=torch.float64)
        tokens = 0

        def read(layer: int, probs: Float[Tensor, "rows heads new keys"], track: Track) -> None:
            nonlocal tokens
            chosen, tokens = track.chosen(select)
            real, position, marks = (x.to(probs.device) for x in (track.real, track.position, chosen))
            away = (position[:, :, None] - position[:, None, :]).clamp(min=0)
            masses = [
                -torch.special.xlogy(probs, probs),
                probs * (real & (position == 0))[:, None, None],
                probs * away[:, None],
            ]
            if spans is not None:
                start, stop = torch.tensor([spans[i] for i in where], device=position.device).T[..., None]
                masses.append(probs * ((position >= start) & (position < stop) & real)[:, None, None])
            for total, mass in zip(sums, masses, strict=False):
                total[layer] = torch.einsum("rhn,rn->h", mass.sum(-1).double(), marks.double()).cpu()

        with batch(where, None if turns is None else [turns[i] for i in where]), attend(model, read):
            forward(model, *left_padded([prompts[i] for i in where], model.device), keep=1)
        return tokens, sums

    results = [result for _, result in in_batches(work, [len(p) for p in prompts], batch_size)]
    tokens = sum(count for count, _ in results)
    if not tokens:
        raise Refused("the selector matches no token", "another selector or other prompts")
    entropy, first, distance, span = torch.stack([sums for _, sums in results]).sum(0) / tokens
    return HeadStatistics(tokens, entropy, first, distance, None if spans is None else span)
