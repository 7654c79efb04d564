"""What a small step along a change of weights would do to thinking: ⟨g, C⟩, g the gradient of its mean log-odds.

Log-odds, because p itself has no slope left where a model always thinks or never does. It is a straight line through
one end of a pair; how far the truth lies from it is for whoever uses it to show.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deltalens.edit.swap import as_stored, named, view_of
from deltalens.evaluate.prompts import Prompts
from deltalens.model.forward import check_finite, forward, in_batches, left_padded
from deltalens.sweep.controls import Change

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Gradient = dict[str, nn.Parameter]
"""By canonical name, in the shape of the parameter."""

_WITHIN = 4  # free tokens within which a block opened by the template may be closed, as of p_skip
_SURE = -1e-12  # log p above which float64 has no 1 − p left; there the slope is 0


def log_odds(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], tag: Sequence[int], within: int = 1
) -> Float[Tensor, "prompts"]:
    """Log-odds, in nats, that the whole tag starts within the first free tokens; torch can differentiate them.

    With 1 they are those of `model.score.opening_probs`, else of `model.score.skip_probs`, along the same most likely
    tokens, which are held fixed.

    Args:
        model: A causal language model in evaluation mode.
        prompts: Token ids.
        tag: Token ids.
        within: How many of the first free positions count.

    Raises:
        BadInput: The model gives NaN.
    """
    asked = torch.tensor(tag, device=model.device)
    paths: list[list[int]] = [[] for _ in prompts]
    starts: list[Tensor] = []  # log-probabilities that it starts at each of the positions, and at none so far
    stays: Tensor = torch.zeros(len(prompts), dtype=torch.float64, device=model.device)
    for _ in range(within):
        texts = [[*prompt, *path, *tag[:-1]] for prompt, path in zip(prompts, paths, strict=True)]
        logits, _ = forward(model, *left_padded(texts, model.device), keep=len(tag))
        check_finite(logits)
        log_probs = logits.double().log_softmax(-1)
        begins = log_probs.gather(-1, asked[None, :, None].expand(len(prompts), -1, 1))[..., 0].sum(-1)
        starts.append(stays + begins)
        stays = stays + _log_rest(begins)
        likely = log_probs[:, 0].detach().index_fill(-1, asked[:1], -torch.inf).argmax(-1)
        for path, token in zip(paths, likely.tolist(), strict=True):
            path.append(token)
    return torch.stack(starts).logsumexp(0) - stays


def gradient(model: "PreTrainedModel", prompts: Prompts, metric: str, batch_size: int = 64) -> Gradient:
    """∂/∂W of the mean log-odds of `p_think` or `p_skip`, for every parameter; float32, as large as the model.

    Args:
        model: As the arm has it.
        prompts: The items.
        metric: `p_think` or `p_skip`.
        batch_size: Prompts at a time; only those of one length share a batch, since a softmax over padding alone has
            no gradient.
    """
    think = prompts.chat.think
    assert think is not None  # `sweep.pair.pairing` refuses a pair without
    skip = metric == "p_skip"
    tag, within = (think.close_ids, _WITHIN) if skip else (think.open_ids, 1)
    parameters = named(model)
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}

    def slope(rows: list[list[int]]) -> tuple[Tensor, ...]:
        odds = log_odds(model, rows, tag, within).sum()
        return torch.autograd.grad(odds, list(parameters.values()), materialize_grads=True)

    groups: dict[int, list[list[int]]] = {}
    for ids in prompts.ids["forced" if skip else "free"]:
        groups.setdefault(len(ids), []).append(ids)
    for length, group in groups.items():
        lengths = [length] * len(group)
        for _, found in in_batches(lambda at, group=group: slope([group[i] for i in at]), lengths, batch_size):
            for sum_, part in zip(total.values(), found, strict=True):
                sum_ += part
    return {name: nn.Parameter(sum_ / len(prompts.items), requires_grad=False) for name, sum_ in total.items()}


def along(slope: Gradient, changes: Iterable[Change]) -> float:
    """⟨g, C⟩ over tensors: what a change of weights adds to the mean log-odds, to first order, in nats."""
    return sum(float((view_of(slope, c.row).double().cpu() * as_stored(c.row, c.form.dense())).sum()) for c in changes)


def _log_rest(log_p: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
    """log(1 − p), accurate at both ends."""
    log_p = log_p.clamp(max=_SURE)
    return torch.where(log_p > -0.7, torch.log(-torch.expm1(log_p)), torch.log1p(-log_p.exp()))
