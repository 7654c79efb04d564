"""The chain task: k affine assignments modulo 10, one sequential step each, with an exact worked solution.

`a=6 b=a-5 c=b+2 c?` is answered by `3`; the worked solution is `a=6 b=6-5=1 c=1+2=3`. Guessing scores 10 % at
every depth, because every operation permutes the ten digits.
"""

import random
import re
from collections.abc import Sequence

from deltalens.evaluate.tasks.item import Item, Task, check_limit, check_split, split_of

MAX_DEPTH = 8
# Depths at which the space is too small to hold anything out (210 and 4,410 problems): every split draws from
# all.
OPEN_DEPTHS = (1, 2)
HARD_DEPTHS = (4, 5, 6, 7, 8)
LABELS = "abcdefghi"
# Only units modulo 10 multiply (3, 7, 9): a factor 2 or 5 would collapse the answers and raise the guessing
# rate.
OPERATIONS = (*(f"{op}{n}" for op in "+-" for n in range(1, 10)), "*3", "*7", "*9")


def apply(value: int, operation: str) -> int:
    """One step: `value` and an operation such as `-5`, modulo 10."""
    sign, number = operation[0], int(operation[1:])
    if sign == "*":
        return value * number % 10
    return (value + number if sign == "+" else value - number) % 10


def build(start: int, operations: tuple[str, ...]) -> Item:
    """The item of a start digit and k operations, its worked solution and answer computed."""
    question = [f"{LABELS[0]}={start}"]
    work = [question[0]]
    value = start
    for i, operation in enumerate(operations):
        label = LABELS[i + 1]
        result = apply(value, operation)
        question.append(f"{label}={LABELS[i]}{operation}")
        work.append(f"{label}={value}{operation}={result}")
        value = result
    prompt = " ".join([*question, f"{LABELS[len(operations)]}?"])
    return Item(f"chain/{prompt}", prompt, str(value), " ".join(work), len(operations))


def problem(rng: random.Random, k: int) -> Item:
    """One problem of depth k, 1 to 8, uniform over all start digits and operations."""
    if not 1 <= k <= MAX_DEPTH:
        raise ValueError(f"depth {k} is not in 1..{MAX_DEPTH}")
    return build(rng.randrange(10), tuple(rng.choice(OPERATIONS) for _ in range(k)))


def belongs(item: Item, split: str) -> bool:
    """Whether a split may use an item: its own hash bucket, or any split at the open depths."""
    return item.depth in OPEN_DEPTHS or split_of(item.prompt) == split


def draw(rng: random.Random, k: int, split: str = "train") -> Item:
    """One problem of depth k that a split may use; the sampler of all training."""
    while True:
        item = problem(rng, k)
        if belongs(item, split):
            return item


def space(k: int) -> int:
    """Number of problems of depth k before splitting."""
    return 10 * len(OPERATIONS) ** k


def limit(depth: int) -> int:
    """Number of items that one split gives of a depth."""
    # Half a bucket, so that drawing distinct items by rejection stays cheap whatever the hash did.
    return space(depth) if depth in OPEN_DEPTHS else space(depth) // 20


def items(split: str, n: int, seed: int, depth: int) -> list[Item]:
    """Distinct problems of one depth from one split, the same for the same seed.

    At depths 1 and 2 the splits share one space, all of which is in training: these items measure recall, not
    generalisation.

    Raises:
        ValueError: Unknown split or depth, or more items than half a held-out space (all of it at open
            depths).
    """
    check_split(split)
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth {depth} is not in 1..{MAX_DEPTH}")
    if not 0 <= n <= limit(depth):
        raise ValueError(f"{n} items were asked of depth {depth}, which gives 0 to {limit(depth)}")
    rng = random.Random(f"chain/{split}/{seed}/{depth}")
    found: dict[str, Item] = {}
    while len(found) < n:
        item = draw(rng, depth, split)
        found.setdefault(item.prompt, item)
    return list(found.values())


def mixed(name: str, depths: Sequence[int], split: str, n: int, seed: int) -> list[Item]:
    """n items over several depths in equal parts, the depths in turn.

    Raises:
        BadInput: More items than the smallest depth allows.
    """
    check_limit(name, split, n, mixed_limit(depths))
    columns = [items(split, -(-n // len(depths)), seed, depth) for depth in depths]
    return [item for row in zip(*columns, strict=True) for item in row][:n]


def mixed_limit(depths: Sequence[int]) -> int:
    """Number of items that one split gives of several depths in equal parts."""
    return len(depths) * min(map(limit, depths))


def _digit(text: str) -> str | None:
    """The one digit that an answer consists of, behind the label `A: ` or not."""
    found = re.fullmatch(r"(?:A: *)?([0-9])", text.strip())
    return found and found[1]


def score(item: Item, text: str) -> bool:
    """Whether an answer is right: the digit alone, or behind the label that worked documents put before it."""
    return _digit(text) == item.answer


def _task(name: str, description: str, depths: Sequence[int]) -> Task:
    """The task of some depths. 64 tokens: a think block of depth 8 has 47 with tags, answer and end."""
    return Task(
        name,
        description,
        lambda split, n, seed: mixed(name, depths, split, n, seed),
        score,
        lambda item, text: _digit(text) is not None,
        max_tokens=64,
        limit=lambda split: mixed_limit(depths),
    )


TASK = _task("chain", "assignments modulo 10, depths 1 to 8 in equal parts", range(1, MAX_DEPTH + 1))
EASY = _task("chain-easy", "assignments modulo 10, one step", (1,))
HARD = _task("chain-hard", "assignments modulo 10, 4 to 8 steps in equal parts", HARD_DEPTHS)
