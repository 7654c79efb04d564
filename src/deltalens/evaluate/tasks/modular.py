"""Chains of additions and subtractions on 0..22, in strata that tell stepwise reasoning from chaining the numbers.

`a = 7`, `b = 15 - a`, `c = b + 2`: every line uses the line before it. A reader that chains the numbers treats every
variable as if it stood on the left and reads `15 - a` as `a - 15`; it is right where no variable is subtracted, and
wrong by construction elsewhere (arXiv 2503.07604; the strata and the range are theirs, this exact shortcut is ours).
Values stay in 0..22, so that nothing has to be reduced modulo 23.
"""

import random
import re
from functools import partial
from string import ascii_lowercase

from deltalens.evaluate.tasks.item import Item, Task, distinct
from deltalens.evaluate.tasks.numeric import score, well_formed

STEPS = 4
SUBTRAHENDS = (0, 1, 2, 3)
ORDERS = ("forward", "reverse", "random")
TOP = 22
_PLAIN = ("{x} + {n}", "{n} + {x}", "{x} - {n}")
_SUBTRAHEND = "{n} - {x}"


def draw(subtrahends: int, order: str, rng: random.Random) -> Item:
    """One chain of 4 operations, so many of them `number - variable`, its lines in one of three orders."""
    names = rng.sample(ascii_lowercase, STEPS + 1)
    while (drawn := _steps(subtrahends, rng)) is None:
        pass
    steps, values = drawn
    sides = [str(values[0])] + [form.format(x=x, n=n) for (form, n), x in zip(steps, names, strict=False)]
    lines = [f"{name} = {side}" for name, side in zip(names, sides, strict=True)]
    work = [lines[0]] + [f"{line} = {value}" for line, value in zip(lines[1:], values[1:], strict=True)]
    if order == "reverse":
        lines.reverse()
    elif order == "random":
        rng.shuffle(lines)
    return Item(
        f"modular/{order}/{','.join(lines).replace(' ', '')}",
        "\n".join((*lines, f"What is {names[-1]}? Answer with the number only.")),
        str(values[-1]),
        "\n".join(work),
        STEPS,
        f"subtrahends={subtrahends}",
    )


def _steps(subtrahends: int, rng: random.Random) -> tuple[list[tuple[str, int]], list[int]] | None:
    """The (form, number) of every operation and all values; None for a dead end or where the shortcut is right."""
    forms = [_SUBTRAHEND] * subtrahends + [rng.choice(_PLAIN) for _ in range(STEPS - subtrahends)]
    rng.shuffle(forms)
    steps, values = [], [rng.randint(0, TOP)]
    chained = values[0]
    for form in forms:
        x = values[-1]
        low, high = (x, TOP) if form == _SUBTRAHEND else (1, TOP - x if "+" in form else x)
        if low > high:
            return None
        n = rng.randint(max(low, 1), high)
        steps.append((form, n))
        values.append(_apply(form, x, n))
        chained = _apply("{x} - {n}" if form == _SUBTRAHEND else form, chained, n)
    return (steps, values) if not subtrahends or chained != values[-1] else None


def shortcut(item: Item) -> str:
    """What chaining the numbers answers, `number - variable` read as `variable - number`."""
    lines = dict(re.findall(r"^(\w) = (.+)$", item.prompt, re.MULTILINE))

    def value(name: str) -> int:
        left, _, right = lines[name].partition(" ")
        if not right:
            return int(left)
        sign, operand = right.split()
        variable, n = (operand, left) if left.isdigit() else (left, operand)
        return value(variable) + (int(n) if sign == "+" else -int(n))

    return str(value(item.prompt.partition("What is ")[2][0]))


def _apply(form: str, x: int, n: int) -> int:
    """The value of one line."""
    if "+" in form:
        return x + n
    return n - x if form == _SUBTRAHEND else x - n


TASK = Task(
    "modular",
    "chains of 4 additions and subtractions, by number of subtracted variables, in three orders of lines",
    partial(distinct, "modular", [partial(draw, s, order) for order in ORDERS for s in SUBTRAHENDS]),
    score,
    well_formed,
)
