"""Deduction over invented kinds of things: true or false after a known number of rules (after PrOntoQA, 2210.01240).

The names mean nothing, so only the rules can decide. Distractors: a side branch of kinds that leads nowhere, and a rule
that gives the opposite of the asked property to a kind that the subject is not, so that looking the property up fails.
"""

import itertools
import random
import re
from functools import partial

from deltalens.evaluate.tasks.item import Item, Task, distinct, last_line

DEPTHS = (1, 2, 3, 4, 5)
KINDS = (
    *("blorp", "crandle", "dovim", "fexel", "glinty", "harnok", "jorvil", "kelpan", "lomber", "mirgle"),
    *("norbit", "plovet", "quassel", "rindle", "sorpet", "tarvin", "vemble", "wozzle", "yandrel", "zifter"),
    *("brastel", "chorbin", "drimsey", "flomet", "grastle", "hisker", "jambrel", "kortle", "lassen", "morvin"),
)
SUBJECTS = ("Ada", "Bruno", "Clara", "David", "Elsa", "Frank", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Leo")
PROPERTIES = ("bitter", "bright", "brown", "cold", "fast", "heavy", "loud", "old", "round", "shy", "soft", "wooden")


def draw(depth: int, truth: bool, rng: random.Random) -> Item:
    """One question that takes `depth` rules, its answer given."""
    kinds = rng.sample(KINDS, depth + 3)
    chain, (side, aside, other) = kinds[:depth], kinds[depth:]
    subject, asked, unrelated = rng.choice(SUBJECTS), *rng.sample(PROPERTIES, 2)
    has, asks = rng.random() < 0.5, rng.random() < 0.5
    if truth != (has == asks):
        asks = not asks
    derivation = [f"Every {a} is a {b}." for a, b in itertools.pairwise(chain)]
    derivation.append(f"Every {chain[-1]} is {_says(has, asked)}.")
    distractors = [
        f"Every {rng.choice(chain)} is a {side}.",
        f"Every {side} is a {aside}.",
        f"Every {aside} is {_says(rng.random() < 0.5, unrelated)}.",
        f"Every {other} is {_says(not has, asked)}.",
    ]
    rules = derivation + distractors
    rng.shuffle(rules)
    facts = [f"{subject} is a {chain[0]}."]
    statement = f"{subject} is {_says(asks, asked)}."
    prompt = f"{' '.join(rules + facts)}\nTrue or false: {statement} Answer with True or False only."
    work = " ".join(facts + derivation)
    return Item(f"deduction/{depth}/{' '.join(rules + facts)} {statement}", prompt, str(truth), work, depth)


def _says(has: bool, word: str) -> str:
    """A property or its negation."""
    return word if has else f"not {word}"


def _truth(text: str) -> str | None:
    """`True` or `False` where a text says only that."""
    found = re.fullmatch(r"\W*(true|false)\W*", text, re.IGNORECASE)
    return found and found[1].capitalize()


def score(item: Item, text: str) -> bool:
    """Whether an answer, or its last line, is the right truth value."""
    return _truth(last_line(text)) == item.answer


def well_formed(item: Item, text: str) -> bool:
    """Whether an answer is a truth value and no more."""
    return _truth(text) is not None


TASK = Task(
    "deduction",
    "true or false after 1 to 5 rules about invented kinds, with distractors; guessing scores one half",
    partial(distinct, "deduction", [partial(draw, depth, truth) for depth in DEPTHS for truth in (True, False)]),
    score,
    well_formed,
)
