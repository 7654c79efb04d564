"""Documents to padded training batches, and the weighted loss over them."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from deltalens.family.documents import Document

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Batches drawn at once and sorted by length: padding falls from a half to a few percent of the tokens.
_POOL = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded ids, every token's loss weight (0 on padding), and the number of real tokens."""

    ids: Int[Tensor, "rows width"]
    weights: Float[Tensor, "rows width"]
    tokens: int


def batches(
    rng: random.Random,
    sample: Callable[[random.Random], Document],
    tokenizer: Any,
    size: int,
    prompt_weight: float,
) -> Iterator[Batch]:
    """Endless batches of documents of like length, in random order."""
    while True:
        documents = [encode(sample(rng), tokenizer, prompt_weight) for _ in range(size * _POOL)]
        documents.sort(key=lambda document: len(document[0]))
        starts = list(range(0, len(documents), size))
        rng.shuffle(starts)
        for start in starts:
            yield collate(documents[start : start + size], tokenizer.pad_token_id)


def encode(document: Document, tokenizer: Any, prompt_weight: float) -> tuple[list[int], list[float]]:
    """A document's ids and loss weights, its texts encoded apart so that no token spans two of them."""
    ids: list[int] = []
    weights: list[float] = []
    for text, target in document:
        # The backend encodes some ten times faster than the Python wrapper, and this runs for every document.
        part = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        ids += part
        weights += [1.0 if target else prompt_weight] * len(part)
    return ids, weights


def collate(documents: list[tuple[list[int], list[float]]], pad: int) -> Batch:
    """Encoded documents as one right-padded batch; causal attention needs no mask for it."""
    width = max(len(ids) for ids, _ in documents)
    ids = torch.full((len(documents), width), pad)
    weights = torch.zeros(len(documents), width)
    for row, (document, weight) in enumerate(documents):
        ids[row, : len(document)] = torch.tensor(document)
        weights[row, : len(document)] = torch.tensor(weight)
    return Batch(ids, weights, sum(len(document) for document, _ in documents))


def loss(model: "PreTrainedModel", batch: Batch) -> Float[Tensor, ""]:
    """Weighted mean cross-entropy of the next token, in nats."""
    logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
    weights = batch.weights[:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none")
    return (losses * weights).sum() / weights.sum()
