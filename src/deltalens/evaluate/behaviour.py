"""What a model does with the items of a task: rows of completions, and probabilities that need none.

Prompts are rendered once and the same ids go to every arm (docs/behaviour.md §1). An arm is whatever the caller has
done to the model: these functions see a model that runs.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from deltalens.evaluate.prompts import Prompts
from deltalens.evaluate.tasks.item import Item
from deltalens.evaluate.thinking import read, think_tokens
from deltalens.model.generate import Decoding, generate_ids
from deltalens.model.score import opening_probs, skip_probs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GRAM, _REPEATS = 8, 5
_SKIP_WITHIN = 4


def completions(
    model: "PreTrainedModel",
    prompts: Prompts,
    mode: str,
    decoding: Decoding,
    seeds: Sequence[int],
    ends: Collection[int],
    batch_size: int = 64,
) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Generates on every item, once per seed (greedy: once), and reads what came out.

    Args:
        model: As the arm has it.
        prompts: The items.
        mode: `free`, `forced` or `closed`.
        decoding: Greedy or sampled.
        seeds: One sample per item and seed; a row's own seed is made of it and the item's id, so that neither
            batch nor order matter.
        ends: Ids that end a completion.
        batch_size: Rows decoded together.

    Returns:
        Rows with the outcome columns of `store.results.RESULTS`, item by item within each sample, and the generated
        ids in the same order.
    """
    rows: list[dict[str, Any]] = []
    generated: list[list[int]] = []
    for sample, seed in enumerate(seeds if decoding.temperature else seeds[:1]):
        own = [row_seed(seed, item.id) for item in prompts.items]
        found = generate_ids(model, prompts.ids[mode], decoding, ends=ends, seeds=own, batch_size=batch_size)
        for item, new in zip(prompts.items, found, strict=True):
            outcome = outcome_of(prompts, item, mode, new, ends)
            rows.append({"item": item.id, "group": item.group, "sample": sample, "seed": seed, "mode": mode, **outcome})
        generated += found
    return rows, generated


def outcome_of(prompts: Prompts, item: Item, mode: str, new: list[int], ends: Collection[int]) -> dict[str, Any]:
    """The outcome columns of one completion; a truncated one counts as wrong."""
    chat, task = prompts.chat, prompts.task
    ended = bool(new) and new[-1] in ends
    body = new[:-1] if ended else new
    text = chat.decode(body)
    if chat.template is None:  # no turn ends here: a completion-only model goes on to ask itself the next question
        head, asked, _ = text.partition("\nQuestion:")
        text, ended = head, ended or bool(asked)
    opened = mode == "forced"
    reading = read(text, chat.think, opened)
    return {
        "text": text,
        "tokens": len(new),
        "truncated": not ended,
        "opened": reading.opened,
        "closed": reading.closed,
        "thought": reading.thought,
        "think_tokens": think_tokens(body, chat, opened) if chat.think else 0,
        "correct": ended and task.score(item, reading.answer),
        "format_ok": ended and task.well_formed(item, reading.answer),
        "loop": loops(new),
    }


def loops(ids: Sequence[int]) -> bool:
    """Whether some run of 8 tokens stands at least 5 times in a completion."""
    grams = Counter(tuple(ids[i : i + _GRAM]) for i in range(len(ids) - _GRAM + 1))
    return bool(grams) and max(grams.values()) >= _REPEATS


def row_seed(seed: int, item: str) -> int:
    """The sampling seed of one item, 63 bits, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{item}".encode()).digest()[:8], "big") >> 1


def p_think(model: "PreTrainedModel", prompts: Prompts, batch_size: int = 64) -> list[float | None]:
    """Per item, the probability that the completion opens a think block at once (the whole tag)."""
    think = prompts.chat.think
    if think is None:
        return [None] * len(prompts.items)
    return opening_probs(model, prompts.ids["free"], think.open_ids, batch_size).tolist()


def p_skip(model: "PreTrainedModel", prompts: Prompts, batch_size: int = 64) -> list[float | None]:
    """Per item, the probability that a block opened by the template is closed within the first four free tokens."""
    think = prompts.chat.think
    if think is None or not think.opened_by_template:
        return [None] * len(prompts.items)
    return skip_probs(model, prompts.ids["forced"], think.close_ids, _SKIP_WITHIN, batch_size).tolist()
