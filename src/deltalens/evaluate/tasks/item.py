"""One question of a task and its exact answer."""

import hashlib
from dataclasses import dataclass

SPLITS = ("train", "extract", "select", "test")
# Shares in percent. Layers, signs, strengths and ranks are chosen on extract and select; a page shows test
# only.
_BOUNDS = (70, 80, 90, 100)
# An empty or token block is not thinking; the shortest worked solution here (depth 1) has 10 characters.
_THOUGHT_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Attributes:
        id: Stable name, unique within its task.
        prompt: The user's text, without any chat template.
        answer: The exact expected answer.
        work: The worked solution that a thinking model writes; empty where the task has none.
        depth: Number of sequential steps, 0 where the task has no depth.
    """

    id: str
    prompt: str
    answer: str
    work: str = ""
    depth: int = 0


def split_of(prompt: str) -> str:
    """The split that owns a prompt: a stable hash of its text, so that no list of items has to be shipped."""
    bucket = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big") % 100
    return next(name for name, bound in zip(SPLITS, _BOUNDS, strict=True) if bucket < bound)


def final_answer(text: str) -> str:
    """What a completion answers: the text after the last closed think block, empty while one is open."""
    head, closed, tail = text.rpartition("</think>")
    answer = tail if closed else head + tail
    return "" if "<think>" in answer else answer.strip()


def thought(text: str, opened: bool = False) -> bool:
    """Whether a completion thought: a closed think block with at least 8 non-space characters of content.

    Args:
        text: The completion.
        opened: Whether the prompt itself ended with the opening tag.
    """
    before, closed, _ = text.partition("</think>")
    _, tag, content = before.rpartition("<think>")
    return bool(closed) and (bool(tag) or opened) and sum(not c.isspace() for c in content) >= _THOUGHT_CHARACTERS
