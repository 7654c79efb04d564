"""What each step of an experiment does: one call of the function behind a verb, into a directory of its own."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.checkpoint.chat import Chat, read_chat
from deltalens.checkpoint.source import open_checkpoint
from deltalens.errors import BadInput, DeltalensError, Refused
from deltalens.evaluate.tasks.item import Task
from deltalens.evaluate.tasks.registry import can, defaults, task
from deltalens.experiment.config import Config, PairOf
from deltalens.store.engine import Progress

if TYPE_CHECKING:
    from deltalens.direction.compare import Comparison
    from deltalens.sweep.pair import Pairing

BANK = "direction.safetensors"
"""The thinking direction of every layer, in the directory of the experiment."""

SIDES = "parts"
"""Directory of completions of the two sides, which every sweep of the experiment uses."""

_SOME = 8
"""Prompts of each task by which tokenizers are compared."""

_FALLBACK = 4
"""k of `specific` where the step that chooses a rank is missing: LoX needs 3 to 6."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a step is given.

    Attributes:
        config: The experiment.
        exp: Its directory.
        place: What the step leaves behind: a directory or a file.
        command: The command line that repeats the step alone.
        progress: Told after every part.
        say: Told what a reader must know.
    """

    config: Config
    exp: Path
    place: Path
    command: str
    progress: Callable[[Progress], None] | None
    say: Callable[[str], None]

    @property
    def bank(self) -> str:
        """The bank of the thinking direction."""
        return str(self.exp / BANK)

    @property
    def rows(self) -> Path:
        """Where a step that is no experiment of its own leaves its rows of a summary."""
        return self.exp / "steps" / f"{self.place.stem}.parquet"


@lru_cache(4)
def comparable(config: Config) -> tuple[PairOf, ...]:
    """Control pairs whose weights can stand in the main base: its names and shapes, and the random start it came from.

    Raises:
        BadInput: A model cannot be opened.
    """
    from deltalens.checkpoint.pair import Pair

    found = []
    for pair in config.pairs:
        if pair.role not in ("main", "seed"):
            try:
                Pair.open(config.main.base, pair.tuned, headers_only=True)
            except Refused:
                continue
            found.append(pair)
    return tuple(found)


def sibling(config: Config) -> str | None:
    """The model of a comparable sibling pair that serves as a control of sweeps."""
    return next((pair.tuned for pair in comparable(config) if pair.role == "sibling"), None)


def root(config: Config) -> str | None:
    """Where the main base was itself fine-tuned from: the base of the ordinary fine-tuning that ends at it."""
    return next((pair.base for pair in config.of("sft") if pair.tuned == config.main.base), None)


def measured(work: Work, pair: PairOf) -> None:
    """The delta of one pair; controls draw no nulls."""
    from deltalens.checkpoint.pair import Pair
    from deltalens.spectrum.measure import measure_diff

    opened = Pair.open(pair.base, pair.tuned)
    for warning in opened.warnings:
        work.say(f"warning: {pair.name}: {warning}")
    config = work.config
    measure_diff(
        opened,
        work.place,
        top=config.top,
        context=config.context,
        nulls=nulls(config, pair),
        progress=work.progress,
        command=work.command,
    )


def nulls(config: Config, pair: PairOf) -> str:
    """Which nulls a pair draws."""
    return config.nulls if pair.role == "main" else "off"


def evaluated(work: Work) -> None:
    """What the main pair and every control's tuned model do; of few completions the pair alone."""
    from deltalens.evaluate.plan import plan
    from deltalens.evaluate.suite import evaluate

    asked = plan(models(work.config), work.config.evaluated)
    _tell(work, asked.notes)
    evaluate(asked, work.place, work.progress, work.command)


