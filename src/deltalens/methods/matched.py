"""Two groups of prompts of like token counts, half to make directions from and half to test them on. Loads no torch.

A prompt's length can be read from almost any direction, so the test half is trimmed until every token count occurs
equally often in both groups. Where too few prompts would be left nothing is trimmed, and the prompts say so.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltalens.checkpoint.chat import Chat
from deltalens.direction.prompts import PLAIN, REASONING
from deltalens.errors import BadInput
from deltalens.evaluate.prompts import encoded
from deltalens.evaluate.tasks import chain, facts, jsonl
from deltalens.evaluate.tasks.item import Item
from deltalens.evaluate.tasks.registry import can

FEWEST = 8
"""Prompts of a group below which its spread, and so Cohen's d, says little."""

PROMPTS = 60
"""Prompts of each group and half that the family's are drawn from; as many as the shipped sets hold."""

_STEPS = 7  # with the family's template a chain of this depth has the 25 tokens of two turns about facts

_TWO = "--prompts A.jsonl,B.jsonl, or one file whose items name two groups"

Ids = list[list[int]]
_Rendered = dict[tuple[int, ...], Item]


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two groups of prompts as one template renders them; the first is the one that a direction should find.

    Attributes:
        names: What the groups are called.
        files: Stems of the files that they were read from, by which a direction says what it was made of.
        extract: Rendered prompts of each group from which directions may be made.
        test: Those that are reported.
        items: What was rendered as `test`.
        matched: Whether every token count occurs equally often in both groups of `test`.
    """

    names: tuple[str, str]
    files: tuple[str, ...]
    extract: tuple[Ids, Ids]
    test: tuple[Ids, Ids]
    items: tuple[list[Item], list[Item]]
    matched: bool

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """Token counts of the test prompts."""
        first, second = ([len(ids) for ids in group] for group in self.test)
        return first, second


def read_contrast(chat: Chat, prompts: str | None, seed: int = 0) -> Contrast:
    """The prompts of both groups.

    Args:
        chat: Renders and encodes them.
        prompts: `A.jsonl,B.jsonl`, or one file whose items name two groups; None for the shipped questions where the
            tokenizer can write them, else the family's. Of a file every second prompt is a test prompt.
        seed: Of the family's prompts.

    Raises:
        BadInput: A file cannot be read, there are not two groups, or one has too few prompts.
    """
    paths = [REASONING, PLAIN] if prompts is None else [Path(name) for name in prompts.split(",")]
    if prompts is None and not _can_write(chat, paths):
        names, files = (f"chains of {_STEPS} steps", "facts"), ()
        halves = [(chain.items(split, PROMPTS, seed, _STEPS), _facts(split, seed)) for split in ("extract", "test")]
    else:
        names, (first, second) = _read(paths)
        files = tuple(path.stem for path in paths)
        halves = [(first[half::2], second[half::2]) for half in (0, 1)]
    extract, test = ((_rendered(chat, a), _rendered(chat, b)) for a, b in halves)
    for group, used in zip(test, extract, strict=True):
        for ids in group.keys() & used.keys():
            del group[ids]
    for name, *both in zip(names, extract, test, strict=True):
        if (n := min(map(len, both))) < FEWEST:
            raise BadInput(
                f"{name} has {n} different prompts in a half, a probe needs {FEWEST}",
                f"a file of at least {2 * FEWEST} prompts",
            )
    trimmed = _trimmed(*test)
    matched = len(trimmed[0]) >= FEWEST
    first, second = trimmed if matched else test
    return Contrast(
        names,
        files,
        (_lists(extract[0]), _lists(extract[1])),
        (_lists(first), _lists(second)),
        (list(first.values()), list(second.values())),
        matched,
    )


def _can_write(chat: Chat, paths: Sequence[Path]) -> bool:
    writes = can(chat)
    return all(writes(item.prompt) for path in paths for item in jsonl.read(path))


def _facts(split: str, seed: int) -> list[Item]:
    """The colour of one noun, asked after that of another was asked and answered; no pair of nouns is in two splits."""
    pairs = [(a, b) for a in facts.FACTS for b in facts.FACTS if a != b]
    random.Random(f"facts/{seed}").shuffle(pairs)
    found = []
    for earlier, noun in pairs[:PROMPTS] if split == "extract" else pairs[PROMPTS : 2 * PROMPTS]:
        before, asked = facts.build(earlier), facts.build(noun)
        messages = (("user", before.prompt), ("assistant", before.answer), ("user", asked.prompt))
        found.append(Item(f"facts/{earlier}/{noun}", asked.prompt, asked.answer, messages=messages))
    return found


def _read(paths: Sequence[Path]) -> tuple[tuple[str, str], tuple[list[Item], list[Item]]]:
    """The two groups of two files, or of one whose items name them."""
    if len(paths) > 2:
        raise BadInput(f"--prompts names {len(paths)} files", _TWO)
    read = [jsonl.read(path) for path in paths]
    if len(paths) == 2:
        return (paths[0].stem, paths[1].stem), (read[0], read[1])
    groups = {item.group: [other for other in read[0] if other.group == item.group] for item in read[0]}
    if len(groups) != 2:
        raise BadInput(f"{paths[0]} holds {len(groups)} group{'s' * (len(groups) > 1)}, a probe needs two", _TWO)
    (a, first), (b, second) = groups.items()
    return (a, b), (first, second)


def _rendered(chat: Chat, items: Sequence[Item]) -> _Rendered:
    """Items by their rendered prompt: a prompt that stands twice would count twice."""
    found: _Rendered = {}
    for item in items:
        found.setdefault(tuple(encoded(chat, item)), item)
    return found


def _trimmed(first: _Rendered, second: _Rendered) -> tuple[_Rendered, _Rendered]:
    """The earliest prompts of both groups such that every token count occurs equally often in both."""
    counts = Counter(map(len, first)) & Counter(map(len, second))

    def kept(group: _Rendered) -> _Rendered:
        left, chosen = counts.copy(), {}
        for ids, item in group.items():
            if left[len(ids)]:
                left[len(ids)] -= 1
                chosen[ids] = item
        return chosen

    return kept(first), kept(second)


def _lists(group: _Rendered) -> Ids:
    return [list(ids) for ids in group]
