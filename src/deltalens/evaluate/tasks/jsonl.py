"""A prompt file as a task: one JSON object a line, `{id, prompt | messages, answer?, group?, depth?}`.

The whole file is the test split: it has no others, so nothing can be chosen on the items that are reported. An answer
that is a number is compared as one, and a unit that it has may be left out but not changed. Any other must be the same
text, case, spaces and a final full stop aside; where it is written in LaTeX and math-verify is installed, the same
mathematical object will do.
"""

import importlib
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from deltalens.errors import BadInput, printable
from deltalens.evaluate.tasks.item import Item, Task, last_line, sample
from deltalens.evaluate.tasks.numeric import number, same_number

_FORMAT = 'one JSON object a line: {"id": "1", "prompt": "2 + 2 = ?", "answer": "4"}'
_MESSAGES = 'write "messages": [{"role": "user", "content": "2 + 2 = ?"}], the user\'s last'


def load(path: Path) -> Task:
    """The task of a prompt file.

    Raises:
        BadInput: The file cannot be read, or an item has no answer to score by.
    """
    found = read(path)
    unanswered = next((item for item in found if not item.answer), None)
    if unanswered:
        raise BadInput(
            f"{path}: item {printable(unanswered.id)} has no answer, so it cannot be scored",
            "give every line an answer",
        )

    return Task(
        f"jsonl:{path}",
        f"{len(found)} items of a file",
        lambda split, n, seed: sample(f"jsonl:{path}", found if split == "test" else [], split, n, seed),
        lambda item, text: same_answer(item.answer, text),
        lambda item, text: bool(text.strip()),
        limit=lambda split: len(found) if split == "test" else 0,
    )


def read(path: Path) -> list[Item]:
    """The items of a prompt file, in its order.

    Raises:
        BadInput: No such file, not UTF-8, no items, or a malformed line, which is named by its number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}", f"name a file of {_FORMAT}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text", "save it as UTF-8") from error
    found: dict[str, tuple[int, Item]] = {}
    # Not splitlines: a JSON string may hold U+2028, which that would split at.
    for number_of_line, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number_of_line}"
        try:
            # Numbers stay as they are written: 1e999 is no infinity, .10 not .1.
            item = _item(json.loads(line, parse_float=str, parse_constant=_constant, object_pairs_hook=_object))
        except BadInput as error:
            raise BadInput(f"{place}: {error.error}", error.fix) from None
        except json.JSONDecodeError as error:
            raise BadInput(f"{place}: not JSON ({error.msg}, column {error.colno})", _FORMAT) from error
        except (ValueError, RecursionError) as error:  # too many digits, too many brackets
            raise BadInput(f"{place}: {error}", _FORMAT) from error
        if item.id in found:
            first = found[item.id][0]
            raise BadInput(f"{place}: id {printable(item.id)} is already on line {first}", "give every line its own id")
        found[item.id] = (number_of_line, item)
    if not found:
        raise BadInput(f"{path} holds no items", _FORMAT)
    return [item for _, item in found.values()]


def same_answer(expected: str, text: str) -> bool:
    """Whether an answer, or its last line, is the expected number, text or mathematical object."""
    if number(expected) is not None:
        return same_number(expected, text)
    if _plain(expected) in (_plain(text), _plain(last_line(text))):
        return True
    return any(mark in expected for mark in "\\^$") and _same_object(expected, text)


def _item(line: Any) -> Item:
    """One parsed line as an item; BadInput says what is wrong with it."""
    if not isinstance(line, dict):
        raise BadInput("not a JSON object", _FORMAT)
    if ("prompt" in line) == ("messages" in line):
        raise BadInput("an item has either a prompt or messages", "give it one of the two")
    if type(line.get("depth", 0)) is not int:
        raise BadInput("depth is not a whole number", 'write "depth": 3, or leave it out')
    messages: tuple[tuple[str, str], ...] = ()
    if "messages" in line:
        if not isinstance(line["messages"], list) or not all(isinstance(m, dict) for m in line["messages"]):
            raise BadInput("messages is not a list of objects with role and content", _MESSAGES)
        messages = tuple((_text(m, "role"), _text(m, "content")) for m in line["messages"])
        if not messages or messages[-1][0] != "user":
            raise BadInput("the last message is not the user's", _MESSAGES)
    return Item(
        _text(line, "id"),
        messages[-1][1] if messages else _text(line, "prompt"),
        _text(line, "answer") if "answer" in line else "",
        depth=line.get("depth", 0),
        group=_text(line, "group") if "group" in line else "",
        messages=messages,
    )


def _text(line: dict[str, Any], key: str) -> str:
    """A field that is text that is not blank, or a number written as such."""
    value = line.get(key)
    if type(value) is int:
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{key} is missing, blank or no text", f'write "{key}": "some text", or a number')
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadInput(f"{key} holds half a surrogate pair", "write the whole character, or leave it out")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of whose two values for one key none is silently lost."""
    counts = Counter(key for key, _ in pairs)
    if (twice := next((key for key in counts if counts[key] > 1), None)) is not None:
        raise BadInput(f"key {printable(twice)} stands twice in one object", "keep one of the two")
    return dict(pairs)


def _constant(word: str) -> str:
    """Refuses NaN and the infinities, which Python would read though JSON has no such numbers."""
    raise BadInput(f"{word} is no JSON number", f'write it as text, "{word}", or leave it out')


def _plain(text: str) -> str:
    """A text without differences of case, spacing and a final full stop."""
    return " ".join(text.split()).casefold().removesuffix(".")


def _same_object(expected: str, text: str) -> bool:
    """Whether math-verify, where installed, finds two LaTeX texts equal."""
    try:
        math_verify = importlib.import_module("math_verify")
    except ImportError:
        return False
    # Its timeouts are alarms, which only the main thread may set.
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    gold, answer = (
        math_verify.parse(t if "$" in t or "\\boxed" in t else f"${t}$", parsing_timeout=seconds)
        for t in (expected, text)
    )
    return math_verify.verify(gold, answer, timeout_seconds=seconds)
