"""Multiple choice A to D: sums, differences, products and weekdays, the wrong options being usual slips."""

import random
import re
from collections.abc import Callable
from functools import partial

from deltalens.evaluate.tasks.item import Item, Task, distinct, last_line

LETTERS = "ABCD"
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# What an answer may put before its letter, and behind it the letter's own option.
_LEAD = r"\W*(?:(?:the )?(?:correct )?(?:answer|option)(?: is)?\W+)?"
_ANSWER = re.compile(rf"{_LEAD}([A-D])\b(?:[^\w\u2212-]+(-?\w+))?\W*", re.IGNORECASE)


def _sum(rng: random.Random) -> tuple[str, str, list[str]]:
    """A sum; a carry forgotten or too many, and off by one."""
    a, b = rng.randint(11, 9999), rng.randint(11, 9999)
    return f"What is {a} + {b}?", str(a + b), [str(a + b + slip) for slip in (-10, 10, -1, 1, 100)]


def _difference(rng: random.Random) -> tuple[str, str, list[str]]:
    """A difference; a borrow forgotten or too many, and off by one."""
    b, a = sorted(rng.sample(range(200, 9999), 2))
    return f"What is {a} - {b}?", str(a - b), [str(a - b + slip) for slip in (-10, 10, -1, 1, 100)]


def _product(rng: random.Random) -> tuple[str, str, list[str]]:
    """A product; one factor off by one, or the last digit wrong."""
    a, b = rng.randint(3, 99), rng.randint(12, 999)
    return f"What is {a} * {b}?", str(a * b), [str(a * b + slip) for slip in (-b, b, -a, a, -10, 10)]


def _weekday(rng: random.Random) -> tuple[str, str, list[str]]:
    """A weekday some days before or after another; neighbours and the other direction are wrong."""
    day, shift, sign = rng.randrange(7), rng.randint(2, 9999), rng.choice((-1, 1))
    word = "after" if sign > 0 else "before"
    right = DAYS[(day + sign * shift) % 7]
    return f"Which day is {shift} days {word} {DAYS[day]}?", right, [other for other in DAYS if other != right]


def draw(kind: Callable[[random.Random], tuple[str, str, list[str]]], group: str, rng: random.Random) -> Item:
    """One question of a kind, with four options."""
    question, right, slips = kind(rng)
    # Options follow from the question, so that one question never stands in two splits with other options.
    rng = random.Random(question)
    options = [right, *rng.sample(sorted(set(slips) - {right}), len(LETTERS) - 1)]
    rng.shuffle(options)
    shown = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
    prompt = f"{question}\n{shown}\nAnswer with the letter only."
    return Item(f"choice/{question}", prompt, LETTERS[options.index(right)], group=group)


def _letter(item: Item, text: str) -> str | None:
    """The letter that a text gives, alone, announced, or with the option that the prompt shows behind it."""
    found = _ANSWER.fullmatch(text)
    if found is None:
        return None
    letter, option = found[1].upper(), found[2]
    return letter if option is None or f"{letter}. {option.capitalize()}" in item.prompt.split("\n") else None


def score(item: Item, text: str) -> bool:
    """Whether an answer, or its last line, gives the right letter."""
    # A list of options said over is no answer, though its last line names one.
    said = text.replace("\n".join(item.prompt.split("\n")[1:-1]), "")
    return (_letter(item, said) or _letter(item, last_line(said))) == item.answer


def well_formed(item: Item, text: str) -> bool:
    """Whether an answer is one letter and no more than its announcement."""
    found = _ANSWER.fullmatch(text)
    return found is not None and found[2] is None


TASK = Task(
    "choice",
    "four options, sums, differences, products and weekdays; guessing scores one quarter",
    partial(
        distinct,
        "choice",
        [partial(draw, kind, kind.__name__.lstrip("_")) for kind in (_sum, _difference, _product, _weekday)],
    ),
    score,
    well_formed,
)
