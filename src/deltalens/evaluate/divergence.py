"""How far an arm's next-token distribution is from a reference's, and how well a model predicts a fixed text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltalens.model.score import continuation_log_probs, continuation_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def kl_per_token(
    reference: "PreTrainedModel",
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    batch_size: int = 64,
) -> list[float | None]:
    """Per row, the mean KL(reference‖model) in nats per token along the reference's greedy text.

    Args:
        reference: The model that wrote the texts.
        model: The arm; it must share the vocabulary.
        prompts: Token ids.
        texts: The reference's completions; a row without one is None.
        batch_size: Rows at a time.
    """
    found: list[float | None] = [None] * len(prompts)
    pairs = zip(
        continuation_logits(reference, prompts, texts, batch_size),
        continuation_logits(model, prompts, texts, batch_size),
        strict=True,
    )
    for (i, theirs), (_, ours) in pairs:
        p = theirs.log_softmax(-1)
        kl = (p.exp() * (p - ours.to(p.device).log_softmax(-1))).sum(-1).mean()
        found[i] = max(0.0, float(kl))  # rounding can take equal distributions to −1e-9
    return found


def surprisals(model: "PreTrainedModel", texts: Sequence[Sequence[int]], batch_size: int = 64) -> list[float]:
    """Per text, the mean negative log-probability of its tokens after the first, in nats; exp of it is perplexity."""
    first, rest = [text[:1] for text in texts], [text[1:] for text in texts]
    return [-float(row.double().mean()) for row in continuation_log_probs(model, first, rest, batch_size)]