@lru_cache(4)
def models(config: Config) -> tuple[str, ...]:
    """The main pair, then the tuned models of controls whose tokenizer reads the prompts as the main one does.

    Of few completions the pair alone.
    """
    main = config.main.base, config.main.tuned
    if config.few:
        return main
    try:
        chat = chat_of(config.main.tuned)
        some = [item.prompt for task in tasks(config, chat) for item in task.items("test", _SOME, config.seeds[0])]
        known = [chat.encode(prompt) for prompt in some]
    except BadInput:  # no tokenizer, or no task that it can write: the step will say so
        return main
    found = list(main)
    for source in (pair.tuned for pair in config.pairs if pair.tuned not in main):
        try:
            other = chat_of(source)
        except BadInput:
            continue
        if source not in found and [other.encode(prompt) for prompt in some] == known:
            found.append(source)
    return tuple(found)


def chat_of(source: str) -> Chat:
    """Template and tokenizer of a model; of a hub repository no weight is downloaded for them."""
    return read_chat(open_checkpoint(source, headers_only=True))


def tasks(config: Config, chat: Chat) -> list[Task]:
    """The tasks that eval asks."""
    able = can(chat)
    return [task(name, able) for name in ((config.task,) if config.task else defaults(able))]


def directed(work: Work) -> None:
    """The thinking direction: tuned − base at the last prompt token of the extract split, in every layer."""
    from deltalens.direction.bank import write_bank
    from deltalens.methods.thinking import thinking_directions

    config, main = work.config, work.config.main
    write_bank(work.place, thinking_directions(main.base, main.tuned, config.seeds[0], config.dtype, config.device))


def probed(work: Work) -> None:
    """Whether the direction tells reasoning prompts from others, layer by layer, in both models."""
    from deltalens.methods.probe import Settings as Asked
    from deltalens.methods.probe import plan, probe

    config, main = work.config, work.config.main
    asked = Asked(
        main.tuned,
        work.bank,
        against=main.base,
        seed=config.seeds[0],
        dtype=config.dtype,
        device=config.device,
    )
    probe(plan(asked), work.place, work.progress, work.command)


def compared(work: Work) -> None:
    """Whether the direction is that of refusal, in the model of the safety pair or, without one, in the main base."""
    from deltalens.direction.bank import read_bank
    from deltalens.direction.compare import compare, overall
    from deltalens.methods.thinking import refusal_directions
    from deltalens.store.files import write_json

    config = work.config
    source = refusing(config)
    own = [d for d in read_bank(work.bank) if d.kind in ("difference", "samples")]
    other = refusal_directions(source, config.seeds[0], config.dtype, config.device)
    rows = compare(own, other, seed=config.seeds[0])
    if not rows:
        raise BadInput(
            f"no direction of {source} lives where one of {config.main.tuned} does", "a safety pair of one width"
        )
    told = {"model": source, "verdict": overall(rows), "rows": [asdict(row) for row in rows]}
    _store(work.rows, _overlaps(rows))
    write_json(work.place, told)


def refusing(config: Config) -> str:
    """The model whose refusal direction is asked for."""
    return next((pair.tuned for pair in comparable(config) if pair.role == "safety"), config.main.base)


def _overlaps(rows: "Sequence[Comparison]") -> list[dict[str, Any]]:
    """The comparisons as rows of a summary."""
    return [
        {
            "arm": f"{row.a} × {row.b}",
            "group": "" if row.layer is None else f"layer {row.layer}",
            "metric": "overlap_minus_null",
            "value": row.overlap - row.nulls[row.largest],
            "low": row.low,
            "high": row.high,
            "method": f"{row.verdict}; {row.largest} null",
            "p": row.p,
            "p_holm": row.p_holm,
        }
        for row in rows
    ]


def steered(work: Work, source: str, sign: float) -> None:
    """A model pushed along the direction, or against it."""
    from deltalens.methods.steer import Settings as Steering
    from deltalens.methods.steer import plan
    from deltalens.methods.steer_run import steer

    alphas = tuple(sign * alpha for alpha in work.config.alphas)
    config = work.config
    how = Steering(work.bank, alphas, generate=config.generate, generated=config.generated)
    asked = plan(source, how, config.swept)
    _tell(work, asked.notes)
    steer(asked, work.place, work.progress, work.command)


