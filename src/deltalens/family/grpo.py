"""Reinforcement from a checkable reward: group-relative policy optimisation, one update per batch.

Shao et al. 2024 (arXiv:2402.03300, §4.1.1 and 4.1.2). For each problem the policy π writes G completions o_1 … o_G. The
reward r_i is 1 if o_i ends its turn and its answer is exact, else 0. The advantage of every token of o_i is
A_i = (r_i − mean r)/(std r + ε) over the group, and a step ascends

    J = Σ_i Σ_t [ρ_it·A_i − β·k_it] / Σ_i |o_i|,   k = π_ref/π − log(π_ref/π) − 1,

with π_ref the parent and k the paper's estimator of KL(π‖π_ref) (eq. 4). Two departures. Every batch serves one update,
so ρ = π/π_old is 1 and only its gradient, that of log π, matters; clipping it would change nothing. And tokens are
averaged over the batch, not first within a completion, where a token of a short wrong answer would weigh twenty times
one of a long right answer (Yu et al. 2025, arXiv:2503.14476, §3.3).
"""

import copy
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from deltalens.evaluate.tasks import chain
from deltalens.evaluate.tasks.item import Item
from deltalens.evaluate.thinking import read
from deltalens.family.recipe import Reinforcement
from deltalens.family.tokenizer import END_OF_TEXT, IDS, IM_END, THINK, THINK_FORMAT, chat
from deltalens.model.generate import Decoding, generate_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DECODING = Decoding(max_new_tokens=chain.TASK.max_tokens, temperature=1.0)
_ENDS = (IDS[IM_END], IDS[END_OF_TEXT])


def optimise(
    model: "PreTrainedModel",
    tokenizer: Any,
    settings: Reinforcement,
    seed: int,
    progress: Callable[[str], None] = lambda line: None,
    keep: Callable[[int], None] = lambda step: None,
) -> tuple[int, int, float]:
    """Reinforces a model in place: steps, tokens trained on, mean reward of the last 20 steps.

    Args:
        model: The parent, in evaluation mode; it has no dropout.
        tokenizer: The family's.
        settings: The stage.
        seed: Seed of the problems and of the sampling.
        progress: Called with one line at a time.
        keep: Called after every step that is a checkpoint.
    """
    rng = random.Random(f"family/{settings.name}/{seed}")
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0)
    tokens, recent = 0, []
    for step in range(1, settings.steps + 1):
        rate = settings.lr * min(1.0, step / settings.warmup, (settings.steps + 1 - step) / settings.steps)
        optimizer.param_groups[0]["lr"] = rate
        items = [chain.draw(rng, rng.randint(1, chain.MAX_DEPTH)) for _ in range(settings.problems)]
        rows = [item for item in items for _ in range(settings.samples)]
        prompts = [tokenizer.backend_tokenizer.encode(chat(item.prompt), add_special_tokens=False).ids for item in rows]
        seeds = [rng.getrandbits(63) for _ in rows]
        completions = generate_ids(model, prompts, _DECODING, ends=_ENDS, seeds=seeds, batch_size=len(rows))
        rewards = torch.tensor([reward(i, c, tokenizer) for i, c in zip(rows, completions, strict=True)])
        advantage = advantages(rewards.view(settings.problems, settings.samples)).flatten()
        ids, written = collate(prompts, completions)
        with torch.no_grad():
            parent = token_log_probs(reference, ids)
        value = -objective(token_log_probs(model, ids), parent, written, advantage, settings.kl)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += int(written.sum()) + sum(map(len, prompts))
        recent = [*recent[-19:], float(rewards.mean())]
        if step in settings.checkpoints:
            keep(step)
        if step % 10 == 0:
            opened = sum(IDS[THINK] in completion for completion in completions) / len(rows)
            progress(
                f"{settings.name} seed {seed} step {step} of {settings.steps} "
                f"reward {recent[-1]:.2f} think {opened:.2f}"
            )
    return settings.steps, tokens, sum(recent) / len(recent)


def reward(item: Item, completion: Sequence[int], tokenizer: Any) -> float:
    """1 where a completion ends its turn and answers exactly, else 0."""
    if completion[-1] != IDS[IM_END]:
        return 0.0
    return float(chain.score(item, read(tokenizer.decode(completion[:-1]), THINK_FORMAT).answer))


def advantages(rewards: Float[Tensor, "groups samples"]) -> Float[Tensor, "groups samples"]:
    """Rewards less their group's mean, in units of its deviation; 0 in a group that agrees."""
    deviation = rewards.std(1, correction=0, keepdim=True)
    return (rewards - rewards.mean(1, keepdim=True)) / (deviation + 1e-4)


def objective(
    log_probs: Float[Tensor, "rows width"],
    reference: Float[Tensor, "rows width"],
    written: Bool[Tensor, "rows width"],
    advantage: Float[Tensor, "rows"],
    kl: float,
) -> Float[Tensor, ""]:
    """J of the module's docstring, to be maximised.

    Args:
        log_probs: log π of every token; the gradient flows through them.
        reference: log π_ref of every token.
        written: Which tokens the policy wrote: neither prompt nor padding.
        advantage: One per completion.
        kl: β.
    """
    ratio = (log_probs - log_probs.detach()).exp()
    gap = reference - log_probs
    per_token = ratio * advantage[:, None] - kl * (gap.exp() - gap - 1)
    return per_token[written].mean()


def token_log_probs(model: "PreTrainedModel", ids: Int[Tensor, "rows width"]) -> Float[Tensor, "rows rest"]:
    """log p of every token but the first, given those before it; causal attention needs no mask for right padding."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def collate(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "rows width"], Bool[Tensor, "rows rest"]]:
    """Right-padded ids, and which of them, the first column left out, the policy wrote."""
    width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    ids = torch.full((len(prompts), width), IDS[END_OF_TEXT])
    written = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor([*prompt, *completion])
        written[row, len(prompt) : end] = True
    return ids, written[:, 1:]
