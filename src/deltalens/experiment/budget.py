"""What an experiment will cost, from headers and prompts alone, and what is left out to fit into given minutes.

A pass is one forward over all items of the test split; a completion of those that are completed, free and forced, is
counted in passes. Counts of passes are those of the family, where they were checked; how long sets of cells and refined
grids grow is not known before they run. Arms that write completions are the most that a step may have.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2
from statistics import fmean
from time import perf_counter
from typing import Any

from deltalens.checkpoint import plan as preflight
from deltalens.checkpoint.names import LINEAR
from deltalens.checkpoint.pair import Pair
from deltalens.errors import BadInput, DeltalensError
from deltalens.evaluate.prompts import encoded
from deltalens.experiment.config import Config
from deltalens.experiment.phases import Step
from deltalens.experiment.steps import chat_of, tasks
from deltalens.sweep.arms import CHOSEN_ON
from deltalens.sweep.pair import ALL, FEW
from deltalens.sweep.transition import POINTS as LAMBDAS

FLOPS_PER_CORE = 50e9
"""Float32, forward passes on one server core; with the margin of `checkpoint.plan` .15 s for 200 chains of the family,
as measured."""

DECODING = 1.5
"""How much longer a token takes to write than to read, in batches of 64."""

NULLS = 6.0
"""Context and default nulls in units of the delta pass."""

_SAVES = 0.98  # what is left of the time where leaving something out is worth it

LOADED = 500e6
"""Bytes of Python with torch and transformers, as measured."""

_SOME = 8  # prompts of each task whose length is looked at
_LONGEST = 4096  # tokens of a completion where neither the user nor the task says

_CONTROLS = 17
"""Of an operating point on weights: ten drawn ones, other layers, the sibling, those that never decide."""

DROPPED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("without contrast", {"skip": ("contrast",)}),
    ("without spectrum-behaviour", {"skip": ("spectrum-behaviour",)}),
    ("without lox-reasoning", {"skip": ("lox-reasoning",)}),
    ("edits are not asked what else they cost", {"ledger": False}),
    ("the transition without single kinds and bands", {"parts": False}),
    ("64 cells in the causal map", {"cells": 64}),
    ("without KL", {"kl": False}),
    ("completions of the pair and of what is put in and left out by rank alone", {"generate": FEW}),
    ("three strengths of steering", {"alphas": (1.0, 2.0, 4.0)}),
    ("without nulls of the spectra", {"nulls": "off"}),
    ("16 cells in the causal map", {"cells": 16}),
    ("without steer-down", {"skip": ("steer-down",)}),
    ("without the causal map", {"skip": ("map",)}),
    ("without negate", {"skip": ("negate",)}),
    ("spectra without context", {"context": False, "nulls": "off"}),
    ("50 items, too few for a causal verdict", {"n": 50}),
    ("without steering", {"skip": ("steer-up",)}),
    ("without transition", {"skip": ("transition",)}),
)
"""What goes first, in order, until the run fits: what no verdict rests on, then grids, then verdicts one by one."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one step takes.

    Attributes:
        passes: Forward passes over the items.
        arms: How many arms write completions, at most.
        completions: How often the items that are completed are: once for each arm and task.
        seconds: Estimate.
        bytes: Memory, estimate.
    """

    passes: float
    arms: int
    completions: float
    seconds: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Scale:
    """The sizes that costs follow from.

    Attributes:
        parameters: Of the main tuned model.
        layers: Of it.
        rank: Of its widest matrix.
        spectra: Seconds and bytes of the delta pass, by name of the pair.
        tokens: Of a prompt.
        longest: Tokens of a completion.
        tasks: That eval asks.
        per_pass: Seconds of one pass of 200 items.
        lacking: Why no model can be asked anything, None where one can: only the weight side will run.
    """

    parameters: int
    layers: int
    rank: int
    spectra: dict[str, tuple[float, float]]
    tokens: float
    longest: int
    tasks: int
    per_pass: float
    lacking: str | None = None


def scale(config: Config) -> Scale:
    """Measures an experiment by its headers and prompts.

    Raises:
        BadInput: A model cannot be opened.
        Refused: Two sides are not comparable.
    """
    planned = {pair.name: preflight.plan(pair.base, pair.tuned) for pair in config.pairs}
    main = Pair.open(config.main.base, config.main.tuned, headers_only=True)
    elements = [info.elements for info in main.tuned.tensors.values()]
    shapes = [row.shape for row in main.rows if row.name.layer is not None and len(row.shape) == 2]
    tokens, longest, asked, lacking = 0.0, 0, [], None
    try:
        chat = chat_of(config.main.tuned)
        asked = tasks(config, chat)
        rows = [encoded(chat, item) for task in asked for item in task.items("test", _SOME, config.seeds[0])]
        tokens, longest = fmean(map(len, rows)), max(config.max_tokens or task.max_tokens or _LONGEST for task in asked)
    except BadInput as problem:
        lacking = problem.error
    flops = 2.0 * sum(elements) * 200 * tokens
    return Scale(
        parameters=sum(elements),
        layers=int(main.tuned.setting("num_hidden_layers") or 1),
        rank=max(map(min, shapes), default=1),
        spectra={name: (found.seconds, float(found.peak_memory_bytes)) for name, found in planned.items()},
        tokens=tokens,
        longest=longest,
        tasks=len(asked),
        per_pass=preflight.MARGIN * flops / (FLOPS_PER_CORE * preflight.cores()),
        lacking=lacking,
    )


def timed(config: Config, of: Scale) -> Scale:
    """The same with a pass as it is on this machine: one batch of the main tuned model, after a first to warm up.

    Raises:
        BadInput: The model does not load.
    """
    from deltalens.evaluate.behaviour import p_think
    from deltalens.evaluate.plan import plan
    from deltalens.model.load import load

    try:
        asked = plan([config.main.base, config.main.tuned], replace(config.asked, n=config.batch_size))
    except DeltalensError:  # no format or none in common: every step that needs one will say so
        return of
    if asked.chat.think is None:
        return of
    model, _ = load(config.main.tuned, config.dtype, config.device)
    prompts = asked.prompts[0]
    p_think(model, prompts, config.batch_size)
    began = perf_counter()
    p_think(model, prompts, config.batch_size)
    return replace(of, per_pass=(perf_counter() - began) * 200 / len(prompts.items))


def asks(step: Step) -> bool:
    """Whether a step runs a model."""
    return not step.name.startswith("pairs/") and step.name not in ("stages", "atlas")


def cost(config: Config, of: Scale, step: Step, models: int) -> Cost:
    """What a step takes.

    Args:
        config: The experiment.
        of: From `scale` or `timed`.
        step: Which.
        models: That eval asks.
    """
    held = 4.0 * of.parameters
    if step.name.startswith("pairs/"):
        seconds, size = of.spectra[step.name.removeprefix("pairs/")]
        times = 3.0 if config.context else 1.0
        times += NULLS if config.context and "nulls" in step.uses and config.nulls != "off" else 0.0
        return Cost(0.0, 0, 0.0, 1.0 + seconds * times, size)
    if not asks(step):
        read = sum(seconds for seconds, _ in of.spectra.values())
        return Cost(0.0, 0, 0.0, 1.0 + read, max(size for _, size in of.spectra.values()))
    passes, arms = _PASSES.get(step.name, _OTHERWISE)(config, of, models), written(config, of, step.name, models)
    asked = of.tasks if step.name == "eval" or (config.ledger and step.name in _PRICED) else 1
    completions = float(arms * asked)
    one = of.per_pass * config.n / 200
    samples = len(config.seeds) if config.temperature or step.name == "eval" else 1
    writing = 2.0 * DECODING * of.longest / max(of.tokens, 1.0) * samples * config.completed / config.n
    factor = 2.0 if config.kl or step.name in ("direction", "eval") else 1.0
    vectors = held if step.phase == 3 else 0.0  # singular vectors and second moments
    seconds = one * (passes + writing * completions)
    return Cost(passes, arms, completions, seconds, LOADED + held * factor + held + vectors)


_PRICED = ("negate", "contrast")
"""Steps that ask their arms the other tasks too."""


def written(config: Config, of: Scale, step: str, models: int) -> int:
    """How many arms of a step write completions, at most; both sides are counted in every step that shows theirs.

    Args:
        config: The experiment.
        of: From `scale` or `timed`.
        step: Its name.
        models: That eval asks.
    """
    single, ranks, every = min(of.layers, 6), ceil(log2(max(of.rank, 2))) + 1, config.generate == ALL
    if config.few:
        return {"eval": min(models, 2), "rank": 4}.get(step, 0)
    counts = {
        "eval": models,
        "steer-up": len(config.alphas) + 3 if every else 3,
        "steer-down": len(config.alphas) + 3 if every else 3,
        "transition": 2 + ceil(log2(LAMBDAS - 1)),
        "rank": 2 + 3 * 2 + (3 * 3 + ranks if every else 2),
        "negate": 2 + 1 + 2 * (3 + (single if every else 1)),
        "lox-reasoning": 2 + 2 * 3,
        "spectrum-behaviour": 2 + 2 * 4 + 2 + len(LINEAR),
        "contrast": 2 + 2 * 3 + 1 + 3,
        "specific": 2 + 2 + len(config.pairs) if every else 0,
        "map": 2 + 2 * 4 if every else 0,
    }
    return counts.get(step, 0)


_Count = Callable[[Config, Scale, int], float]


def _select(config: Config) -> float:
    return min(1.0, CHOSEN_ON / config.n)


def _point(config: Config) -> float:
    """Passes of an operating point's controls."""
    return _CONTROLS * (2.0 if config.kl else 1.0)


