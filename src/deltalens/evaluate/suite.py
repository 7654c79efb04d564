"""`eval`: several models on several tasks, the same ids for each, as one list of resumable tasks."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltalens.checkpoint.chat import MODES
from deltalens.checkpoint.identity import behaviour_identity
from deltalens.evaluate.behaviour import completions, p_skip, p_think
from deltalens.evaluate.divergence import kl_per_token, surprisals
from deltalens.evaluate.plan import Plan
from deltalens.evaluate.prompts import Prompts
from deltalens.evaluate.scores import perplexity, summarise
from deltalens.model.generate import Decoding, generate_ids
from deltalens.store.engine import Progress, run_tasks
from deltalens.store.engine import Task as Job
from deltalens.store.experiment import workspace, write_results, write_summary
from deltalens.store.parts import Part, finished_part, part_key
from deltalens.store.results import SUMMARY

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = 1
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""

TEXT = "text"
"""The name under which perplexity stands among the tasks."""

REFERENCE_TOKENS = 256
"""Of the reference's greedy text along which KL is taken when the arms themselves are sampled, or steered."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        rows: `store.results.RESULTS`, one per model, mode, item and sample.
        summary: `store.results.SUMMARY`.
    """

    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]


def evaluate(
    plan: Plan,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
) -> Evaluation:
    """Runs every model on every task; the first model is the reference of differences and divergence.

    Two models are in memory at a time, the reference and the one in question.

    Args:
        plan: From `evaluate.plan.plan`.
        out: Directory for the tables, where an interrupted evaluation resumes; None keeps nothing.
        progress: Called after every model and task.
        command: The command line to record.

    Raises:
        BadInput: A model does not load, or does not fit into memory.
        Refused: `out` holds something else.
    """
    identities = {checkpoint.source: behaviour_identity(checkpoint) for checkpoint in plan.checkpoints}
    settings = asdict(plan.settings) | {"tasks": [p.task.name for p in plan.prompts], "temperature": plan.temperature}
    del settings["batch_size"]  # no result depends on it
    record = {
        "kind": "eval",
        "version": VERSION,
        "models": [{"source": source, "identity": found} for source, found in identities.items()],
        "settings": settings,
        "template": plan.chat.template_hash,
        "command": command,
    }
    with workspace(out, record) as parts:
        jobs = _jobs(plan, identities, parts)
        run_tasks([job for _, job in jobs], parts, progress)
        rows, texts = [], []
        for arm, job in jobs:
            part = finished_part(parts, job.key)
            rows += part.row.get("rows", [])
            texts += [{"arm": arm, "task": TEXT, **score} for score in part.row.get("text", [])]
        summary = [dict.fromkeys(SUMMARY.names) | row for row in summarise(rows, plan.sources[0]) + texts]
        if out is not None:
            arms = [{"arm": arm, "role": role} for arm, role in dict.fromkeys((r["arm"], r["role"]) for r in rows)]
            write_results(out, "eval", rows)
            write_summary(out, arms, summary)
    return Evaluation(rows, summary)


def _jobs(plan: Plan, identities: dict[str, Any], parts: Path) -> list[tuple[str, Job]]:
    """One task per model and set of items, and one per model for the text, in the order in which models are loaded."""
    settings, reference = plan.settings, plan.sources[0]
    load = lru_cache(maxsize=2)(lambda source: _load(source, settings.dtype, settings.device))
    keys: dict[str, str] = {}
    found = []

    def add(arm: str, role: str, source: str, prompts: Prompts, modes: tuple[str, ...]) -> None:
        decoding = plan.decoding(prompts.task)
        asked = [[i.id, i.answer, i.group, ids] for i, ids in zip(prompts.items, prompts.ids["free"], strict=True)]
        own = [VERSION, arm, role, prompts.task.name, asked, modes, prompts.chat.template_hash, asdict(decoding)]
        run = [settings.seeds, settings.dtype, settings.device, sorted(plan.ends)]
        key = part_key(own, run, identities[source], identities[reference])
        if role == "baseline":
            keys[prompts.task.name] = key

        def work() -> Part:
            texts = None if role == "baseline" else _texts(parts, keys[prompts.task.name])
            others = None if texts is None or role == "format" else (load(reference), texts)
            return _measure(load(source), others, plan, prompts, modes, {"arm": arm, "role": role})

        tokens = len(modes) * len(prompts.items) * decoding.max_new_tokens
        found.append((arm, Job(f"{arm} {prompts.task.name}", key, 0, float(tokens), work)))

    for source in plan.sources:
        role = "baseline" if source == reference else "model"
        for prompts in plan.prompts:
            add(source, role, source, prompts, _modes(prompts))
        for native in plan.own if source == reference else ():
            add(f"{source}, own format", "format", source, native, ("free",))
        key = part_key(VERSION, plan.text, identities[source], settings.dtype, settings.device)
        cost = float(sum(map(len, plan.text[1])))
        text = lambda source=source: _text(load(source), plan)  # noqa: E731
        found.append((source, Job(f"{source} {plan.text[0]}", key, 0, cost, text)))
    return found


def _load(source: str, dtype: str, device: str) -> "PreTrainedModel":
    from deltalens.model.load import load

    return load(source, dtype, device)[0]


def _modes(prompts: Prompts) -> tuple[str, ...]:
    """Free; forced where there is a skill to force; closed where the format has a switch of its own."""
    think = prompts.chat.think
    if think is None or prompts.task.measures != "accuracy":
        return ("free",)
    return MODES if think.switch is not None else MODES[:2]


def _texts(parts: Path, key: str) -> list[list[int]]:
    """The reference's greedy completions, as its part holds them."""
    part = finished_part(parts, key)
    return [row.tolist() for row in np.split(part.arrays["ids"], np.cumsum(part.arrays["lengths"])[:-1])]


