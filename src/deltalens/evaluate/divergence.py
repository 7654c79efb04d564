"""How far an arm's next-token distribution is from a reference's, and how well a model predicts a fixed text."""

from collections.abc import Sequence
from itertools import takewhile
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

    Where one vocabulary has more rows than the other, both distributions are taken over the rows that both have, and a
    text ends before the first id that one of them lacks.

    Args:
        reference: The model that wrote the texts.
        model: The arm; the ids that both have must be the same tokens.
        prompts: Token ids.
        texts: The reference's completions; a row without one is None.
        batch_size: Rows at a time.
    """
    found: list[float | None] = [None] * len(prompts)
    rows = min(m.config.get_text_config().vocab_size for m in (reference, model))
    texts = [list(takewhile(lambda i: i < rows, text)) for text in texts]
    pairs = zip(
        continuation_logits(reference, prompts, texts, batch_size),
        continuation_logits(model, prompts, texts, batch_size),
        strict=True,
    )
    for (i, theirs), (_, ours) in pairs:
        p = theirs[:, :rows].log_softmax(-1)
        kl = (p.exp() * (p - ours[:, :rows].to(p.device).log_softmax(-1))).sum(-1).mean()
        found[i] = 0.0 if kl < 0 else float(kl)  # rounding can take equal distributions to −1e-9
    return found


def surprisals(
    model: "PreTrainedModel", texts: Sequence[Sequence[int]], batch_size: int = 64
) -> list[tuple[float, int]]:
    """Per text, the negative log-probability of its tokens after the first, summed, in nats, and how many they are."""
    first, rest = [text[:1] for text in texts], [text[1:] for text in texts]
    return [(-float(row.double().sum()), len(row)) for row in continuation_log_probs(model, first, rest, batch_size)]
