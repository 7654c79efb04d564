"""Groups of prompts: those that directions are made from, and two of like token counts to test them on. Loads no torch.

Of a file every second prompt is tested, the others make directions. A prompt's length can be read from almost any
direction, so a probe's test half is trimmed until every token count occurs equally often in both groups; where too few
prompts would be left nothing is trimmed, and the prompts say so.

On the family the two halves differ in kind. Directions are made from hard chains against easy ones: both are reasoning
as the family was taught it, and a hard chain is longer. That length is why a probe cannot be tested on them: it reads
chains of seven steps against facts of two turns, which have the same token count.
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
from deltalens.evaluate.tasks.registry import can, task

FEWEST = 8
"""Prompts of a group below which its spread, and so Cohen's d, says little."""

PROMPTS = 60
"""Prompts of each group and half that a task generates; as many as the shipped sets hold."""

_STEPS = 7  # with the family's template a chain of this depth has the 25 tokens of two turns about facts

_EXTRACT, _TEST = slice(0, None, 2), slice(1, None, 2)  # of the prompts of a file

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


def read_groups(
    chat: Chat, prompts: str | None, seed: int = 0, every_depth: bool = False
) -> tuple[list[Item], list[Item], tuple[str, ...], bool]:
    """The prompts that directions are made from: both groups, their names, and whether prompt i of both go together.

    Args:
        chat: Of the model that reads them.
        prompts: `A.jsonl[,B.jsonl]`, a group each; None for the shipped questions where the tokenizer can write them,
            else the family's chains.
        seed: Of the family's prompts.
        every_depth: Take chains of every depth, not only hard ones: thinking about them differs in length.

    Raises:
        BadInput: A file cannot be read, or there are more than two.
    """
    paths = _files(chat, prompts)
    if not paths:
        chains = [task("chain" if every_depth else "chain-hard", can(chat)), task("chain-easy", can(chat))]
        first, second = (found.items("extract", PROMPTS, seed) for found in chains)
        return first, second, tuple(found.name for found in chains), False
    groups = [jsonl.read(path)[_EXTRACT] for path in paths]
    first, second = groups[0], groups[1] if len(groups) == 2 else []
    topics = [[item.id.rpartition("/")[2] for item in group] for group in (first, second)]
    return first, second, tuple(path.stem for path in paths), topics[0] == topics[1]


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
    paths = _files(chat, prompts)
    files = tuple(path.stem for path in paths)
    if not paths:
        names = (f"chains of {_STEPS} steps", "facts")
        halves = [(chain.items(split, PROMPTS, seed, _STEPS), _facts(split, seed)) for split in ("extract", "test")]
    else:
        names, (first, second) = _read(paths)
        halves = [(first[half], second[half]) for half in (_EXTRACT, _TEST)]
    extract, test = ((_distinct(chat, a), _distinct(chat, b)) for a, b in halves)
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


def rendered(chat: Chat, items: Sequence[Item], mode: str = "free") -> Ids:
    """Prompts as token ids up to the first free position, rendered as an evaluation renders them."""
    return [encoded(chat, item, mode) for item in items]


def _files(chat: Chat, prompts: str | None) -> list[Path]:
    """The files that are named, else the shipped ones; none where the tokenizer cannot write these."""
    if prompts is None:
        writes = can(chat)
        shipped = [REASONING, PLAIN]
        return shipped if all(writes(item.prompt) for path in shipped for item in jsonl.read(path)) else []
    paths = [Path(name) for name in prompts.split(",")]
    if len(paths) > 2:
        raise BadInput(f"--prompts names {len(paths)} files", "--prompts A.jsonl,B.jsonl")
    return paths


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
    read = [jsonl.read(path) for path in paths]
    if len(paths) == 2:
        return (paths[0].stem, paths[1].stem), (read[0], read[1])
    groups = {item.group: [other for other in read[0] if other.group == item.group] for item in read[0]}
    if len(groups) != 2:
        raise BadInput(f"{paths[0]} holds {len(groups)} group{'s' * (len(groups) > 1)}, a probe needs two", _TWO)
    (a, first), (b, second) = groups.items()
    return (a, b), (first, second)


def _distinct(chat: Chat, items: Sequence[Item]) -> _Rendered:
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