def _steer(config: Config, of: Scale, _: int) -> float:
    strengths = len(config.alphas)
    return 2.0 * strengths * of.layers * _select(config) + 3.0 * (strengths + 15)


def _ranks(config: Config, of: Scale, curves: int) -> float:
    """Passes of curves over ranks, on both splits, with controls."""
    points = ceil(log2(max(of.rank, 2))) + 1
    return curves * (points * (_select(config) + (2.0 if config.kl else 1.0)) + _point(config))


_PASSES: dict[str, _Count] = {
    "eval": lambda c, s, models: 3.0 * (min(models, 2) if c.few else models) * s.tasks * c.completed / c.n,
    "direction": lambda c, s, m: 1.0,
    "refusal": lambda c, s, m: 1.0,
    "probe": lambda c, s, m: 2.0,
    "steer-up": _steer,
    "steer-down": _steer,
    "transition": lambda c, s, m: 20.0 * (2 + (12 if c.parts else 0) + (2 if c.kl else 1)),
    "rank": lambda c, s, m: _ranks(c, s, 3),
    "negate": lambda c, s, m: _ranks(c, s, 3) + (min(s.layers, 6) + 1) * 12,
    "specific": lambda c, s, m: _point(c) + 4.0 * len(c.pairs),
    "map": lambda c, s, m: c.cells * (1 + _select(c) + (1 if c.kl else 0)) + c.cells + 4 * _point(c),
}
_OTHERWISE: _Count = lambda c, s, m: _ranks(c, s, 5)  # noqa: E731


