"""What a completion thought and what it answered, by the think format of its model (docs/behaviour.md §1)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deltalens.checkpoint.chat import Chat, ThinkFormat

# An empty or token block is not thinking; the shortest worked solution of the family (depth 1) has 10 characters.
_THOUGHT_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class Reading:
    """One completion, read.

    Args:
        opened: Whether a think block begins, in the completion or already in the prompt.
        closed: Whether a block began and none is left open: opened and not closed is truncated inside.
        thought: Whether a closed block holds at least 8 non-space characters.
        content: The inside of its blocks, line after line.
        answer: The stripped text behind the last closing tag: empty while a block is open, all of it without tags.
    """

    opened: bool
    closed: bool
    thought: bool
    content: str
    answer: str


def read(text: str, think: ThinkFormat | None, opened: bool = False) -> Reading:
    """Read one completion.

    An opening tag inside a block is part of its content (a model that is given the tag often repeats it), and a
    closing tag outside one begins the answer but closes nothing.

    Args:
        text: The completion, its ending token removed.
        think: The model's think format; None: there are no tags to look for.
        opened: Whether the prompt itself ends with the opening tag.
    """
    if think is None:
        return Reading(False, False, False, "", text.strip())
    blocks, inside = _blocks(text, think, opened)
    contents = [text[start:end] for start, end in blocks]
    whole = contents[:-1] if inside else contents
    return Reading(
        opened=bool(blocks),
        closed=bool(blocks) and not inside,
        thought=any(sum(not c.isspace() for c in content) >= _THOUGHT_CHARACTERS for content in whole),
        content="\n".join(contents),
        answer="" if inside else text.rpartition(think.close)[2].strip(),
    )


def think_tokens(ids: Sequence[int], chat: Chat, opened: bool = False) -> int:
    """The number of tokens strictly inside the think blocks of a completion, to its end while one is open.

    Counted in the decoded text, not by the ids of the tags: behind a tag a tokenizer may merge its last character
    with what follows (`>` and a line break are one token of many). Such a straddling token is not inside.

    Args:
        ids: The completion's tokens, its ending token removed.
        chat: The format and tokenizer it was written with.
        opened: Whether the prompt itself ends with the opening tag.
    """
    if chat.think is None:
        return 0
    blocks, _ = _blocks(chat.decode(ids), chat.think, opened)
    return sum(max(0, _first(ids, chat, end + 1) - 1 - _first(ids, chat, start)) for start, end in blocks)


def _blocks(text: str, think: ThinkFormat, opened: bool) -> tuple[list[tuple[int, int]], bool]:
    """Start and end of the inside of every block in characters, and whether the last one is still open."""
    blocks: list[tuple[int, int]] = []
    start = 0 if opened else None
    for tag in re.finditer(f"{re.escape(think.open)}|{re.escape(think.close)}", text):
        if tag[0] == think.open:
            start = tag.end() if start is None else start
        elif start is not None:
            blocks.append((start, tag.start()))
            start = None
    if start is None:
        return blocks, False
    return [*blocks, (start, len(text))], True


def _first(ids: Sequence[int], chat: Chat, length: int) -> int:
    """The least number of leading tokens that decode to at least `length` characters; one more than all if none do."""
    low, high = 0, len(ids) + 1
    while low < high:
        middle = (low + high) // 2
        if middle > len(ids) or len(chat.decode(ids[:middle])) >= length:
            high = middle
        else:
            low = middle + 1
    return low
