"""`probe`: does a direction fire on one group of prompts and not on the other, layer by layer, in one model or two?"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deltalens.checkpoint.chat import Chat, read_chat
from deltalens.checkpoint.identity import behaviour_identity
from deltalens.checkpoint.pair import Pair
from deltalens.checkpoint.source import Checkpoint, open_checkpoint
from deltalens.direction.bank import read_directions, split_reference
from deltalens.direction.direction import Direction
from deltalens.errors import BadInput
from deltalens.evaluate.agree import ending_ids
from deltalens.methods.matched import Contrast, read_contrast
from deltalens.methods.separation import DRAWS, PERMUTATIONS, Readings, Separation, separations
from deltalens.statistics import auc
from deltalens.store.engine import Progress, run_tasks
from deltalens.store.engine import Task as Job
from deltalens.store.experiment import workspace, write_summary
from deltalens.store.files import write_json, write_table
from deltalens.store.parts import Part, finished_part, part_key
from deltalens.store.results import TOKENS

VERSION = 2
"""Raised whenever a number could change for the same input; stored parts of another version are redone."""

LENGTH = "prompt length"
"""The arm that knows nothing but how many tokens a prompt has."""

_ARRAYS = ("extract", "test", "normalised")


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked.

    Attributes:
        model: The model.
        direction: `BANK[#id]`: one direction, or a profile of one per layer.
        prompts: `A.jsonl[,B.jsonl]`, None for the default.
        against: A second model that reads the same ids, usually the base.
        site: Where to read; None for where the direction lives.
        select: Which tokens make a prompt's score.
        max_tokens: Generated after the example of each group.
        seed: Of the family's prompts, of nulls and permutations.
        dtype: Of computation.
        device: `auto`, `cpu` or `cuda`.
    """

    model: str
    direction: str
    prompts: str | None = None
    against: str | None = None
    site: str | None = None
    select: str = "last"
    max_tokens: int = 64
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided before a model is loaded.

    Attributes:
        settings: What was asked.
        checkpoints: The model, and the one it is set against.
        chat: Template and tokenizer of all prompts: the model's.
        directions: One per layer, by layer.
        site: Where they are read.
        contrast: The prompts.
        seen: Whether the direction was made from the test prompts too.
    """

    settings: Settings
    checkpoints: list[Checkpoint]
    chat: Chat
    directions: tuple[Direction, ...]
    site: str
    contrast: Contrast
    seen: bool


@dataclass(frozen=True, slots=True)
class Probed:
    """What `probe` found.

    Attributes:
        separations: By model, layer by layer.
        verdict: What follows, in one sentence.
        summary: `store.results.SUMMARY`.
        tokens: `store.results.TOKENS`, of the model alone.
    """

    separations: dict[str, list[Separation]]
    verdict: str
    summary: list[dict[str, Any]]
    tokens: list[dict[str, Any]]


def plan(settings: Settings) -> Plan:
    """Opens the models by their small files, reads the directions and renders the prompts.

    Raises:
        BadInput: A model, the bank, a prompt file or a setting is not usable.
        Refused: The two models are not comparable.
    """
    if settings.max_tokens < 1:
        raise BadInput(f"--max-tokens {settings.max_tokens} is not possible", "--max-tokens 64")
    if settings.seed < 0:
        raise BadInput(f"--seed {settings.seed} is not possible", "--seed 0")
    if settings.against == settings.model:
        raise BadInput(f"{settings.model} is set against itself", "leave out --against, or name its base")
    directions = profile(settings.direction)
    checkpoints = [open_checkpoint(settings.model)]
    if settings.against is not None:
        pair = Pair.open(settings.against, settings.model)
        checkpoints = [pair.tuned, pair.base]
    chat = read_chat(checkpoints[0])
    sites = sorted({d.site or "resid_post" for d in directions}) if settings.site is None else [settings.site]
    if len(sites) > 1:
        raise BadInput(f"the directions live at several sites ({', '.join(sites)})", f"--site {sites[0]}")
    contrast = read_contrast(chat, settings.prompts, settings.seed)
    from deltalens.model.select import parse_selector  # these load torch: not before the cheaper mistakes are found
    from deltalens.model.sites import Site

    parse_selector(settings.select, chat.think)
    Site(sites[0], directions[0].layer)
    seen = any(
        set(d.source.get("prompts", ())) & set(contrast.files) and d.source.get("split") != "extract"
        for d in directions
    )
    return Plan(settings, checkpoints, chat, directions, sites[0], contrast, seen)


def profile(reference: str) -> tuple[Direction, ...]:
    """The directions to read, one vector of each layer; of a bank named without an id its differences of means.

    Raises:
        BadInput: The bank cannot be read, or what is named is not one vector per layer.
    """
    path, wanted = split_reference(reference)
    found = read_directions(reference)
    if wanted is None:
        found = tuple(d for d in found if d.kind == "difference") or found
    by_layer: dict[int, Direction] = {}
    for d in found:
        if d.layer is None:
            raise BadInput(f"direction {d.id} belongs to no layer", f"{path}#ID of one that does")
        if len(d.vectors) > 1:
            raise BadInput(f"direction {d.id} has {len(d.vectors)} vectors, a probe reads one", f"{path}#{d.id}:0")
        if d.layer in by_layer:
            other = by_layer[d.layer].id
            raise BadInput(f"{other} and {d.id} are of one layer", f"one per layer, such as '{path}#*.{d.kind}'")
        by_layer[d.layer] = d
    return tuple(by_layer[layer] for layer in sorted(by_layer))


def probe(
    asked: Plan,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
) -> Probed:
    """Reads the direction in every model, one model in memory at a time.

    Args:
        asked: From `plan`.
        out: Directory for the tables, where an interrupted probe resumes; None keeps nothing.
        progress: Called after every model.
        command: The command line to record.

    Raises:
        BadInput: A model does not load, lacks the site or a layer, or has another width than the direction.
        Refused: `out` holds something else, or the site is not what it should be in this model.
    """
    identities = {ckpt.source: behaviour_identity(ckpt) for ckpt in asked.checkpoints}
    directions = [
        {"id": d.id, "layer": d.layer, "kind": d.kind, "site": d.site, "sign": d.sign, "source": dict(d.source)}
        for d in asked.directions
    ]
    record = {
        "kind": "probe",
        "version": VERSION,
        "models": [{"source": source, "identity": found} for source, found in identities.items()],
        "settings": asdict(asked.settings),
        "site": asked.site,
        "directions": directions,
        "template": asked.chat.template_hash,
        "prompts": {"names": list(asked.contrast.names), "matched": asked.contrast.matched, "seen": asked.seen},
        "command": command,
    }
    with workspace(out, record) as parts:
        jobs = [_job(asked, ckpt, identities[ckpt.source]) for ckpt in asked.checkpoints]
        run_tasks(jobs, parts, progress)
        found, tokens = {}, []
        for ckpt, job in zip(asked.checkpoints, jobs, strict=True):
            part = finished_part(parts, job.key)
            found[ckpt.source] = separations(_readings(asked.directions, part), asked.settings.seed)
            tokens += part.row["tokens"]
        arms, summary = summarise(asked, found)
        probed = Probed(found, verdict(asked, found), summary, tokens)
        if out is not None:
            write_summary(out, arms, summary)
            (out / "results").mkdir(exist_ok=True)
            write_table(out / "results" / "tokens.parquet", probed.tokens, TOKENS)
            write_json(out / "verdicts.json", {"probe": probed.verdict})
    return probed


def _job(asked: Plan, ckpt: Checkpoint, known: dict[str, Any]) -> Job:
    """Reads one model; of the first the examples too. What its part holds is all that statistics need."""
    settings, contrast, main = asked.settings, asked.contrast, ckpt is asked.checkpoints[0]

    def work() -> Part:
        from deltalens.methods.firing import lines_of, readings, tokens
        from deltalens.model.load import load
        from deltalens.model.select import parse_selector

        select = parse_selector(settings.select, asked.chat.think)
        model, _ = load(ckpt.source, settings.dtype, settings.device)
        lines = lines_of(model, asked.directions, asked.site)
        arrays = {
            f"{found.layer}.{name}.{group}": array
            for found in readings(model, lines, contrast, select)
            for name in _ARRAYS
            for group, array in enumerate(getattr(found, name))
        }
        limit, ends = settings.max_tokens, ending_ids(ckpt, asked.chat)
        rows = tokens(model, asked.chat, lines, contrast, limit, ends) if main else []
        return Part({"source": ckpt.source, "tokens": rows}, arrays)

    vectors = [[d.id, d.layer, d.vectors.tolist()] for d in asked.directions]
    ids = [[item.id for item in group] for group in contrast.items]
    prompts = [contrast.names, ids, contrast.extract, contrast.test, asked.chat.template_hash]
    run = [asked.site, settings.select, settings.max_tokens, settings.dtype, settings.device]
    return Job(ckpt.source, part_key(VERSION, known, main, vectors, prompts, run), 0, 1.0, work)


def _readings(directions: Sequence[Direction], part: Part) -> list[Readings]:
    """What a part holds of every layer."""
    found = []
    for d in directions:
        assert d.layer is not None
        pairs = [(part.arrays[f"{d.layer}.{name}.0"], part.arrays[f"{d.layer}.{name}.1"]) for name in _ARRAYS]
        found.append(Readings(d.layer, d.vectors[0], *pairs))
    return found


def verdict(asked: Plan, found: dict[str, list[Separation]]) -> str:
    """One sentence that the numbers support."""
    first, second = asked.contrast.names
    area, low, high = auc(*asked.contrast.lengths)
    if not low <= 0.5 <= high:
        return f"undecided: prompt length alone tells {first} from {second} (AUC {area:.2f})"
    if asked.seen:
        return "undecided: the direction was made from these very prompts, on which even noise separates"
    parts = []
    for source, layers in found.items():
        beyond = [
            f"higher on {name} in layer{'s' * (len(which) > 1)} {', '.join(which)}"
            for name, sign in ((first, 1), (second, -1))
            if (which := [str(row.layer) for row in layers if row.beyond and row.d[0] * sign > 0])
        ]
        parts.append(f"{' and '.join(beyond) or 'in no layer'} ({source})")
    return f"beyond every null the direction tells {first} from {second}: {'; '.join(parts)}"


def summarise(asked: Plan, found: dict[str, list[Separation]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Arms and rows of `store.results.SUMMARY`: prompt length, then per model and layer the direction and its nulls."""
    task = " / ".join(asked.contrast.names)
    lengths = asked.contrast.lengths
    roles = {LENGTH: "control"}
    rows = [_row(LENGTH, task, "", "auc", sum(map(len, lengths)), auc(*lengths), "score interval")]
    for at, layers in enumerate(found.values()):
        side = "against: " if at else ""
        for d, layer in zip(asked.directions, layers, strict=True):
            where = (f"{side}direction {d.id}", task, f"layer {layer.layer}")
            roles[where[0]] = "direction"
            labels = {"p": layer.p, "p_holm": layer.p_holm}
            method = f"score interval; p: {PERMUTATIONS} permutations of the labels, Holm over layers"
            rows.append(_row(*where, "auc", layer.n, layer.auc, method) | labels)
            rows.append(_row(*where, "auc_normalised", layer.n, layer.auc_normalised, "score interval"))
            method = f"distribution-free interval; p: {DRAWS} label-permuted directions, maxT over layers"
            directions = {"p": layer.p_direction, "p_holm": layer.p_max_t}
            rows.append(_row(*where, "d", layer.n, layer.d, method) | directions)
            for name, band in layer.bands.items():
                roles[side + name] = "control"
                for metric, interval in (("auc", band.auc), ("d", band.d)):
                    method = f"null band, {DRAWS} draws"
                    rows.append(_row(side + name, *where[1:], metric, layer.n, interval, method))
    return [{"arm": arm, "role": role} for arm, role in roles.items()], rows


def _row(
    arm: str, task: str, group: str, metric: str, n: int, interval: tuple[float, float, float], method: str
) -> dict[str, Any]:
    value, low, high = interval
    place = {"arm": arm, "task": task, "group": group, "metric": metric}
    return place | {"n": n, "value": value, "low": low, "high": high, "method": method}
