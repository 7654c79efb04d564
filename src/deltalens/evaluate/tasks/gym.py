"""Generators of reasoning-gym as tasks, `gym:NAME`, where that package is installed (`deltalens[tasks]`).

An item's id holds the generator's own seed and index, so an answer can be scored without the list that it came from.
"""

import difflib
import hashlib
import importlib
from functools import lru_cache, partial
from typing import Any

from deltalens.errors import BadInput, printable
from deltalens.evaluate.tasks.item import Item, Task, check_limit, check_split, split_of

# One size for all, since some generators plan ahead by it: the largest that every one of them takes.
_SIZE = 20_000
# Percent ends of train, extract, select and test: nothing trains on these, and entries can be slow to make.
_BOUNDS = (0, 25, 50, 100)


def load(name: str) -> Task:
    """The task of a generator of reasoning-gym.

    Raises:
        BadInput: reasoning-gym is not installed, or has no such generator.
    """
    try:
        known = importlib.import_module("reasoning_gym.factory").DATASETS
    except ImportError as error:
        raise BadInput(f"gym:{printable(name)} needs reasoning-gym", "pip install 'deltalens[tasks]'") from error
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise BadInput(f"reasoning-gym has no generator {printable(name)}", f"did you mean gym:{near}?")
    return Task(
        f"gym:{name}",
        f"reasoning-gym's {name}",
        partial(_items, name),
        partial(_score, name),
        lambda item, text: bool(text.strip()),
    )


def _items(name: str, split: str, n: int, seed: int) -> list[Item]:
    """Distinct questions of one split, in the generator's order."""
    check_split(split)
    # Entry i depends on seed + i alone, so neighbouring seeds would share all but one entry.
    digest = hashlib.blake2b(f"{name}/{split}/{seed}".encode(), digest_size=4).digest()
    start = int.from_bytes(digest, "big") // 2
    entries = _dataset(name, start)
    found: dict[str, Item] = {}
    for at in range(_SIZE):
        if len(found) == n:
            break
        question, answer = entries[at]["question"], entries[at]["answer"]
        if question not in found and split_of(question, _BOUNDS) == split:
            found[question] = Item(f"gym/{name}/{start}/{at}", question, str(answer or ""))
    check_limit(f"gym:{name}", split, n, len(found))
    return list(found.values())


def _score(name: str, item: Item, text: str) -> bool:
    """Whether the generator's own checker gives an answer its full mark."""
    start, at = map(int, item.id.split("/")[-2:])
    entries = _dataset(name, start)
    return entries.score_answer(answer=text.strip(), entry=entries[at]) >= 1


@lru_cache(maxsize=64)
def _dataset(name: str, seed: int) -> Any:
    """A generator; an entry is made when it is asked for."""
    return importlib.import_module("reasoning_gym").create_dataset(name, seed=seed, size=_SIZE)
