"""Batched greedy decoding with a key-value cache, right under left padding; token-identical to transformers.

Kept small and open, so that later rooms can hook a forward pass whose positions, mask and step they know.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deltalens.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def generate(
    model: "PreTrainedModel",
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    batch_size: int = 64,
) -> list[str]:
    """The greedy completion of every rendered prompt, think tags included, the ending token removed.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer; prompts are encoded as they stand, no special token is added.
        prompts: Texts of any lengths, the chat template already applied.
        max_new_tokens: Bound on the completion; a completion that reaches it is returned as it is.
        batch_size: Rows decoded together.
    """
    rows = generate_ids(model, tokenizer, prompts, max_new_tokens, batch_size)
    ends = ending_ids(model, tokenizer)
    trimmed = [row[:-1] if row and row[-1] in ends else row for row in rows]
    return [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in trimmed]


def generate_ids(
    model: "PreTrainedModel",
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 64,
) -> list[list[int]]:
    """The greedy completion of every prompt as token ids, its ending token included where one was reached."""
    ends = ending_ids(model, tokenizer)
    stop = torch.tensor(sorted(ends), device=model.device)
    rows: list[list[int]] = [[] for _ in prompts]
    for where, ids, mask in _batches(model, tokenizer, prompts, batch_size):
        for i, row in zip(where, _decode(model, ids, mask, stop, max_new_tokens), strict=True):
            rows[i] = _until(row, ends)
    return rows


def first_token_probs(
    model: "PreTrainedModel",
    tokenizer: Any,
    prompts: Sequence[str],
    token_ids: Sequence[int],
    batch_size: int = 64,
) -> Float[Tensor, "prompts tokens"]:
    """The softmax mass of chosen tokens at the first free position of every prompt; nothing is generated."""
    probs = torch.empty(len(prompts), len(token_ids))
    for where, ids, mask in _batches(model, tokenizer, prompts, batch_size):
        with torch.no_grad():
            logits, _ = _forward(model, ids, mask, None)
        probs[where] = logits.float().softmax(-1)[:, list(token_ids)].cpu()
    return probs


def p_think(
    model: "PreTrainedModel",
    tokenizer: Any,
    prompts: Sequence[str],
    tag: str = "<think>",
    batch_size: int = 64,
) -> Float[Tensor, "prompts"]:
    """The probability that a completion opens a think block at once, per prompt.

    Raises:
        BadInput: The tag is not one token of this tokenizer.
    """
    ids = tokenizer(tag, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or tokenizer.decode(ids) != tag:
        raise BadInput(f"{tag} is not one token of this tokenizer")
    return first_token_probs(model, tokenizer, prompts, ids, batch_size)[:, 0]


def ending_ids(model: "PreTrainedModel", tokenizer: Any) -> set[int]:
    """The ids that end a completion: the generation config's, else the tokenizer's."""
    config = model.generation_config
    found = None if config is None else config.eos_token_id
    if found is None:
        found = tokenizer.eos_token_id
    if found is None:
        return set()
    return {int(i) for i in found} if isinstance(found, list | tuple) else {int(found)}


def _batches(
    model: "PreTrainedModel", tokenizer: Any, prompts: Sequence[str], batch_size: int
) -> Iterator[tuple[list[int], Int[Tensor, "rows width"], Int[Tensor, "rows width"]]]:
    """Batches of prompts of like length: their indices, left-padded ids and attention mask."""
    encoded = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
    empty = next((i for i, row in enumerate(encoded) if not row), None)
    if empty is not None:
        raise BadInput(f"prompt {empty} has no tokens")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    for at in range(0, len(order), batch_size):
        where = order[at : at + batch_size]
        width = len(encoded[where[-1]])
        ids = [[pad] * (width - len(encoded[i])) + encoded[i] for i in where]
        mask = [[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in where]
        yield where, torch.tensor(ids, device=model.device), torch.tensor(mask, device=model.device)


def _forward(
    model: "PreTrainedModel", ids: Int[Tensor, "rows new"], mask: Int[Tensor, "rows seen"], cache: Any
) -> tuple[Float[Tensor, "rows vocabulary"], Any]:
    """Logits of the last position and the cache, positions counted from each row's first real token."""
    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if "position_ids" in accepted:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        options["position_ids"] = positions[:, -ids.shape[1] :]
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = 1  # all logits of a long prompt over a large vocabulary would dominate memory
    name = "cache" if "cache" in accepted else "past_key_values"  # its name from transformers 5.24 on, and before
    out = model(input_ids=ids, attention_mask=mask, use_cache=True, **{name: cache}, **options)
    return out.logits[:, -1], out[name]


@torch.no_grad()
def _decode(
    model: "PreTrainedModel",
    ids: Int[Tensor, "rows width"],
    mask: Int[Tensor, "rows width"],
    stop: Int[Tensor, "ends"],
    max_new_tokens: int,
) -> list[list[int]]:
    """Greedy continuation of one batch; rows that ended go on and are cut by the caller."""
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    columns: list[Tensor] = []
    cache, new = None, ids
    for _ in range(max_new_tokens):
        logits, cache = _forward(model, new, mask, cache)
        token = logits.argmax(-1)
        columns.append(token)
        done |= torch.isin(token, stop)
        if bool(done.all()):
            break
        new = token[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return torch.stack(columns, dim=1).tolist() if columns else [[] for _ in range(len(ids))]


def _until(row: list[int], ends: set[int]) -> list[int]:
    """A row up to and including its first ending token."""
    return row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))]
