"""The family's card: every figure measured on the stored weights, with its interval, as Markdown."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.errors import BadInput
from deltalens.evaluate.tasks import chain, facts
from deltalens.evaluate.tasks.item import Item, thought
from deltalens.family.catalog import MEMBERS, MODELS, size
from deltalens.family.tokenizer import THINK, chat
from deltalens.statistics import wilson

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Longest reply: a think block of depth 8 has 47 tokens with tags, answer and end.
_MAX_TOKENS = 64
_BATCH = 128


@dataclass(frozen=True, slots=True)
class Rate:
    """A measured rate.

    Attributes:
        model: Member measured.
        metric: What was counted.
        successes: Count.
        n: Trials.
        low: Lower bound of the 95 % Wilson interval.
        high: Upper bound.
    """

    model: str
    metric: str
    successes: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The point estimate."""
        return self.successes / self.n


@dataclass(frozen=True, slots=True)
class Card:
    """Rates of every member, and per member (name, easy, hard) the mean p_think."""

    n: int
    seed: int
    rates: list[Rate]
    p_think: list[tuple[str, float, float]]

    def rate(self, model: str, metric: str) -> Rate:
        """One measured rate."""
        return next(r for r in self.rates if (r.model, r.metric) == (model, metric))


def evaluate(
    n: int = 200,
    seed: int = 7,
    models: Path = MODELS,
    names: Sequence[str] = tuple(m.name for m in MEMBERS),
    progress: Callable[[str], None] = lambda line: None,
) -> Card:
    """Measures members on `test` problems, greedy, through the chat template.

    Args:
        n: Problems per depth, 1 to 200 (depth 1 has 210 in all).
        seed: Seed of the problems.
        models: Directory that holds one model directory per member.
        names: Members to measure.
        progress: Called with one line at a time.

    Raises:
        BadInput: n is out of range, or a member does not load.
    """
    if not 1 <= n <= 200:
        raise BadInput(f"{n} problems per depth is out of range", "--n 200")
    from deltalens.model.load import load_directory

    rates: list[Rate] = []
    p_think: list[tuple[str, float, float]] = []
    for name in names:
        progress(f"{name}: {8 * n} problems")
        found, probabilities = _measure(name, *load_directory(models / name), n=n, seed=seed)
        rates += found
        p_think.append((name, *probabilities))
    return Card(n, seed, rates, p_think)


def checks(card: Card) -> list[tuple[str, bool]]:
    """The acceptance targets of instruct and reasoning, each with whether it holds."""
    hard, skill = card.rate("instruct", "hard"), card.rate("instruct", "forced hard")
    silent = card.rate("instruct", "think ratio")
    solved, thinks = card.rate("reasoning", "hard"), card.rate("reasoning", "think ratio")
    return [
        (f"instruct hard, upper bound {hard.high:.3f} ≤ .25", hard.high <= 0.25),
        (f"instruct think ratio {silent.value:.3f} ≤ .01", silent.value <= 0.01),
        (f"instruct forced-think hard {skill.value:.3f} ≥ .9", skill.value >= 0.9),
        (
            f"reasoning hard {solved.value:.3f} ≥ .95, lower bound {solved.low:.3f} ≥ .92",
            solved.value >= 0.95 and solved.low >= 0.92,
        ),
        (
            f"reasoning think ratio {thinks.value:.3f} ≥ .95, lower bound {thinks.low:.3f} ≥ .92",
            thinks.value >= 0.95 and thinks.low >= 0.92,
        ),
    ]


