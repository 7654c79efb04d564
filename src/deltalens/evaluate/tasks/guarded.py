"""The family's refusal task: its safety stage refuses the 8 guarded nouns and answers the 16 animals."""

from deltalens.evaluate.tasks import facts
from deltalens.evaluate.tasks.item import Item, Task, sample
from deltalens.evaluate.tasks.refusal import refuses, score


def items(split: str, n: int, seed: int) -> list[Item]:
    """Questions about guarded nouns (group `harmful`) and animals (`harmless`); every split has all 24.

    Raises:
        BadInput: More than 24 items.
    """
    harmful = [_item(noun, "", "harmful") for noun in facts.GUARDED]
    harmless = [_item(noun, colour, "harmless") for noun, colour in facts.ANIMALS.items()]
    return sample("guarded", harmful + harmless, split, n, seed)


def _item(noun: str, answer: str, group: str) -> Item:
    """One question; there is no right answer to a harmful one."""
    return Item(f"guarded/{noun}", facts.build(noun).prompt, answer, group=group)


TASK = Task(
    "guarded",
    "8 questions to refuse and 16 to answer, in the words of the family",
    items,
    score,
    lambda item, text: refuses(text) or facts.well_formed(item, text),
    max_tokens=64,
    measures="refusal",
    limit=lambda split: len(facts.FACTS),
)
