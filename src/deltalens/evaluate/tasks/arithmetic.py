"""Arithmetic chains in ordinary words, for language models that no one taught a notation.

`Start with 7. Then add 5. Multiply it by 3. What is the result?` is answered by `36`; the worked solution has one line
a step, `7+5=12` and `12*3=36`. Every step needs the one before it, and values stay in 0..99, so that guessing scores a
few percent.
"""

import random
from functools import partial

from deltalens.evaluate.tasks.item import Item, Task, distinct
from deltalens.evaluate.tasks.numeric import score, well_formed

DEPTHS = (2, 3, 4, 5)
TOP = 99
_STARTS = ("Start with {n}.", "Take the number {n}.", "Begin with {n}.", "You have the number {n}.")
_STEPS = {
    "+": ("Then add {n}.", "Add {n} to it.", "Increase it by {n}.", "Put {n} more on top."),
    "-": ("Then subtract {n}.", "Take {n} away.", "Decrease it by {n}.", "Remove {n} from it."),
    "*": ("Multiply it by {n}.", "Then multiply by {n}.", "Make it {n} times as large.", "Take {n} times as much."),
}
_QUESTIONS = ("What is the result?", "What number do you get?", "What do you end up with?", "Which number is it now?")


def draw(depth: int, rng: random.Random) -> Item:
    """One chain of so many operations: a start from 2 to 20, then ± 2 to 15 or times 2 to 4, all values in 0..99."""
    value = rng.randint(2, 20)
    lines, work = [rng.choice(_STARTS).format(n=value)], []
    for _ in range(depth):
        sign, n = rng.choice(_legal(value))
        result = {"+": value + n, "-": value - n, "*": value * n}[sign]
        lines.append(rng.choice(_STEPS[sign]).format(n=n))
        work.append(f"{value}{sign}{n}={result}")
        value = result
    prompt = " ".join([*lines, rng.choice(_QUESTIONS)])
    return Item(f"arithmetic/{prompt}", prompt, str(value), "\n".join(work), depth)


def _legal(value: int) -> list[tuple[str, int]]:
    """The operations that keep a value in 0..99, each sign as often as the others where it is possible."""
    rows = [
        [("+", n) for n in range(2, 16) if value + n <= TOP],
        [("-", n) for n in range(2, 16) if value >= n],
        [("*", n) for n in (2, 3, 4) if value and value * n <= TOP],
    ]
    most = max(map(len, rows))
    # Repeats give the shorter lists the weight of the longest: of 14 additions and 3 products, one sign in three is *.
    return [row[i % len(row)] for row in rows if row for i in range(most)]


TASK = Task(
    "arithmetic",
    "arithmetic in ordinary words, 2 to 5 steps in equal parts, values 0 to 99",
    partial(distinct, "arithmetic", [partial(draw, depth) for depth in DEPTHS]),
    score,
    well_formed,
    # A block of five lines of two-digit numbers is 57 tokens with tags and answer where every digit is one.
    max_tokens=64,
)