def _measure(
    model: "PreTrainedModel",
    reference: "tuple[PreTrainedModel, list[list[int]]] | None",
    plan: Plan,
    prompts: Prompts,
    modes: tuple[str, ...],
    labels: dict[str, str],
) -> Part:
    """The rows of one model on one set of items, and its greedy completions for those who are compared with it."""
    decoding, size = plan.decoding(prompts.task), plan.settings.batch_size
    rows: list[dict[str, Any]] = []
    greedy: list[list[int]] = []
    for mode in modes:
        found, ids = completions(model, prompts, mode, decoding, plan.settings.seeds, plan.ends, size)
        rows += found
        if mode == "free" and not decoding.temperature:
            greedy = ids
    if decoding.temperature and labels["role"] == "baseline":
        short = Decoding(min(decoding.max_new_tokens, REFERENCE_TOKENS))
        greedy = generate_ids(model, prompts.ids["free"], short, ends=plan.ends, batch_size=size)
    thinks, skips = p_think(model, prompts, size), p_skip(model, prompts, size)
    kl = [None] * len(prompts.items)
    if reference is not None:
        kl = kl_per_token(reference[0], model, prompts.ids["free"], reference[1], size)
    extra = {item.id: values for item, *values in zip(prompts.items, thinks, skips, kl, strict=True)}
    common = {**labels, "task": prompts.task.name, "split": prompts.split}
    for row in rows:
        scored = extra[row["item"]] if row["mode"] == "free" else [None] * 3
        row |= common | dict(zip(("p_think", "p_skip", "kl"), scored, strict=True))
    lengths = np.array([len(ids) for ids in greedy], np.int32)
    flat = np.array([token for ids in greedy for token in ids], np.int32)
    return Part({"rows": rows}, {"ids": flat, "lengths": lengths})


def _text(model: "PreTrainedModel", plan: Plan) -> Part:
    """Perplexity of the neutral text."""
    name, pieces = plan.text
    if not pieces:
        return Part({"text": []}, {})
    score = perplexity(surprisals(model, pieces, plan.settings.batch_size))
    return Part({"text": [{"group": name, "metric": "perplexity", **score}]}, {})
