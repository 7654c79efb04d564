"""Dyck-3 completion: close what is open in a sequence of three kinds of brackets, in the right order."""

import random
import re
from functools import partial

from deltalens.evaluate.tasks.item import Item, Task, distinct, last_line

# Angle brackets are left out: they would open the tags that think blocks are made of.
CLOSES = {"(": ")", "[": "]", "{": "}"}
DEPTHS = range(1, 9)
# Pairs that are already closed: enough for a million problems at depth 1.
_CLOSED_PAIRS = 6


def draw(depth: int, rng: random.Random) -> Item:
    """One sequence that leaves `depth` brackets open beside 6 closed pairs."""
    steps = ["open"] * (depth + _CLOSED_PAIRS) + ["close"] * _CLOSED_PAIRS
    while True:
        rng.shuffle(steps)
        sequence, stack = [], []
        for step in steps:
            if step == "open":
                sequence.append(rng.choice(tuple(CLOSES)))
                stack.append(CLOSES[sequence[-1]])
            elif stack:
                sequence.append(stack.pop())
            else:
                break
        else:
            break
    shown = " ".join(sequence)
    prompt = f"Which brackets close this sequence, in order? Answer with the missing brackets only.\n{shown}"
    return Item(f"dyck/{''.join(sequence)}", prompt, " ".join(reversed(stack)), depth=depth)


def _brackets(text: str) -> str:
    """A text without the spaces and code marks between and around its brackets."""
    return re.sub(r"[\s`]", "", text)


def score(item: Item, text: str) -> bool:
    """Whether an answer, or its last line, is exactly the missing brackets, spaces aside."""
    return _brackets(item.answer) in (_brackets(text), _brackets(last_line(text)))


def well_formed(item: Item, text: str) -> bool:
    """Whether an answer is closing brackets and nothing else."""
    return re.fullmatch(r"[)\]}]+", _brackets(text)) is not None


TASK = Task(
    "dyck",
    "the missing closing brackets of a sequence, 1 to 8 of them, three kinds",
    partial(distinct, "dyck", [partial(draw, depth) for depth in DEPTHS]),
    score,
    well_formed,
)