def swept(work: Work, name: str) -> None:
    """One recipe of `deltalens sweep`."""
    from deltalens.methods.recipes import RECIPES

    one = RECIPES[name]
    given = {"sibling": sibling(work.config)} if "sibling" in one.roles else {}
    if missing := [role for role in one.needs if given.get(role) is None]:
        raise BadInput(f"{name} needs a {missing[0]}", f'a pair of role "{missing[0]}" in the configuration')
    asked = _pairing(work, one.ends, given)
    work_of = getattr(one.load(), one.module)
    more = {"alone": work.config.parts} if name == "transition" else {}
    work_of(asked, out=work.place, progress=work.progress, command=work.command, kl=work.config.kl, **more)


def specifically(work: Work) -> None:
    """Δ_k of every comparable control in the main base, beside its own, at the rank that sufficed there."""
    from deltalens.methods.specific import specific

    others = [(pair.name, pair.role, pair.base, pair.tuned) for pair in comparable(work.config)]
    rank = chosen_rank(work.exp)
    step = {"operator": "truncate", "rank": rank}
    asked = _pairing(work, (step,), {"sibling": sibling(work.config)})
    specific(asked, rank, others, work.place, work.progress, work.command, work.config.kl)


def chosen_rank(exp: Path) -> int:
    """The rank at which Δ_k first reaches 90 % of its largest effect on the select split."""
    from deltalens.store.experiment import Experiment

    try:
        rows = Experiment.open(exp / "steps" / "rank").summary.to_pylist()
    except DeltalensError:
        return _FALLBACK
    found = (row["value"] for row in rows if row["arm"] == "Δ_k" and row["metric"] == "operating_point")
    return int(next(found, _FALLBACK))


def mapped(work: Work) -> None:
    """Every layer × kind × rank band of Δ, put in and left out alone."""
    from deltalens.methods.causal_map import causal_map

    asked = _pairing(work, (), {"sibling": sibling(work.config)})
    causal_map(asked, work.place, work.progress, work.command, work.config.kl, work.config.cells)


def decomposed(work: Work) -> None:
    """Root → main base → main tuned."""
    from deltalens.experiment.stages import stages
    from deltalens.store.files import write_json

    start, main = root(work.config), work.config.main
    assert start is not None
    found = stages(start, main.base, main.tuned)
    _store(work.rows, found.rows)
    write_json(work.place, asdict(found))


def related(work: Work) -> None:
    """Which deltas share their leading subspaces."""
    from deltalens.experiment.atlas import Member, atlas
    from deltalens.store.files import write_json
    from deltalens.store.run import Run

    runs = {pair: work.exp / "pairs" / pair.name for pair in work.config.pairs}
    members = [
        Member(pair.name, pair.role, Run.open(run)) for pair, run in runs.items() if (run / "run.json").is_file()
    ]
    found = atlas(members, work.config.seeds[0])
    _store(work.rows, found.rows)
    write_json(work.place, asdict(found))


def _pairing(work: Work, ends: Sequence[dict[str, Any]], others: dict[str, str | None]) -> "Pairing":
    from deltalens.sweep.pair import pairing

    config = work.config
    asked = pairing(config.main.base, config.main.tuned, config.swept, ends, others)
    _tell(work, asked.notes)
    return replace(
        asked,
        generate=config.generate,
        generated=config.generated,
        prices=config.ledger,
        shared=work.exp / SIDES,
    )


def _tell(work: Work, notes: Sequence[str]) -> None:
    for note in notes:
        work.say(f"note: {note}")


def _store(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    from deltalens.store.files import write_table
    from deltalens.store.results import SUMMARY

    write_table(path, list(rows), SUMMARY)
