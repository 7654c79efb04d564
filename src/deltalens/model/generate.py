"""Batched decoding with a key-value cache, greedy or sampled; greedy is token-identical to transformers.

A row's tokens depend on its prompt and its seed only, never on its batch: padding is hidden, a row that ended leaves
the batch at once, and every row draws from a random stream of its own. Hooks are told which rows a pass holds.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from deltalens.errors import BadInput
from deltalens.model.decoding import Decoding
from deltalens.model.forward import check_finite, check_prompts, forward, in_batches, left_padded
from deltalens.model.select import batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GREEDY = Decoding()


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
    encoded = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    ends = ending_ids(model, tokenizer)
    rows = generate_ids(model, encoded, Decoding(max_new_tokens), ends=ends, batch_size=batch_size)
    trimmed = [row[:-1] if row and row[-1] in ends else row for row in rows]
    return [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in trimmed]


def generate_ids(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    decoding: Decoding = _GREEDY,
    *,
    ends: Collection[int],
    seeds: Sequence[int] | None = None,
    batch_size: int = 64,
) -> list[list[int]]:
    """The completion of every prompt, its ending token included where one was reached.

    Args:
        model: A causal language model in evaluation mode.
        prompts: Token ids of any lengths.
        decoding: Greedy unless its temperature says otherwise.
        ends: Ids that end a completion.
        seeds: One per prompt, needed for sampling; equal prompts with equal seeds give equal completions.
        batch_size: Rows decoded together.

    Raises:
        BadInput: A prompt is empty or leaves no room in a table of positions, seeds are missing, or half of
            `batch_size` does not fit into memory.
    """
    check_prompts(model, prompts, [decoding.max_new_tokens] * len(prompts))
    if decoding.temperature > 0 and (seeds is None or len(seeds) != len(prompts)):
        raise BadInput("sampling needs one seed for every prompt", "temperature 0 decodes without seeds")

    def decode(where: list[int]) -> list[list[int]]:
        # A stream of numbers for every row: a longer text reads more of it.
        streams = {} if seeds is None else {i: np.random.default_rng(seeds[i]) for i in where}
        return _decode(model, where, prompts, decoding, frozenset(ends), streams)

    rows: list[list[int]] = [[]] * len(prompts)
    for where, found in in_batches(decode, [len(prompt) for prompt in prompts], batch_size):
        for i, row in zip(where, found, strict=True):
            rows[i] = row
    return rows


def ending_ids(model: "PreTrainedModel", tokenizer: Any) -> set[int]:
    """The ids that end a completion: the generation config's, else the tokenizer's."""
    config = model.generation_config
    found = None if config is None else config.eos_token_id
    if found is None:
        found = tokenizer.eos_token_id
    if found is None:
        return set()
    return {int(i) for i in found} if isinstance(found, list | tuple) else {int(found)}


@torch.no_grad()
def _decode(
    model: "PreTrainedModel",
    where: list[int],
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    ends: frozenset[int],
    streams: Mapping[int, np.random.Generator],
) -> list[list[int]]:
    """The completions of one batch of prompts, `where` being their indices."""
    found: dict[int, list[int]] = {i: [] for i in where}
    rows = where  # which prompt stands in each row of the batch
    new, mask = left_padded([prompts[i] for i in where], model.device)
    cache = None
    for _ in range(decoding.max_new_tokens):
        with batch(rows):
            logits, cache = forward(model, new, mask, keep=1, cache=cache, use_cache=True)
        check_finite(logits)
        if decoding.temperature == 0:
            token = logits[:, 0].argmax(-1)
        else:
            uniform = torch.tensor([1 - streams[i].random() for i in rows], dtype=torch.float64)  # in (0, 1]
            token = _draw(logits[:, 0], decoding, uniform.to(model.device))
        for i, value in zip(rows, token.tolist(), strict=True):
            found[i].append(value)
        stay = [at for at, i in enumerate(rows) if found[i][-1] not in ends]
        if not stay:
            break
        if len(stay) < len(rows):
            rows = [rows[at] for at in stay]
            kept = torch.tensor(stay, device=model.device)
            token, mask = token[kept], mask[kept]
            cache.reorder_cache(kept)  # to fewer rows: they are copied once, and the others cost nothing from here on
        new = token[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return [found[i] for i in where]


def _draw(
    logits: Float[Tensor, "rows vocabulary"], decoding: Decoding, uniform: Float64[Tensor, "rows"]
) -> Int[Tensor, "rows"]:
    """One token per row by inverting the distribution function in the order of the vocabulary.

    That order is fixed, so that rounding, which differs between batches, moves a boundary by as little as itself; in
    order of probability two near ties could change places.
    """
    probs = (logits.double() / decoding.temperature).softmax(-1)
    if decoding.top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True)
        above = ranked.cumsum(-1) - ranked  # the mass of likelier tokens
        probs = probs.scatter(-1, order, ranked.masked_fill(above >= decoding.top_p, 0))
    mass = probs.cumsum(-1)
    return torch.searchsorted(mass, uniform[:, None] * mass[:, -1:])[:, 0]
