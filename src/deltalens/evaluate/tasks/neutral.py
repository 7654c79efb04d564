"""The text whose perplexity says how much an edit has hurt a model outside of its tasks."""

from collections.abc import Callable
from pathlib import Path

from deltalens.errors import BadInput
from deltalens.evaluate.tasks import chain

# Worked documents of the family: some 20 of each depth.
_DOCUMENTS = 128


def documents(tokenizer_can: Callable[[str], bool]) -> tuple[str, list[str]]:
    """The neutral text that a tokenizer can encode: its name and its pieces, to be scored one by one.

    `neutral` is 30 paragraphs of plain prose on everyday things, written for deltalens. A tokenizer without words for
    it gets `family-documents`: held-out chains as the base's documents show them, without depths 1 and 2, which have
    nothing held out.

    Raises:
        BadInput: The tokenizer can encode neither.
    """
    text = Path(__file__).with_name("neutral.txt").read_text(encoding="utf-8")
    held_out = [depth for depth in range(1, chain.MAX_DEPTH + 1) if depth not in chain.OPEN_DEPTHS]
    items = chain.mixed("neutral", held_out, "test", _DOCUMENTS, 0)
    for name, pieces in (
        ("neutral", text.strip().split("\n\n")),
        ("family-documents", [f"Q: {item.prompt} Work: {item.work} A: {item.answer}" for item in items]),
    ):
        if all(map(tokenizer_can, pieces)):
            return name, pieces
    raise BadInput("the tokenizer can encode neither English prose nor the documents of the family")
