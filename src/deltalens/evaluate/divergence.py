"""How far an arm's next-token distribution is from a reference's, and how well a model predicts a fixed text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deltalens.model.forward import watched
from deltalens.model.score import (
    branch_logits,
    continuation_log_probs,
    continuation_logits,
    log_probs_of,
    opening_probs,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROUNDING = 1e-6  # nats: what two passes of one model in different batches can differ by in float32


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A model along its own texts, read once for the KL of any number of arms.

    Its distributions themselves would take gigabytes (tokens × vocabulary); what its output embedding makes them of
    gives them back and is smaller by vocabulary / width.

    Attributes:
        model: Unchanged since it was read.
        prompts: Token ids.
        texts: Its completions.
        states: By row, the inputs of the output embedding that predict its text, [tokens, d]; None where the logits
            are not what that embedding gives (Gemma 2 caps them), or of 16 bits, in which it shows that prompts are
            shared by the arms and not here: every arm's KL then reads the model again.
    """

    model: "PreTrainedModel"
    prompts: Sequence[Sequence[int]]
    texts: Sequence[Sequence[int]]
    states: dict[int, Float[Tensor, "tokens d"]] | None


def reference_along(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], batch_size: int = 64
) -> Reference:
    """Reads a model along its completions of the prompts, every row whole."""
    states: dict[int, Tensor] = {}
    rows: Iterator[tuple[Tensor, Tensor]] = iter(())

    def take(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        nonlocal rows
        rows = zip(args[0], output, strict=True)

    handle = model.get_output_embeddings().register_forward_hook(take)
    try:
        for i, logits in continuation_logits(model, prompts, texts, batch_size):
            state, given = (x[-len(texts[i]) :] for x in next(rows))
            if given.dtype != torch.float32 or not torch.equal(given, logits):
                return Reference(model, prompts, texts, None)
            states[i] = state.clone()  # a view would keep the whole batch
    finally:
        handle.remove()
    return Reference(model, prompts, texts, states)


def p_think_and_kl(
    model: "PreTrainedModel", reference: Reference, open_ids: Sequence[int] | None, batch_size: int = 64
) -> tuple[list[float | None], list[float | None]]:
    """Per row of the reference, p_think and KL(reference‖model), from one reading of the prompt where that is possible.

    See `model.score.opening_probs` and `kl_per_token`; without an opening tag p_think is None.
    """
    prompts, states = reference.prompts, reference.states
    kl: list[float | None] = [None] * len(prompts)
    if states is None or open_ids is None:
        thinks = kl if open_ids is None else opening_probs(model, prompts, open_ids, batch_size).tolist()
        return thinks, kl_per_token(reference.model, model, prompts, reference.texts, batch_size)
    head = reference.model.get_output_embeddings()
    rows, texts = _common(reference.model, model, reference.texts)
    think = torch.empty(len(prompts))
    with torch.no_grad():
        for i, (tag, ours) in branch_logits(model, prompts, [[open_ids] * len(prompts), texts], batch_size):
            think[i] = log_probs_of(tag, open_ids).sum()
            if texts[i]:
                kl[i] = _kl(head(states[i][: len(texts[i])]).float(), ours, rows)
    return think.exp().tolist(), kl


def kl_per_token(
    reference: "PreTrainedModel",
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    batch_size: int = 64,
) -> list[float | None]:
    """Per row, the mean KL(reference‖model) in nats per token along the reference's greedy text.

    Where one vocabulary has more rows than the other, both distributions are taken over the rows that both have, and a
    text ends before the first id that one of them lacks. Below 1e-6, where float32 tells nothing, it is 0.

    Args:
        reference: The model that wrote the texts.
        model: The arm; the ids that both have must be the same tokens.
        prompts: Token ids.
        texts: The reference's completions; a row without one is None.
        batch_size: Rows at a time.
    """
    found: list[float | None] = [None] * len(prompts)
    rows, texts = _common(reference, model, texts)
    # Both are read in the same way, whose rounding in 16 bits would else be taken for a difference.
    share = not (watched(reference) or watched(model))
    theirs_ours = (continuation_logits(m, prompts, texts, batch_size, share) for m in (reference, model))
    pairs = zip(*theirs_ours, strict=True)
    for (i, theirs), (_, ours) in pairs:
        found[i] = _kl(theirs, ours, rows)
    return found


def _common(
    reference: "PreTrainedModel", model: "PreTrainedModel", texts: Sequence[Sequence[int]]
) -> tuple[int, list[list[int]]]:
    """How many rows of the vocabulary two models have in common, and the texts as far as these go."""
    rows = min(m.config.get_text_config().vocab_size for m in (reference, model))
    return rows, [list(takewhile(lambda i: i < rows, text)) for text in texts]


def _kl(theirs: Float[Tensor, "tokens vocabulary"], ours: Float[Tensor, "tokens other"], rows: int) -> float:
    p = theirs[:, :rows].log_softmax(-1)
    kl = float((p.exp() * (p - ours[:, :rows].to(p.device).log_softmax(-1))).sum(-1).mean())
    return 0.0 if kl < _ROUNDING else kl


def surprisals(
    model: "PreTrainedModel", texts: Sequence[Sequence[int]], batch_size: int = 64
) -> list[tuple[float, int]]:
    """Per text, the negative log-probability of its tokens after the first, summed, in nats, and how many they are."""
    first, rest = [text[:1] for text in texts], [text[1:] for text in texts]
    return [(-float(row.double().sum()), len(row)) for row in continuation_log_probs(model, first, rest, batch_size)]
