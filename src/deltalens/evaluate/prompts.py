"""The items of a task as one tokenizer and template render them: made once, given to every arm. Loads no torch."""

from dataclasses import dataclass

from deltalens.checkpoint.chat import MODES, Chat
from deltalens.evaluate.tasks.item import Item, Task


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
    """n items of a split, rendered in every mode that the format has."""
    items = tuple(task.items(split, n, seed))
    modes = MODES if chat.think is not None else MODES[:1]
    ids = {mode: [encoded(chat, item, mode) for item in items] for mode in modes}
    return Prompts(task, split, items, chat, ids)


def encoded(chat: Chat, item: Item, mode: str = "free") -> list[int]:
    """One item as token ids, up to the first free position."""
    return chat.encode(chat.render(_asked(item), mode))


def _asked(item: Item) -> str | list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in item.messages] if item.messages else item.prompt