def fitted(config: Config, of: Scale, steps: Sequence[Step], models: int) -> tuple[Config, list[str]]:
    """The experiment within its minutes, and what was left out for that, in words.

    Args:
        config: The experiment; with `minutes` 0 it stays as it is.
        of: From `scale` or `timed`.
        steps: All its steps.
        models: That eval asks.

    Raises:
        BadInput: Not even the least of it fits.
    """
    if not config.minutes:
        return config, []

    def minutes(changed: Config) -> float:
        running = (step for step in steps if step.absent is None and step.name not in changed.skip)
        return sum(cost(changed, of, step, models).seconds for step in running) / 60

    dropped: list[str] = []
    now, takes = config, minutes(config)
    for words, change in DROPPED:
        if takes <= config.minutes:
            break
        changed = _changed(now, change)
        shorter = minutes(changed)
        if shorter < _SAVES * takes:
            now, takes = changed, shorter
            dropped.append(words)
    if takes > config.minutes:
        raise BadInput(
            f"{config.minutes:g} minutes are not enough: the least of this experiment takes about {takes:.1f}",
            f"--minutes {ceil(takes)}, or a smaller model",
        )
    return now, dropped


def _changed(config: Config, change: dict[str, Any]) -> Config:
    """A configuration with one line of `DROPPED`; nothing grows by it."""
    given = dict(change)
    if "skip" in given:
        given["skip"] = tuple(dict.fromkeys((*config.skip, *given["skip"])))
    for name in ("n", "cells"):
        if name in given:
            given[name] = min(given[name], getattr(config, name))
    if "alphas" in given and len(given["alphas"]) >= len(config.alphas):
        del given["alphas"]
    return replace(config, **given)
