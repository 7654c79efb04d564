"""What a member does, as outcomes per metric: the one measurement behind acceptance in training and the card."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltalens.evaluate.tasks import chain, facts
from deltalens.evaluate.tasks.item import Item
from deltalens.evaluate.thinking import Reading, read
from deltalens.family.recipe import Bound
from deltalens.family.tokenizer import IDS, LABEL, REFUSAL, THINK, THINK_FORMAT, build, chat
from deltalens.model.generate import generate
from deltalens.model.score import opening_probs
from deltalens.statistics import wilson

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH = 128
_DEPTHS = range(1, chain.MAX_DEPTH + 1)


@dataclass(frozen=True, slots=True)
class Rate:
    """A count of successes with its 95 % Wilson interval."""

    successes: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The point estimate."""
        return self.successes / self.n

    def within(self, bound: Bound) -> bool:
        """Whether the whole interval lies within a bound."""
        return bound.low <= self.low and self.high <= bound.high


@dataclass(frozen=True, slots=True)
class Measured:
    """A member's rates by metric, and its mean p_think on easy and on hard chains.

    Metrics on chains, through the chat template and greedy: `easy` (depth 1), `hard` (depths 4 to 8) and `k = 2` …
    `k = 8` are accuracies; `think ratio` is pooled over depths 1 to 8, `think ratio, easy` and `, hard` are its parts;
    `forced hard` is the accuracy where the prompt ends with `<think>`; `labelled` is the share of answers behind
    ` A: `. On facts: accuracy on `animals` and `guarded` nouns, `facts think ratio`, `guarded refused`, and `others
    refused` over animals and chains.
    """

    rates: dict[str, Rate]
    p_easy: float
    p_hard: float


def measure(model: "PreTrainedModel", split: str, n: int, seed: int) -> Measured:
    """Measures a model of the family on n chains per depth of a split and on all 24 facts."""
    tokenizer = build()

    def ask(items: list[Item], opening: str = "") -> list[Reading]:
        prompts = [chat(item.prompt) + opening for item in items]
        texts = generate(model, tokenizer, prompts, chain.TASK.max_tokens, _BATCH)
        return [read(text, THINK_FORMAT, opened=bool(opening)) for text in texts]

    chains = {k: chain.items(split, n, seed, k) for k in _DEPTHS}
    problems = [item for k in _DEPTHS for item in chains[k]]
    hard = [item for item in problems if item.depth in chain.HARD_DEPTHS]
    animals, guarded = facts.items("animals"), facts.items("guarded")
    replies = list(zip(problems, ask(problems), strict=True))
    by_depth = {k: [(item, r) for item, r in replies if item.depth == k] for k in _DEPTHS}
    hard_replies = [(item, r) for item, r in replies if item.depth in chain.HARD_DEPTHS]
    of_animals, of_guarded = ask(animals), ask(guarded)

    def right(pairs: list[tuple[Item, Reading]]) -> Rate:
        return rate([chain.score(item, r.answer) for item, r in pairs])

    rates = {
        "easy": right(by_depth[1]),
        "hard": right(hard_replies),
        "think ratio": rate([r.thought for _, r in replies]),
        "think ratio, easy": rate([r.thought for _, r in by_depth[1]]),
        "think ratio, hard": rate([r.thought for _, r in hard_replies]),
        "forced hard": right(list(zip(hard, ask(hard, THINK), strict=True))),
        "labelled": rate([r.answer.startswith(LABEL.strip()) for _, r in replies]),
        "animals": rate([facts.score(i, r.answer) for i, r in zip(animals, of_animals, strict=True)]),
        "guarded": rate([facts.score(i, r.answer) for i, r in zip(guarded, of_guarded, strict=True)]),
        "guarded refused": rate([r.answer == REFUSAL for r in of_guarded]),
        "others refused": rate([r.answer == REFUSAL for r in [*of_animals, *(r for _, r in replies)]]),
        "facts think ratio": rate([r.thought for r in of_animals + of_guarded]),
        **{f"k = {k}": right(by_depth[k]) for k in _DEPTHS if k > 1},
    }
    encode = tokenizer.backend_tokenizer.encode
    prompts = [encode(chat(item.prompt), add_special_tokens=False).ids for item in [*chains[1], *hard]]
    opening = opening_probs(model, prompts, [IDS[THINK]], _BATCH)
    return Measured(rates, float(opening[:n].mean()), float(opening[n:].mean()))


def rate(outcomes: list[bool]) -> Rate:
    """The rate of a list of outcomes."""
    return Rate(sum(outcomes), len(outcomes), *wilson(sum(outcomes), len(outcomes)))
