"""Directions from spans of thinking: long less short thinking, or a behaviour less the rest of the same block."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deltalens.direction.activations import Ids, Place, estimates, read
from deltalens.direction.direction import Direction
from deltalens.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from deltalens.checkpoint.chat import Chat

BEFORE, AFTER = 1, 10
"""Tokens of a behaviour's window before its first token and from it on (after 2506.18167)."""


def from_spans(
    model: "PreTrainedModel",
    chat: "Chat",
    prompts: Ids,
    completions: Ids,
    place: Place,
    source: Mapping[str, Any],
    seed: int,
    *,
    pattern: str | None = None,
) -> list[Direction]:
    """Tokens inside think blocks: long less short thinking, or a behaviour less the rest of the same block.

    Without a pattern the third of the prompts that was thought about longest stands against the shortest third (after
    ThinkEdit, 2503.22048, whose thresholds of 1000 and 100 tokens fit one model). With one, the tokens around every
    match stand against the other thinking tokens of the same prompt; prompts without a match are left out.

    Args:
        model: The model.
        chat: Its think format and tokenizer.
        prompts: Rendered prompts as token ids, their think blocks opened or not.
        completions: What the model wrote after each.
        place: Where to read; its selector does not apply.
        source: What the directions record of their making.
        seed: Of the probe's split.
        pattern: A regular expression that finds the behaviour in the text of the block.

    Raises:
        BadInput: The model has no think format, the pattern is none, or too few prompts are left.
    """
    if chat.think is None:
        raise BadInput("this model has no think format, so there are no spans of thinking", "--contrast prompts")
    texts = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    blocks = [_block(text, chat.think.open_ids, chat.think.close_ids) for text in texts]
    if pattern is None:
        thought = [i for i, block in enumerate(blocks) if len(block)]
        thought.sort(key=lambda i: len(blocks[i]))
        third = len(thought) // 3
        if third < 2 or len(blocks[thought[third - 1]]) == len(blocks[thought[-third]]):
            raise BadInput(
                f"{len(thought)} of {len(texts)} prompts were thought about, too few or all as long",
                "more prompts of several difficulties",
            )
        kept = [*thought[-third:], *thought[:third]]
        marked = read(model, [texts[i] for i in kept], place, [blocks[i] for i in kept])
        long, short = marked.take(slice(0, third)), marked.take(slice(third, None))
        lengths = {"median_tokens": [float(np.median(part.counts)) for part in (long, short)]}
        return estimates(long, short, False, place.site, "long − short thinking", {**source, **lengths}, seed)
    compiled = _compiled(pattern)
    windows = [_windows(chat, text, block, compiled) for text, block in zip(texts, blocks, strict=True)]
    kept = [i for i, window in enumerate(windows) if 0 < len(window) < len(blocks[i])]
    if len(kept) < 2:
        raise BadInput(f"the pattern {pattern!r} splits {len(kept)} think blocks", "another pattern, or more prompts")
    texts = [texts[i] for i in kept]
    first = read(model, texts, place, [windows[i] for i in kept])
    second = read(model, texts, place, [sorted(set(blocks[i]) - set(windows[i])) for i in kept])
    return estimates(first, second, True, place.site, f"/{pattern}/ − other thinking", source, seed)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as problem:
        raise BadInput(f"{pattern!r} is no regular expression: {problem}", "--pattern 'wait|hmm'") from None


def _block(text: Sequence[int], opening: Sequence[int], closing: Sequence[int]) -> range:
    """The indices strictly inside the first think block of a text, to its end while the block is open."""
    opened = _find(text, opening, 0)
    if opened is None:
        return range(0)
    first = opened + len(opening)
    closed = _find(text, closing, first)
    return range(first, len(text) if closed is None else closed)


def _windows(chat: "Chat", text: Sequence[int], block: range, pattern: re.Pattern[str]) -> list[int]:
    """The indices of a think block that lie in the window of a match."""
    pieces = [chat.decode([text[i]]) for i in block]  # some tokenizers drop a leading space from a token alone
    begins = np.cumsum([0, *map(len, pieces)])
    marked: set[int] = set()
    for match in pattern.finditer("".join(pieces)):
        at = block.start + int(np.searchsorted(begins, match.start(), side="right")) - 1
        marked |= set(range(max(block.start, at - BEFORE), min(block.stop, at + AFTER)))
    return sorted(marked)


def _find(text: Sequence[int], span: Sequence[int], start: int) -> int | None:
    """Where a span of ids first occurs from `start` on."""
    n = len(span)
    return next((i for i in range(start, len(text) - n + 1) if tuple(text[i : i + n]) == tuple(span)), None)
