"""A prompt file as a task: one JSON object a line, `{id, prompt | messages, answer?, group?, depth?}`.

The whole file is the test split: it has no others, so nothing can be chosen on the items that are reported. An answer
that is a number is compared as one. Any other must be the same text, case, spaces and a final full stop aside; where it
is written in LaTeX and math-verify is installed, the same mathematical object will do.
"""

import importlib
import json
import threading
from pathlib import Path
from typing import Any

from deltalens.errors import BadInput, printable
from deltalens.evaluate.tasks.item import Item, Task, last_line, sample
from deltalens.evaluate.tasks.numeric import number, same_number


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
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text") from error
    found: dict[str, tuple[int, Item]] = {}
    # Not splitlines: a JSON string may hold U+2028, which that would split at.
    for number_of_line, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = _item(json.loads(line))
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}, line {number_of_line}: not JSON ({error.msg}, column {error.colno})") from error
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}, line {number_of_line}: {error}") from error
        if item.id in found:
            first = found[item.id][0]
            raise BadInput(f"{path}, line {number_of_line}: id {printable(item.id)} is already on line {first}")
        found[item.id] = (number_of_line, item)
    if not found:
        raise BadInput(
            f"{path} holds no items", 'one JSON object a line: {"id": "1", "prompt": "2 + 2 = ?", "answer": "4"}'
        )
    return [item for _, item in found.values()]


def same_answer(expected: str, text: str) -> bool:
    """Whether an answer, or its last line, is the expected number, text or mathematical object."""
    if number(expected) is not None:
        return same_number(expected, text)
    if _plain(expected) in (_plain(text), _plain(last_line(text))):
        return True
    return any(mark in expected for mark in "\\^$") and _same_object(expected, text)


def _item(line: Any) -> Item:
    """One parsed line as an item; ValueError says what is wrong with it."""
    if not isinstance(line, dict):
        raise ValueError("not a JSON object")
    if ("prompt" in line) == ("messages" in line):
        raise ValueError("an item has either a prompt or messages")
    if not isinstance(line.get("depth", 0), int):
        raise ValueError("depth is not a whole number")
    messages: tuple[tuple[str, str], ...] = ()
    if "messages" in line:
        if not isinstance(line["messages"], list) or not all(isinstance(m, dict) for m in line["messages"]):
            raise ValueError("messages is not a list of objects with role and content")
        messages = tuple((_text(m, "role"), _text(m, "content")) for m in line["messages"])
        if not messages or messages[-1][0] != "user":
            raise ValueError("the last message is not the user's")
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
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is missing, blank or no text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{key} holds half a surrogate pair")
    return value


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
