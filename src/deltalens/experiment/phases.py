"""The steps of an experiment in the order of its phases: which there are, what each depends on, and the command alone.

0  sanity         the main pair's spectra, and what every model does
1  spectra        every control pair beside it
2  directions     the thinking direction, a probe of it, and its overlap with refusal
3  interventions  steered both ways, interpolated, truncated, reverted, negated, cut
4  controls       the leading part of every other delta in the same place
5  map            layer × kind × rank band
6  stages         root → base → tuned
7  atlas          which deltas share subspaces
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from deltalens.errors import BadInput
from deltalens.experiment import steps
from deltalens.experiment.config import Config, PairOf, nearest
from deltalens.experiment.steps import BANK, Work

PHASES = ("sanity", "spectra", "directions", "interventions", "controls", "causal map", "stages", "atlas")

_MODELS = ("n", "seeds", "task", "max_tokens", "dtype", "device")
_WRITES = ("generate", "generated")
_PUSHES = (*_MODELS, "temperature", *_WRITES)
_SWEEP = (*_PUSHES, "ledger", "kl")


@dataclass(frozen=True, slots=True)
class Step:
    """One resumable step.

    Attributes:
        name: As in `EXP/steps`; of a measurement `pairs/NAME`.
        phase: Index into `PHASES`.
        title: What it asks.
        run: Does it.
        place: What it leaves behind, under `EXP`; wiped when its inputs have changed.
        uses: Fields of the configuration that its numbers depend on.
        models: Models whose identity they depend on.
        needs: Steps without which it cannot run, and whose inputs are its inputs too.
        after: Steps whose results it uses where they are there.
        version: Module whose VERSION is part of its key.
        words: Of the command that repeats it alone, less --out; empty where there is none but the whole run's.
        absent: Why it is not part of this experiment, None where it is.
    """

    name: str
    phase: int
    title: str
    run: Callable[[Work], None]
    place: str
    uses: tuple[str, ...]
    models: tuple[str, ...]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    version: str | None = None
    words: tuple[str, ...] = ()
    absent: str | None = None

    def command(self, exp: Path, whole: str) -> str:
        """The command that repeats it alone, else the one of the whole run, which repeats what is not there."""
        return shlex.join(["deltalens", *self.words, "--out", str(exp / self.place)]) if self.words else whole

    @property
    def number(self) -> Any:
        """The version of what computes it."""
        return self.version and import_module(self.version).VERSION


def steps_of(config: Config, exp: Path) -> list[Step]:
    """Every step of an experiment in order, those that it leaves out too.

    Raises:
        BadInput: A step to skip is none of them, or a model cannot be opened.
    """
    main, sibling, root = config.main, steps.sibling(config), steps.root(config)
    others = tuple(pair for pair in config.pairs if pair.role != "main")
    beside = steps.comparable(config)
    both, bank = (main.base, main.tuned), str(exp / BANK)
    asked = _flags(config, config.n)

    def measure(pair: PairOf, phase: int) -> Step:
        shown = ["--context", "on" if config.context else "off", "--nulls", steps.nulls(config, pair)]
        words = ("measure", pair.base, pair.tuned, "--top", str(config.top), *shown)
        title = f"{pair.base} → {pair.tuned}"
        name, uses = f"pairs/{pair.name}", ("top", "context", *(("nulls",) if pair is main else ()))
        return Step(name, phase, title, partial(steps.measured, pair=pair), name, uses, _sides(pair), words=words)

    def sweep(name: str, title: str, recipe: str | None = None) -> Step:
        recipe = recipe or name
        given = ("--sibling", sibling) if sibling else ()
        flags = (*asked, *_completions(config), *(() if config.kl else ("--no-kl",)))
        if recipe == "transition" and not config.parts:
            flags += ("--no-parts",)
        return Step(
            name,
            3,
            title,
            partial(steps.swept, name=recipe),
            f"steps/{name}",
            (*_SWEEP, "parts") if recipe == "transition" else _SWEEP,
            (*both, *given[1:]),
            version=f"deltalens.methods.{_MODULES.get(recipe, recipe.replace('-', '_'))}",
            words=("sweep", "--recipe", recipe, *both, *given, *flags),
        )

    def steer(name: str, title: str, source: str, sign: float) -> Step:
        alphas = [f"{sign * alpha:g}" for alpha in config.alphas]
        return Step(
            name,
            3,
            title,
            partial(steps.steered, source=source, sign=sign),
            f"steps/{name}",
            (*_PUSHES, "alphas"),
            (source,),
            needs=("direction",),
            version="deltalens.methods.steer_run",
            words=("steer", source, "--direction", bank, "--alpha", *alphas, *asked, *_completions(config)),
        )

    refusing = steps.refusing(config)
    models = steps.models(config) if "eval" not in config.skip else ()
    computed = ("--seed", str(config.seeds[0]), "--dtype", config.dtype, "--device", config.device)
    found = [
        measure(main, 0),
        Step(
            "eval",
            0,
            "what every model does: thinking, skill, its price",
            steps.evaluated,
            "steps/eval",
            (*_MODELS, *_WRITES),
            models,
            version="deltalens.evaluate.suite",
            words=("eval", *models, *_flags(config, config.completed)),
        ),
        *(measure(pair, 1) for pair in others),
        Step(
            "direction",
            2,
            "the thinking direction: tuned − base at the last prompt token",
            steps.directed,
            BANK,
            ("seeds", "dtype", "device"),
            both,
            words=("directions", "activations", main.tuned, "--against", main.base, *computed),
        ),
        Step(
            "probe",
            2,
            "does it tell reasoning prompts from others?",
            steps.probed,
            "steps/probe",
            ("seeds", "dtype", "device"),
            both,
            needs=("direction",),
            version="deltalens.methods.probe",
            words=("probe", main.tuned, "--direction", bank, "--against", main.base, *computed),
        ),
        Step(
            "refusal",
            2,
            f"is it the refusal direction of {refusing}?",
            steps.compared,
            "refusal.json",
            ("seeds", "dtype", "device"),
            (refusing,),
            needs=("direction",),
        ),
        steer("steer-up", "the base pushed along the direction", main.base, 1.0),
        steer("steer-down", "the tuned model pushed against it", main.tuned, -1.0),
        sweep("transition", "where between base and tuned thinking begins"),
        sweep("rank", "the least rank of Δ that behaves like the tuned model"),
        sweep("negate", "ways to take thinking out, and what else each takes"),
        sweep("lox-reasoning", "amplify, take out and put in the leading directions of Δ"),
        sweep("spectrum-behaviour", "spikes or bulk: energy of Δ against behaviour"),
        sweep("contrast", "tuned − sibling beside the task vector and an activation vector"),
        Step(
            "specific",
            4,
            "does the leading part of another delta do as much?",
            steps.specifically,
            "steps/specific",
            _SWEEP,
            (*both, *(source for pair in beside for source in _sides(pair))),
            after=("rank",),
            version="deltalens.methods.specific",
            absent=None if beside else "no control pair shares the main pair's shapes",
        ),
        Step(
            "map",
            5,
            "which cells of Δ, layer × kind × rank band, carry it",
            steps.mapped,
            "steps/map",
            (*_SWEEP, "cells"),
            (*both, *((sibling,) if sibling else ())),
            version="deltalens.methods.causal_map",
        ),
        Step(
            "stages",
            6,
            "what this training shares with, undoes of, and adds to the one before it",
            steps.decomposed,
            "stages.json",
            (),
            (*both, *((root,) if root else ())),
            absent=None if root else "no sft pair ends at the main base",
        ),
        Step(
            "atlas",
            7,
            "which deltas share their leading subspaces",
            steps.related,
            "atlas.json",
            ("seeds",),
            (),
            needs=(f"pairs/{main.name}",),
            after=tuple(f"pairs/{pair.name}" for pair in others),
            absent=None if others else "there is one pair only",
        ),
    ]
    names = [step.name for step in found]
    if unknown := [name for name in config.skip if name not in names]:
        raise BadInput(f"skip names a step {unknown[0]!r}", nearest(unknown[0], names))
    return found


_MODULES = {"rank": "functional_rank"}


def _sides(pair: PairOf) -> tuple[str, str]:
    return pair.base, pair.tuned


def _completions(config: Config) -> Sequence[str]:
    """How much of an intervention writes completions, and how."""
    found = ["--generate", config.generate]
    found += ["--generated", str(config.generated)] if config.generated else []
    return [*found, *(["--temperature", f"{config.temperature:g}"] if config.temperature else [])]


def _flags(config: Config, n: int) -> Sequence[str]:
    """What every verb that runs a model is asked with."""
    found = ["--n", str(n), "--seed", *map(str, config.seeds)]
    found += ["--task", config.task] if config.task else []
    found += ["--max-tokens", str(config.max_tokens)] if config.max_tokens else []
    return [*found, "--batch-size", str(config.batch_size), "--dtype", config.dtype, "--device", config.device]
