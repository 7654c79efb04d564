"""The items of a task as one tokenizer and template render them: made once, given to every arm. Loads no torch."""

import re
from dataclasses import dataclass

from deltalens.checkpoint.chat import MODES, Chat
from deltalens.errors import BadInput, printable
from deltalens.evaluate.tasks.item import Item, Task
from deltalens.evaluate.tasks.registry import unknown_id

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Prompts:
    """The items of one split of a task as one tokenizer and template render them.

    Attributes:
        task: The task.
        split: Which split they are from.
        items: The items.
        chat: Template and tokenizer; the same for every arm.
        ids: The rendered prompts by mode; `forced` and `closed` only where the format has a think block.
    """

    task: Task
    split: str
    items: tuple[Item, ...]
    chat: Chat
    ids: dict[str, list[list[int]]]


def render(task: Task, chat: Chat, split: str, n: int, seed: int) -> Prompts:
    """n items of a split, rendered in every mode that the format has.

    Raises:
        BadInput: As `encoded`, or the template writes the same whatever it is told.
    """
    items = tuple(task.items(split, n, seed))
    if chat.render("0") == chat.render("1"):
        fix = "take the template from the model's publisher"
        raise BadInput("the chat template ignores the message: every prompt would be the same", fix)
    modes = MODES if chat.think is not None else MODES[:1]
    ids = {mode: [encoded(chat, item, mode) for item in items] for mode in modes}
    return Prompts(task, split, items, chat, ids)


def encoded(chat: Chat, item: Item, mode: str = "free") -> list[int]:
    """One item as token ids, up to the first free position.

    Raises:
        BadInput: There is no id, or the tokenizer has none for some word, be it of the item or of the template.
    """
    text = chat.render(_asked(item), mode)
    encoding = chat.tokenizer.encode(text, add_special_tokens=False)
    if not encoding.ids:
        raise BadInput(f"item {printable(item.id)} is an empty prompt", "give it text, and a template that writes it")
    unknown = unknown_id(chat)
    spans = [span for i, span in zip(encoding.ids, encoding.offsets, strict=True) if i == unknown]
    if spans:
        words = [m[0] for m in re.finditer(r"\w+|\S", text) if any(a < m.end() and m.start() < b for a, b in spans)]
        some = list(dict.fromkeys(words or [text[a:b] for a, b in spans]))[:_SHOWN]
        raise BadInput(
            f"item {printable(item.id)}: the tokenizer has no token for {', '.join(repr(printable(w)) for w in some)}",
            "prompts and a chat template in its own words",
        )
    return encoding.ids


def _asked(item: Item) -> str | list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in item.messages] if item.messages else item.prompt