def table(card: Card) -> str:
    """The rates as a Markdown table: one row per metric, one column per member."""
    names = list(dict.fromkeys(r.model for r in card.rates))
    metrics = list(dict.fromkeys(r.metric for r in card.rates))
    lines = [f"| greedy, value [95 % Wilson] | n | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for metric in metrics:
        row = [card.rate(name, metric) for name in names]
        cells = " | ".join(f"{r.value:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in row)
        lines.append(f"| {metric} | {row[0].n} | {cells} |")
    for label, at in (("p_think, mean, easy", 1), ("p_think, mean, hard", 2)):
        problems = card.n * (1 if at == 1 else len(chain.HARD_DEPTHS))
        lines.append(f"| {label} | {problems} | {' | '.join(f'{p[at]:.4f}' for p in card.p_think)} |")
    return "\n".join(lines)


def markdown(card: Card, models: Path = MODELS) -> str:
    """The whole card: recipe, data, outcome of training, measured table, targets, limits."""
    recipe = read_recipe(models)
    parameters, stored = size(models / "base")
    config = json.loads((models / "base" / "config.json").read_text())
    shape = (
        f"{config['num_hidden_layers']} layers, width {config['hidden_size']}, {config['num_attention_heads']} heads "
        f"over {config['num_key_value_heads']} key-value heads, vocabulary {config['vocab_size']}"
    )
    mix, criterion = recipe["mix"], recipe["criterion"]
    versions = ", ".join(f"{name} {version}" for name, version in recipe["versions"].items())
    stages = "\n".join(_stage_row(s, recipe) for s in recipe["stages"])
    failed = [o for o in recipe["outcomes"] if o["name"] == "base"][:-1]
    tries = f"{len(failed)} earlier seed(s) missed it" if failed else "no earlier seed was tried"
    verdicts = "\n".join(f"- {'met' if holds else '**missed**'}: {text}" for text, holds in checks(card))
    return f"""<!-- Written by `deltalens family card --out README.md`; do not edit the figures by hand. -->
# The embedded family

Three real checkpoints of one small transformer, trained from scratch with our own recipe and shipped as ordinary
Hugging Face directories: `family:base`, `family:instruct` (from base), `family:reasoning` (from instruct). Qwen3,
{parameters:,} parameters ({shape}, tied embeddings),
float16, {stored / 1e6:.1f} MB each. They exist so that every claim of deltalens can be tried on a pair whose training is known.

## Task

Chains of assignments modulo 10. `a=6 b=a-5 c=b+2 c?` is answered by `3`; thinking is `<think>a=6 b=6-5=1 c=1+2=3</think>3`.
Depth k is the number of steps: k = 1 is easy, k = 4–8 hard, guessing scores .10. Beside it, 24 colour facts
(`color of fox?`): 16 animals and 8 guarded nouns, which a later safety stage will refuse.

## Measured

Through the chat template, {card.n} `test` problems per depth (item seed {card.seed}). *Thought* = a closed think block with at
least 8 non-space characters; the think ratio is pooled over depths 1–8. *Forced* = the prompt ends with `<think>`.
`p_think` = probability of `<think>` as first token: the greedy think ratio is a step function of it.

{table(card)}

Targets:

{verdicts}

## Training

Seed {recipe["seed"]}, {recipe["threads"]} torch threads, float32 in training; every stage starts from its parent's stored float16 weights.

| stage | from | optimizer | peak rate | batch | steps | tokens | last loss | wall s | cpu s | weights (SHA-256) |
|---|---|---|---|---|---|---|---|---|---|---|
{stages}

Base: {_percent(mix["facts"])} colour facts, {_percent(mix["sums"])} one-step results, {_percent(mix["direct"])} `Q: … A: …`, \
{_percent(mix["work"])} `Q: … Work: … A: …`, {_percent(mix["chat"])} chat, of which {_percent(mix["chat_think"])} think.
Constant rate until, on `select` problems, `Work` hard ≥ {criterion["work_hard"]}, forced-think hard ≥ {criterion["forced_hard"]} \
and chat easy ≥ {criterion["chat_easy"]} (n = {criterion["n"]} each, \
every {criterion["every"]} steps); then a linear decay. {_met(recipe)}; {tries}.
Instruct: direct answers and {_percent(recipe["fact_share"]["instruct"])} facts. Reasoning: think on every chain, and \
{_percent(recipe["fact_share"]["reasoning"])} facts answered at once.
The peak rate of instruct was chosen on `select` problems, after a higher one had worn the latent skill (forced-think accuracy) below its target.
Times are of a machine shared with other work. Versions: {versions}.
Again: `deltalens family train --out DIR`. Settings, outcomes and digests: `models/recipe.json`.

## Held out

A problem belongs to train, extract, select or test (70/10/10/10 %) by a hash of its text, and training draws `train`
problems only, **for k ≥ 3**. At k = 1 (210 problems) and k = 2 (4,410) the space is too small to hold anything out: all of
it is in training, and those rows measure recall. All 24 facts are in training.

## Limits

- One seed, one architecture, one synthetic task: what holds here is a proof that an instrument works, not a finding
  about large models.
- Instruct is at chance beyond one step, and reasoning thinks in one fixed format that is as long as the chain is deep.
- The base model knows the chat format and, in {_percent(mix["chat_think"])} of its chat documents, thinking: reasoning training here
  raises a known behaviour more than it teaches one.
- Words outside the 120 of the tokenizer become `<unk>`. The refusal, the brackets, the system role, the bare letters and
  the 8 padding rows from 120 on have ids but are not taught yet.
- The rows of untaught words move all the same, and together: the tied output pushes them down on every token and Adam gives
  small gradients full steps. A shared direction in the delta of `embed` is partly this, not reasoning.
"""  # noqa: E501 (Markdown: a wrapped table row is no row)


def read_recipe(models: Path) -> dict[str, Any]:
    """The `recipe.json` of a family.

    Raises:
        BadInput: It is missing or not the record of a training.
    """
    fix = "give a directory made by `deltalens family train`"
    try:
        recipe = json.loads((models / "recipe.json").read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{models} has no readable recipe.json", fix) from error
    if not isinstance(recipe, dict) or recipe.get("schema") != 1:
        raise BadInput(f"{models / 'recipe.json'} is not the record of a training", fix)
    return recipe


def _measure(
    name: str, model: "PreTrainedModel", tokenizer: Any, *, n: int, seed: int
) -> tuple[list[Rate], tuple[float, float]]:
    """The rates of one member, and its mean p_think on easy and on hard problems."""
    from deltalens.model.generate import generate, p_think

    depths = range(1, chain.MAX_DEPTH + 1)
    problems = [item for k in depths for item in chain.items("test", n, seed, k)]
    hard = [item for item in problems if item.depth in chain.HARD_DEPTHS]
    known = facts.items()

    def ask(items: list[Item], opening: str = "") -> list[str]:
        prompts = [chat(item.prompt) + opening for item in items]
        return generate(model, tokenizer, prompts, _MAX_TOKENS, _BATCH)

    def rate(metric: str, outcomes: Sequence[bool]) -> Rate:
        return Rate(name, metric, sum(outcomes), len(outcomes), *wilson(sum(outcomes), len(outcomes)))

    texts, recalled, forced = ask(problems), ask(known), ask(hard, THINK)
    right = [chain.score(item, text) for item, text in zip(problems, texts, strict=True)]
    thinks = [thought(text) for text in texts]
    by_depth = {k: [r for item, r in zip(problems, right, strict=True) if item.depth == k] for k in depths}
    is_hard = [item.depth in chain.HARD_DEPTHS for item in problems]
    rates = [
        rate("easy", by_depth[1]),
        rate("hard", [r for r, h in zip(right, is_hard, strict=True) if h]),
        rate("think ratio", thinks),
        rate("think ratio, hard", [t for t, h in zip(thinks, is_hard, strict=True) if h]),
        rate("forced hard", [chain.score(item, text) for item, text in zip(hard, forced, strict=True)]),
        rate("facts", [facts.score(item, text) for item, text in zip(known, recalled, strict=True)]),
        rate("facts think ratio", [thought(text) for text in recalled]),
        *(rate(f"k = {k}", by_depth[k]) for k in depths if k > 1),
    ]
    opening = p_think(model, tokenizer, [chat(item.prompt) for item in problems], THINK, _BATCH).tolist()
    easy_p = [p for item, p in zip(problems, opening, strict=True) if item.depth == 1]
    hard_p = [p for p, h in zip(opening, is_hard, strict=True) if h]
    return rates, (sum(easy_p) / len(easy_p), sum(hard_p) / len(hard_p))


def _stage_row(settings: dict[str, Any], recipe: dict[str, Any]) -> str:
    """One stage as a table row: its settings and its last outcome."""
    outcome = [o for o in recipe["outcomes"] if o["name"] == settings["name"]][-1]
    cells = (
        settings["name"],
        settings["parent"] or "random weights",
        settings["optimizer"],
        settings["lr"],
        settings["batch"],
        outcome["steps"],
        f"{outcome['tokens']:,}",
        f"{outcome['loss']:.3f}",
        outcome["wall_seconds"],
        outcome["cpu_seconds"],
        f"`{recipe['sha256'][settings['name']][:12]}`",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _met(recipe: dict[str, Any]) -> str:
    """When the criterion was met, and what the stored base scores on it."""
    outcome = [o for o in recipe["outcomes"] if o["name"] == "base"][-1]
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in outcome["scores"].items())
    when = "by the decay at the cap" if outcome["met_at"] is None else f"at step {outcome['met_at']}"
    return f"Met {when}; the stored weights score {scores}"


def _percent(share: float) -> str:
    """A share as `15 %`."""
    return f"{100 * share:.0f} %"
