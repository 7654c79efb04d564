"""Tasks by name, and whether a tokenizer can write their prompts."""

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deltalens.errors import BadInput, printable
from deltalens.evaluate.tasks import (
    arithmetic,
    chain,
    choice,
    countdown,
    deduction,
    dyck,
    facts,
    guarded,
    gym,
    jsonl,
    modular,
    refusal,
)
from deltalens.evaluate.tasks.item import Task

if TYPE_CHECKING:
    from deltalens.checkpoint.chat import Chat

_TASKS = {
    task.name: task
    for task in (
        chain.TASK,
        chain.EASY,
        chain.HARD,
        facts.TASK,
        guarded.TASK,
        refusal.TASK,
        modular.TASK,
        deduction.TASK,
        dyck.TASK,
        countdown.TASK,
        choice.TASK,
        arithmetic.TASK,
    )
}
_NATURAL = ("modular", "deduction", "choice", "refusal")
_FAMILY = ("chain-easy", "chain-hard", "facts", "guarded")
# Prompts looked at before a task is called encodable, and words shown where it is not.
_PROBES = 8
_SHOWN = 5


def names() -> list[str]:
    """The tasks that need neither a file nor another package."""
    return list(_TASKS)


def task(name: str, tokenizer_can: Callable[[str], bool] | None) -> Task:
    """The task of a name, or the one that stands in for it where a tokenizer cannot write its prompts.

    Args:
        name: A name of `names()`, `jsonl:PATH` or `gym:NAME`.
        tokenizer_can: Whether a text can be encoded, as `can` gives it; None takes the task as it is.

    Raises:
        BadInput: No such task, or its prompts cannot be encoded.
    """
    found = _find(name)
    if tokenizer_can is None:
        return found
    missing = _missing(found, tokenizer_can)
    if not missing:
        return found
    if found.instead and not _missing(_TASKS[found.instead], tokenizer_can):
        return _TASKS[found.instead]
    words = ", ".join(repr(printable(word)) for word in missing[:_SHOWN])
    able = [other for other in names() if not _missing(_TASKS[other], tokenizer_can)]
    fix = f"--task {' '.join(able)}" if able else None
    raise BadInput(f"the tokenizer cannot encode the prompts of task {name}, such as {words}", fix)


def defaults(tokenizer_can: Callable[[str], bool]) -> tuple[str, ...]:
    """The tasks to ask where none is named: the natural ones, or the family's where its words are all there are."""
    return _NATURAL if not _missing(modular.TASK, tokenizer_can) else _FAMILY


def can(chat: "Chat") -> Callable[[str], bool]:
    """Whether a text survives encoding and decoding without the unknown token, normalised as the tokenizer does it."""
    unknown, normalizer = unknown_id(chat), chat.tokenizer.normalizer
    normal = normalizer.normalize_str if normalizer else str

    def tokenizer_can(text: str) -> bool:
        ids = chat.encode(text)
        return unknown not in ids and normal(chat.decode(ids)) == normal(text)

    return tokenizer_can


def unknown_id(chat: "Chat") -> int | None:
    """The id that a tokenizer writes for what it cannot encode; None where it has none.

    Asked of the tokenizer itself: `unk_token` of tokenizer_config.json is often an ordinary special token that is
    never written for anything unknown (GPT-2's is its end of text).
    """
    model = chat.tokenizer.model
    if type(model).__name__ == "Unigram":  # keeps an id, which it shows only when written out
        return json.loads(chat.tokenizer.to_str())["model"]["unk_id"]
    return None if model.unk_token is None else chat.tokenizer.token_to_id(model.unk_token)


def _find(name: str) -> Task:
    """The task of a name."""
    source, colon, rest = name.partition(":")
    if colon and source in ("jsonl", "gym"):
        return jsonl.load(Path(rest)) if source == "jsonl" else gym.load(rest)
    if name in _TASKS:
        return _TASKS[name]
    near = difflib.get_close_matches(name, _TASKS, n=1, cutoff=0)[0]
    raise BadInput(
        f"{printable(name)}: no such task",
        f"did you mean {near}? the tasks are {', '.join(names())}, jsonl:PATH and gym:NAME",
    )


def _missing(task: Task, tokenizer_can: Callable[[str], bool]) -> list[str]:
    """Words of the first prompts that cannot be encoded, or those prompts where only their whole cannot."""
    limit = task.limit("test")
    items = task.items("test", _PROBES if limit is None else min(_PROBES, limit), 0)
    texts = [text for item in items for text in (item.prompt, *(content for _, content in item.messages))]
    failed = [text for text in dict.fromkeys(texts) if not tokenizer_can(text)]
    words = dict.fromkeys(word for text in failed for word in text.split() if not tokenizer_can(word))
    return list(words) or failed
