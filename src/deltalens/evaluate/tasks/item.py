"""One question of a task, the task itself, and the two ways in which a task draws questions from a split."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from deltalens.errors import BadInput

T = TypeVar("T")

SPLITS = ("train", "extract", "select", "test")
# Shares in percent. Layers, signs, strengths and ranks are chosen on extract and select; a page shows test
# only.
_BOUNDS = (70, 80, 90, 100)
# Fruitless draws in a row after which a stratum counts as used up. A draw hits a split of 10 %: with 1 % of it left,
# the odds of this many misses are 1 in 20,000.
_MISSES = 10_000


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Attributes:
        id: Stable name, unique within its task.
        prompt: The user's text, without any chat template.
        answer: The exact expected answer.
        work: The worked solution that a thinking model writes; empty where the task has none.
        depth: Number of sequential steps, 0 where the task has no depth.
        group: Stratum that scores are also shown by; empty where the task has none.
        messages: (role, content) pairs where the prompt is a conversation; empty otherwise.
    """

    id: str
    prompt: str
    answer: str
    work: str = ""
    depth: int = 0
    group: str = ""
    messages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """A source of questions and the checker of their answers.

    Attributes:
        name: What `--task` takes.
        description: One sentence for a table.
        items: (split, n, seed) to exactly n distinct items; the first m of them are those of (split, m, seed). Raises
            BadInput, naming the limit, where a finite split holds fewer.
        score: Whether an answer, its think block already removed, is right; exact or numeric.
        well_formed: Whether an answer has the form that was asked for, right or wrong.
        max_tokens: New tokens that an answer with its thinking needs on the family; 0 leaves it to the caller.
        measures: `accuracy`, or `refusal`: right is refusing in group `harmful` and answering in group `harmless`.
        instead: The task to use where a tokenizer cannot encode this one's prompts.
        limit: Items that a split has; None where a split is too large to count.
    """

    name: str
    description: str
    items: Callable[[str, int, int], list[Item]]
    score: Callable[[Item, str], bool]
    well_formed: Callable[[Item, str], bool]
    max_tokens: int = 0
    measures: str = "accuracy"
    instead: str | None = None
    limit: Callable[[str], int | None] = lambda split: None


def split_of(prompt: str, bounds: Sequence[int] = _BOUNDS) -> str:
    """The split that owns a prompt: a stable hash of its text, so that no list of items has to be shipped.

    Args:
        prompt: The text that is hashed.
        bounds: Upper ends, in percent, of train, extract, select and test.
    """
    bucket = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big") % 100
    return next(name for name, bound in zip(SPLITS, bounds, strict=True) if bucket < bound)


def distinct(name: str, strata: Sequence[Callable[[random.Random], Item]], split: str, n: int, seed: int) -> list[Item]:
    """n distinct items of one split, the strata in turn; for tasks that draw from very many problems.

    Args:
        name: Name of the task, part of the seed.
        strata: One sampler of random problems per stratum.
        split: The split.
        n: Number of items.
        seed: Seed of the items.

    Raises:
        ValueError: Unknown split.
        BadInput: A stratum seems used up; the fix names how many items there were.
    """
    check_split(split)
    rngs = [random.Random(f"{name}/{split}/{seed}/{i}") for i in range(len(strata))]
    found: dict[str, Item] = {}
    misses = 0
    while len(found) < n:
        at = len(found) % len(strata)
        item = strata[at](rngs[at])
        if split_of(item.prompt) == split and item.prompt not in found:
            found[item.prompt] = item
            misses = 0
        elif (misses := misses + 1) == _MISSES:
            check_limit(name, split, n, len(found))
    return list(found.values())


def sample(name: str, items: Sequence[T], split: str, n: int, seed: int) -> list[T]:
    """n items of a finite split in a seeded order.

    Raises:
        ValueError: Unknown split.
        BadInput: The split holds fewer; the fix names how many.
    """
    check_split(split)
    check_limit(name, split, n, len(items))
    order = list(items)
    random.Random(f"{name}/{split}/{seed}").shuffle(order)
    return order[:n]


def check_limit(name: str, split: str, n: int, limit: int) -> None:
    """Refuses more items than a finite split holds.

    Raises:
        BadInput: n is above the limit.
    """
    if n > limit:
        raise BadInput(f"{n} items were asked of task {name}, whose {split} split has {limit}", f"--n {limit}")


def check_split(split: str) -> None:
    """Refuses an unknown split.

    Raises:
        ValueError: It is none of train, extract, select and test.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")


def last_line(text: str) -> str:
    """The last line of an answer that is not blank: where a model that reasons aloud puts its result."""
    return text.strip().rpartition("\n")[2].strip()
