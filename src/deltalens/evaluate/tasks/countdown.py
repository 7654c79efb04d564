"""Countdown: make a target from given numbers, each used exactly once. Any right expression counts."""

import ast
import random
import re
from fractions import Fraction
from functools import partial

from deltalens.evaluate.tasks.item import Item, Task, distinct, last_line

COUNTS = (3, 4)
TARGETS = range(10, 100)
TOP = 25
# No right answer is longer; the parser's own recursion stays shallow.
_MAX_CHARACTERS = 200


def draw(count: int, rng: random.Random) -> Item:
    """One problem of `count` numbers from 1 to 25 and a target from 10 to 99 that they make."""
    while True:
        numbers = rng.sample(range(1, TOP + 1), count)
        terms = [(str(n), n) for n in numbers]
        while len(terms) > 1:
            (left, a), (right, b) = (terms.pop(rng.randrange(len(terms))) for _ in range(2))
            choices = [("+", a + b), ("*", a * b)]
            if a > b:
                choices.append(("-", a - b))
            if a % b == 0:
                choices.append(("/", a // b))
            sign, value = rng.choice(choices)
            terms.append((f"({left} {sign} {right})", value))
        (solution, target), *_ = terms
        if target in TARGETS:
            break
    shown = ", ".join(map(str, numbers))
    prompt = (
        f"Use each of the numbers {shown} exactly once, with +, -, *, / and parentheses, to make {target}. "
        "Answer with the expression only."
    )
    return Item(f"countdown/{','.join(map(str, numbers))}={target}", prompt, solution[1:-1], depth=count - 1)


def evaluate(text: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of an arithmetic expression and its sorted numbers; None where it is none.

    Nothing is executed: the text is parsed, and only whole numbers, + - * / and parentheses are walked. A right side
    `= target` is allowed and ignored.
    """
    text = text.strip(" \t\n`$.").translate(str.maketrans("×÷−–", "*/--")).partition("=")[0]
    if len(text) > _MAX_CHARACTERS or not re.fullmatch(r"[0-9+\-*/() ]+", text):
        return None
    try:
        body = ast.parse(text.strip(), mode="eval").body
        return _value(body), sorted(map(int, re.findall("[0-9]+", text)))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Fraction:
    """The value of a parsed expression; ValueError at anything but numbers and the four operations."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp):
        raise ValueError(ast.dump(node))
    left, right = _value(node.left), _value(node.right)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Div):
        return left / right
    raise ValueError(ast.dump(node))


def score(item: Item, text: str) -> bool:
    """Whether an answer, or its last line, makes the target from every number exactly once."""
    found = evaluate(text) or evaluate(last_line(text))
    return found is not None and found == evaluate(item.answer)


def well_formed(item: Item, text: str) -> bool:
    """Whether an answer is an arithmetic expression."""
    return evaluate(text) is not None


TASK = Task(
    "countdown",
    "make a target from 3 or 4 numbers, each used once",
    partial(distinct, "countdown", [partial(draw, count) for count in COUNTS]),
    score,
    well_formed,
)
