"""What a model thinks of given texts: probabilities from forward passes over them, nothing generated."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from deltalens.model.forward import (
    allows_gaps,
    check_finite,
    check_prompts,
    forward,
    in_batches,
    keeps_logits,
    left_padded,
    rows_of_cache,
    watched,
)
from deltalens.model.select import batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOGITS = 2**28  # at most this many at a time: 1 GiB in float32
_ALIKE = 16  # continuations at a time behind their prompts, by length: short ones are not padded to the longest
_WORTH = 16  # tokens shared by all prompts; fewer save less than the passes cost that keep them apart


def continuation_logits(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    batch_size: int = 64,
    share: bool = True,
) -> Iterator[tuple[int, Float[Tensor, "tokens vocabulary"]]]:
    """For every row, in order of its length: its index and the float32 logits that predict its continuation.

    Two models that are given the same rows yield them in the same order.

    Args:
        model: A causal language model in evaluation mode.
        prompts: Token ids, at least one each.
        continuations: Token ids that follow them; a row without any is left out.
        batch_size: Rows at a time, fewer where their logits would take more than 1 GiB.
        share: Whether what all prompts begin with may be read once for all rows.

    Raises:
        BadInput: A row is empty or outgrows a table of positions, or half a batch does not fit into memory.
    """
    for i, (logits,) in branch_logits(model, prompts, [continuations], batch_size, share):
        yield i, logits


def branch_logits(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    branches: Sequence[Sequence[Sequence[int]]],
    batch_size: int = 64,
    share: bool = True,
) -> Iterator[tuple[int, list[Float[Tensor, "tokens vocabulary"]]]]:
    """The same of several continuations of every prompt, each by itself; rows are in order of the first.

    What all prompts begin with is read once, and every prompt once, where that saves 16 tokens of every row. Otherwise,
    and always where hooks watch the model, every row and continuation is one whole pass.
    """
    check_prompts(model, prompts, [max(map(len, texts)) for texts in zip(*branches, strict=True)])
    rows = [i for i in range(len(prompts)) if any(texts[i] for texts in branches)]
    lengths = [len(prompts[i]) + len(branches[0][i]) - 1 for i in rows]  # the last token predicts nothing asked for
    asked = [sum(len(texts[i]) + (0 if keeps_logits(model) else len(prompts[i])) for texts in branches) for i in rows]
    fitting = max(1, _LOGITS // (max(asked, default=1) * model.config.get_text_config().vocab_size))
    prefix = _prefix(model, [prompts[i] for i in rows]) if share else None

    @torch.no_grad()
    def score(at: list[int]) -> list[list[Float[Tensor, "tokens vocabulary"]]]:
        where = [rows[j] for j in at]
        own, more = [prompts[i] for i in where], [[texts[i] for i in where] for texts in branches]
        if prefix is None:
            found = [_whole(model, where, own, texts) for texts in more]
        else:
            found = _continued(model, prefix, own, more)
        for logits in itertools.chain(*found):  # behind the padding a row may hold anything
            check_finite(logits)
        return [list(one) for one in zip(*found, strict=True)]

    for at, found in in_batches(score, lengths, min(batch_size, fitting)):
        for j, logits in zip(at, found, strict=True):
            yield rows[j], [one.float() for one in logits]


def _whole(
    model: "PreTrainedModel", where: list[int], prompts: list[Sequence[int]], texts: list[Sequence[int]]
) -> list[Float[Tensor, "tokens vocabulary"]]:
    """The logits of one continuation of every row, in one pass; `where` are the rows' indices."""
    ids, mask = left_padded([[*p, *text[:-1]] for p, text in zip(prompts, texts, strict=True)], model.device)
    with batch(where, turns=[(len(p),) for p in prompts]):  # to hooks, the continuation is generated
        logits, _ = forward(model, ids, mask, keep=max(1, *map(len, texts)))
    return [row[len(row) - len(text) :] for row, text in zip(logits, texts, strict=True)]


@torch.no_grad()
def _prefix(model: "PreTrainedModel", prompts: Sequence[Sequence[int]]) -> tuple[int, Any] | None:
    """How many tokens all prompts begin with, and their cache of one row; None where every row is better read whole."""
    if len(prompts) < 2 or watched(model):
        return None
    first, last = min(map(list, prompts)), max(map(list, prompts))  # what these two share, all between them share
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    shared = min(same, min(map(len, prompts)) - 1)  # the last token of a prompt is read for its logits
    if shared < _WORTH:
        return None
    ids, mask = left_padded([first[:shared]], model.device)
    _, cache = forward(model, ids, mask, keep=1, use_cache=True)
    return (shared, cache) if allows_gaps(model, cache) else None


def _continued(
    model: "PreTrainedModel",
    prefix: tuple[int, Any],
    prompts: list[Sequence[int]],
    branches: list[list[Sequence[int]]],
) -> list[list[Float[Tensor, "tokens vocabulary"]]]:
    """The logits of every continuation of every row: after the prefix the prompts, after these each continuation."""
    shared, cache = prefix
    ids, mask = left_padded([p[shared:] for p in prompts], model.device)
    mask = torch.cat([mask.new_ones(len(prompts), shared), mask], dim=1)
    cache = rows_of_cache(cache, [0] * len(prompts), model.device)
    last, cache = forward(model, ids, mask, keep=1, cache=cache, use_cache=True)
    found = []
    for texts in branches:
        logits = list(last)
        longer = sorted((j for j, text in enumerate(texts) if len(text) > 1), key=lambda j: -len(texts[j]))
        for start in range(0, len(longer), _ALIKE):
            at = longer[start : start + _ALIKE]
            ids, more = left_padded([texts[j][:-1] for j in at], model.device)
            own = rows_of_cache(cache, at, model.device)
            rest, _ = forward(model, ids, torch.cat([mask[at], more], 1), ids.shape[1], own, use_cache=True)
            for j, row in zip(at, rest, strict=True):
                logits[j] = torch.cat([last[j], row[len(row) - len(texts[j]) + 1 :]])
        found.append([row[: len(text)] for row, text in zip(logits, texts, strict=True)])
    return found


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
        found[i] = log_probs_of(logits, continuations[i]).cpu()
    return found


def log_probs_of(logits: Float[Tensor, "tokens vocabulary"], text: Sequence[int]) -> Float[Tensor, "tokens"]:
    """The log-probability of every token of a text, from the logits that predict it."""
    return logits.gather(-1, torch.tensor(text, device=logits.device)[:, None])[:, 0] - logits.logsumexp(-1)


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
    that do not begin it: exact for `within` = 1; beyond, one path stands for all that do not close, and
    every t is a reading of its own.

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
