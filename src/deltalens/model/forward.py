"""One forward pass of a left-padded batch, and the batches: what generating, scoring and capturing share."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deltalens.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings")  # GPT-2's, OPT's and BERT's names


def left_padded(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "rows width"], Int[Tensor, "rows width"]]:
    """Token ids of unequal rows, aligned at their ends, and the attention mask that hides the padding."""
    width = max(map(len, rows))
    ids = [[0] * (width - len(row)) + list(row) for row in rows]  # any valid id: a hidden token is never read
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def forward(
    model: "PreTrainedModel",
    ids: Int[Tensor, "rows new"],
    mask: Int[Tensor, "rows seen"],
    keep: int,
    cache: Any = None,
    use_cache: bool = False,
) -> tuple[Float[Tensor, "rows keep vocabulary"], Any]:
    """Logits of the last `keep` positions in the model's dtype, and the cache where `use_cache` asks for it."""
    accepted = _accepted(type(model))
    options: dict[str, Any] = {}
    if "position_ids" in accepted:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = keep  # all logits of a long prompt over a large vocabulary would dominate memory
    name = "cache" if "cache" in accepted else "past_key_values"  # its name from transformers 5.24 on, and before
    out = model(input_ids=ids, attention_mask=mask, use_cache=use_cache, **{name: cache}, **options)
    return out.logits[:, -keep:], out[name] if use_cache else None


def check_finite(logits: Float[Tensor, "*rows vocabulary"]) -> None:
    """Refuses the logits of a model that is broken, or that has left the range of its dtype.

    Raises:
        BadInput: One of them is NaN.
    """
    if bool(logits.isnan().any()):
        raise BadInput("the model gives NaN for some token", "--dtype float32, or check how its weights were made")


def keeps_logits(model: "PreTrainedModel") -> bool:
    """Whether a forward pass can leave out the logits of the positions that nobody asked for."""
    return "logits_to_keep" in _accepted(type(model))


def watched(model: "PreTrainedModel") -> bool:
    """Whether hooks look at the passes of a model, so that tokens cannot be left out of one because they are known."""
    return any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def rows_of_cache(cache: Any, rows: Sequence[int], device: torch.device) -> Any:
    """A cache of the given rows of another, which stays as it is; a row may be named several times."""
    taken = copy.copy(cache)
    taken.layers = [copy.copy(layer) for layer in cache.layers]  # what a pass adds is put in place of their tensors
    taken.reorder_cache(torch.tensor(rows, device=device))
    return taken


def allows_gaps(model: "PreTrainedModel", cache: Any) -> bool:
    """Whether padding may stand between the tokens of a cache and those that follow.

    Positions have to be told, and every layer has to keep every token: a window or a recurrent state counts columns.
    """
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", None)
    told = "position_ids" in _accepted(type(model))
    return told and bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@functools.cache
def _accepted(kind: "type[PreTrainedModel]") -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)  # a tenth of a small model's step, so read once


def check_prompts(model: "PreTrainedModel", prompts: Sequence[Sequence[int]], new: Sequence[int]) -> None:
    """Refuses, before any work, a row without a token or one that outgrows a table of learned positions.

    Args:
        model: A causal language model.
        prompts: Token ids.
        new: How many tokens each prompt is followed by.

    Raises:
        BadInput: Naming the row.
    """
    learned = any(
        isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _POSITION_TABLES
        for name, module in model.named_modules()
    )
    limit = model.config.max_position_embeddings if learned else None
    for i, (prompt, more) in enumerate(zip(prompts, new, strict=True)):
        if not prompt:
            raise BadInput(f"prompt {i} has no tokens")
        if limit is not None and len(prompt) + more > limit:
            total = f"{len(prompt)} tokens and {more} new ones"
            raise BadInput(
                f"prompt {i} has {total}, but the model knows {limit} positions", "a shorter prompt or fewer new tokens"
            )


def in_batches(
    work: Callable[[list[int]], T], lengths: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], T]]:
    """Runs `work` on batches of rows of like length; out of memory halves the batch, once.

    Args:
        work: Gets the indices of a batch's rows.
        lengths: Of every row; like lengths share a batch, so that little is padded.
        batch_size: Rows at a time.

    Raises:
        BadInput: Half the batch does not fit either.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # the longest first: what does not fit shows at once
    at, size, halved = 0, batch_size, False
    while at < len(order):
        where = order[at : at + size]
        try:
            result = work(where)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if halved or len(where) == 1:
                raise BadInput(
                    f"out of memory with a batch of {len(where)} rows, the longest of {lengths[where[0]]} tokens",
                    "a smaller batch, shorter texts, or a smaller dtype",
                ) from error
            size, halved = len(where) // 2, True
            continue
        yield where, result
        at += len(where)


def _out_of_memory(error: Exception) -> bool:
    """CUDA has a class for it, the allocator of the CPU only a message."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
