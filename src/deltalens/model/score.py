"""What a model thinks of given texts: probabilities from one forward pass, nothing generated."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from deltalens.model.forward import check_finite, check_prompts, forward, in_batches, keeps_logits, left_padded
from deltalens.model.select import batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOGITS = 2**28  # at most this many at a time: 1 GiB in float32


def continuation_logits(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    batch_size: int = 64,
) -> Iterator[tuple[int, Float[Tensor, "tokens vocabulary"]]]:
    """For every row, in order of its length: its index and the float32 logits that predict its continuation.

    One forward pass per row. Two models that are given the same rows yield them in the same order.

    Args:
        model: A causal language model in evaluation mode.
        prompts: Token ids, at least one each.
        continuations: Token ids that follow them; a row without any is left out.
        batch_size: Rows at a time, fewer where their logits would take more than 1 GiB.

    Raises:
        BadInput: A row is empty or outgrows a table of positions, or half a batch does not fit into memory.
    """
    check_prompts(model, prompts, [len(c) for c in continuations])
    rows = [i for i, continuation in enumerate(continuations) if continuation]
    texts = [[*prompts[i], *continuations[i][:-1]] for i in rows]  # the last token predicts nothing that is asked for
    kept = [len(continuations[i]) if keeps_logits(model) else len(text) for i, text in zip(rows, texts, strict=True)]
    fitting = max(1, _LOGITS // (max(kept, default=1) * model.config.get_text_config().vocab_size))

    @torch.no_grad()
    def score(at: list[int]) -> list[tuple[int, Float[Tensor, "tokens vocabulary"]]]:
        where = [rows[j] for j in at]
        ids, mask = left_padded([texts[j] for j in at], model.device)
        with batch(where, turns=[(len(prompts[i]),) for i in where]):  # to hooks, the continuation is generated
            logits, _ = forward(model, ids, mask, keep=max(len(continuations[i]) for i in where))
        found = [(i, row[-len(continuations[i]) :]) for i, row in zip(where, logits, strict=True)]
        for _, asked in found:  # behind the padding a row may hold anything
            check_finite(asked)
        return found

    for _, found in in_batches(score, [len(text) for text in texts], min(batch_size, fitting)):
        for i, logits in found:
            yield i, logits.float()


def continuation_log_probs(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    batch_size: int = 64,
) -> list[Float[Tensor, "tokens"]]:
    """The log-probability of every continuation token, given its prompt and the tokens before it.

    See `continuation_logits` for the arguments and errors; an empty continuation has an empty row.
    """
    found = [torch.empty(0) for _ in prompts]
    for i, logits in continuation_logits(model, prompts, continuations, batch_size):
        chosen = torch.tensor(continuations[i], device=logits.device)[:, None]
        found[i] = (logits.gather(-1, chosen)[:, 0] - logits.logsumexp(-1)).cpu()
    return found


def opening_probs(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], open_ids: Sequence[int], batch_size: int = 64
) -> Float[Tensor, "prompts"]:
    """`p_think`: the probability that a completion begins with the whole opening tag, however many tokens it has."""
    found = continuation_log_probs(model, prompts, [open_ids] * len(prompts), batch_size)
    return torch.tensor([float(row.sum()) for row in found]).exp()


def skip_probs(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    close_ids: Sequence[int],
    within: int = 4,
    batch_size: int = 64,
) -> Float[Tensor, "prompts"]:
    """`p_skip`: the probability that the closing tag starts within the first free tokens (ours).

    1 - ∏(1 - h_t) over t < `within`, where h_t is the probability of the whole tag after the t most likely tokens
    that do not begin it: exact for `within` = 1; beyond, one path stands for all that do not close. One forward pass
    for each t.

    Args:
        model: A causal language model in evaluation mode.
        prompts: Token ids, the opening tag included.
        close_ids: The closing tag.
        within: How many of the first free positions count.
        batch_size: Rows at a time.
    """
    paths: list[list[int]] = [[] for _ in prompts]  # kept apart from the prompts, whose last token hooks may ask for
    stays = torch.ones(len(paths), dtype=torch.float64)  # 1 - h keeps a small h
    for _ in range(within):
        texts = [[*path, *close_ids] for path in paths]
        for i, logits in continuation_logits(model, prompts, texts, batch_size):
            log_probs = logits[-len(close_ids) :].log_softmax(-1)
            hazard = log_probs.gather(-1, torch.tensor(close_ids, device=logits.device)[:, None]).sum().exp()
            stays[i] *= 1 - hazard.double().cpu()
            log_probs[0, close_ids[0]] = -torch.inf
            paths[i].append(int(log_probs[0].argmax()))
    return (1 - stays).float()
