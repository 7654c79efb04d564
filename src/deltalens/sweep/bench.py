"""Arms of a pair on one running model: weights are swapped in, scored, and put back; every score is a part."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.checkpoint.identity import behaviour_identity
from deltalens.checkpoint.pair import Row as Tensor
from deltalens.edit.edit import from_record
from deltalens.edit.form import Form
from deltalens.edit.plan import Plan as Opened
from deltalens.edit.swap import overwrite, swap, swapped
from deltalens.errors import BadInput
from deltalens.evaluate.behaviour import completions, p_skip, p_think
from deltalens.evaluate.divergence import Reference, p_think_and_kl, reference_along, surprisals
from deltalens.evaluate.prompts import Prompts
from deltalens.evaluate.scores import Row, perplexity
from deltalens.evaluate.suite import REFERENCE_TOKENS, TEXT
from deltalens.model.generate import Decoding, generate_ids
from deltalens.model.load import load
from deltalens.store.engine import Progress, Task, run_tasks
from deltalens.store.experiment import workspace
from deltalens.store.parts import Part, finished_part, part_key
from deltalens.store.results import RESULTS
from deltalens.sweep.arms import Arm
from deltalens.sweep.pair import Pairing, first, opened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE, TUNED = "base", "tuned"
"""Names of the arms that are the two sides as they are."""

ENDS_VERSION = 1
"""Raised whenever a completion of a side could change for the same input."""

_SHARED = ("texts of", "generate")  # work on a side that is the same in every sweep of a pair

_PASSES = 20  # forward passes' worth of a completion, for the estimate of time left


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """An arm, and how the loaded tuned model becomes it for the length of a block.

    Attributes:
        arm: What it is.
        strength: Its place on its curve: λ, α or k.
        put: From the model to the block.
    """

    arm: Arm
    strength: float | None
    put: "Callable[[PreTrainedModel], AbstractContextManager[Any]]"


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Where points are scored.

    Attributes:
        pairing: The pair and its prompts.
        load: Gives the tuned model, loaded once, when the first part is missing.
        reference: Gives the base under the tuned side's config, read along its texts once; KL is taken from it.
        kl: Whether KL is taken: it needs the base as a second model in memory.
        own: Hash of everything but the arm that a score depends on.
        parts: Directory of finished parts.
        ends: The same two for completions of the sides, which other sweeps of the pair share.
        progress: Called after every part.
    """

    pairing: Pairing
    load: "Callable[[], PreTrainedModel]"
    reference: Callable[[tuple[tuple[int, ...], ...]], Reference]
    kl: bool
    own: str
    parts: Path
    ends: tuple[str, Path]
    progress: Callable[[Progress], None] | None


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What is known of one arm.

    Attributes:
        point: The arm.
        prompts: What it was scored on.
        probabilities: By measure, on every item.
        rows: Outcomes of completions, where it generated; of the first items, where not of all.
        ledger: The same on the other tasks, by task.
        perplexity: Of the neutral text, where the ledger was asked for.
    """

    point: Point
    prompts: Prompts
    probabilities: dict[str, list[float | None]]
    rows: list[Row] = field(default_factory=list)
    ledger: list[tuple[Prompts, list[Row]]] = field(default_factory=list)
    perplexity: Row | None = None

    @property
    def name(self) -> str:
        """Of its arm."""
        return self.point.arm.name

    @property
    def table(self) -> list[Row]:
        """Its rows of `store.results.RESULTS`; an item without completions has one, with probabilities alone."""
        items = self.prompts.items
        scored = {item.id: {m: v[i] for m, v in self.probabilities.items()} for i, item in enumerate(items)}
        written = {row["item"] for row in self.rows}
        rows = [*self.rows, *({"item": i.id, "group": i.group, "mode": "free"} for i in items if i.id not in written)]
        found = [
            self._labels(self.prompts) | row | (scored[row["item"]] if row["mode"] == "free" else {}) for row in rows
        ]
        return found + [self._labels(prompts) | row for prompts, own in self.ledger for row in own]

    def values(self, metric: str) -> list[float]:
        """One measure on every item."""
        return [v for v in self.probabilities[metric] if v is not None]

    def _labels(self, prompts: Prompts) -> Row:
        place = {"strength": self.point.strength, "task": prompts.task.name, "split": prompts.split}
        return dict.fromkeys(RESULTS.names) | self.point.arm.labels | place


def edited(name: str, role: str, edit: Opened, strength: float | None, norm: float | None = None) -> Point:
    """A point that is an edit as it stands in its file."""
    arm = Arm(name, role, edit.edit.record, norm_delta=norm)
    return Point(arm, strength, lambda model: swap(model, edit, side="tuned"))


def ends(pairing: Pairing) -> tuple[Point, Point]:
    """Both sides of a pair as they are."""
    base = opened(pairing, {"operator": "interpolate", "strength": 0.0})
    return edited(BASE, "baseline", base, 0.0, 0.0), Point(Arm(TUNED, "model"), None, lambda _: nullcontext())


def placed(arm: Arm, strength: float | None, base: Opened, made: Callable[[], Iterable[tuple[Tensor, Form]]]) -> Point:
    """A point that is the base with some tensors replaced by what no edit file says."""

    @contextmanager
    def put(model: "PreTrainedModel") -> Generator[None, None, None]:
        with swap(model, base, side="tuned"), swapped(model, made()):
            yield

    return Point(arm, strength, put)


@contextmanager
def bench(
    pairing: Pairing,
    recipe: dict[str, Any],
    out: Path | None,
    progress: Callable[[Progress], None] | None,
    command: str | None,
    kl: bool = True,
) -> Generator[Bench, None, None]:
    """The bench of one experiment; an interrupted one resumes by point.

    Args:
        pairing: The pair and its prompts.
        recipe: Name, version and settings of what is swept.
        out: Directory of the experiment; None keeps nothing.
        progress: Called after every point.
        command: The command line to record.
        kl: Whether KL is taken, which needs the base as a second model in memory.

    Raises:
        Refused: `out` holds something else.
    """
    asked, prompts = pairing.asked, pairing.prompts
    tasks = [p.task.name for p in (prompts, *pairing.ledger)]
    settings = asdict(asked.settings) | {"tasks": tasks, "temperature": asked.temperature, "kl": kl}
    settings |= {"generate": pairing.generate, "generated": pairing.generated, "prices": pairing.prices}
    del settings["batch_size"]  # no result depends on it
    others = [
        {"role": role, "source": c.source, "identity": behaviour_identity(c)} for role, c in pairing.others.items()
    ]
    record = {
        "kind": "sweep",
        **recipe,
        "models": [*({"source": c.source, "identity": behaviour_identity(c)} for c in asked.checkpoints), *others],
        "settings": settings,
        "metric": pairing.metric,
        "template": asked.chat.template_hash,
        "command": command,
    }
    asks = [
        sorted(asked.ends),
        asked.text,
        *([p.ids, [[i.id, i.answer, i.group] for i in p.items]] for p in (prompts, pairing.chosen_on, *pairing.ledger)),
    ]
    own = part_key({k: v for k, v in record.items() if k != "command"}, asks)
    decides = {k: v for k, v in settings.items() if k not in ("tasks", "generate", "prices", "kl")}
    sides = part_key(ENDS_VERSION, decides, record["models"][:2], record["template"], asks[0], asks[2])

    def fresh() -> "PreTrainedModel":
        return load(pairing.tuned, asked.settings.dtype, asked.settings.device)[0]

    @lru_cache(1)
    def reference(texts: tuple[tuple[int, ...], ...]) -> Reference:
        model = fresh()  # no copy of the other, which is edited when this is first asked for
        overwrite(model, opened(pairing, {"operator": "interpolate", "strength": 0.0}), side="tuned")
        return reference_along(model, prompts.ids["free"], texts, asked.settings.batch_size)

    with workspace(out, record) as parts:
        if pairing.shared is not None:
            try:
                pairing.shared.mkdir(exist_ok=True)
            except FileExistsError as problem:
                raise BadInput(f"{pairing.shared} is not a directory", f"rm {pairing.shared}") from problem
        both = sides, pairing.shared or parts
        yield Bench(pairing, lru_cache(1)(fresh), reference, kl, own, parts, both, progress)


def score(of: Bench, points: Sequence[Point], prompts: Prompts | None = None) -> list[Found]:
    """The probabilities of every point, on the test split with its KL from the base, or on given prompts without."""
    on, size = prompts or of.pairing.prompts, of.pairing.asked.settings.batch_size
    texts = tuple(map(tuple, _texts(of))) if of.kl and prompts is None and points else None

    def work(model: "PreTrainedModel") -> Row:
        skips = {"p_skip": p_skip(model, on, size)}
        if texts is None:
            return {"p_think": p_think(model, on, size), **skips}
        open_ids = None if on.chat.think is None else on.chat.think.open_ids
        thinks, kl = p_think_and_kl(model, of.reference(texts), open_ids, size)
        return {"p_think": thinks, **skips, "kl": kl}

    made = _done(of, points, f"score {on.task.name} {on.split}", 1, work)
    return [Found(point, on, row) for point, row in zip(points, made, strict=True)]


def generate(of: Bench, found: Sequence[Found], ledger: bool = False) -> list[Found]:
    """The same points with their completions, free and forced.

    Args:
        of: The bench.
        found: Points that were scored on the test split.
        ledger: Whether the other tasks and the neutral text are asked too, unless the pairing asks for no prices.
    """
    asked, pairing = of.pairing.asked, of.pairing

    def written(model: "PreTrainedModel", prompts: Prompts) -> list[Row]:
        decoding, size = asked.decoding(prompts.task), asked.settings.batch_size
        some = first(prompts, pairing.generated)
        modes = ("free", "forced") if prompts.task.measures == "accuracy" else ("free",)
        each = (completions(model, some, m, decoding, asked.settings.seeds, asked.ends, size)[0] for m in modes)
        return [row for rows in each for row in rows]

    def work(model: "PreTrainedModel") -> Row:
        return {"rows": written(model, pairing.prompts)}

    def prices(model: "PreTrainedModel") -> Row:
        text = perplexity(surprisals(model, pieces, asked.settings.batch_size)) if pieces else None
        return {"rows": [written(model, prompts) for prompts in pairing.ledger], "text": text}

    points, pieces = [f.point for f in found], asked.text[1]
    made = [
        replace(f, rows=row["rows"]) for f, row in zip(found, _done(of, points, "generate", _PASSES, work), strict=True)
    ]
    if not ledger or not pairing.prices:
        return made
    priced = _done(of, points, "generate other tasks", _PASSES * (1 + len(pairing.ledger)), prices)
    books = [list(zip(pairing.ledger, row["rows"], strict=True)) for row in priced]
    texts = [row["text"] and {"group": asked.text[0], "metric": "perplexity", **row["text"]} for row in priced]
    return [replace(f, ledger=b, perplexity=t) for f, b, t in zip(made, books, texts, strict=True)]


def once(of: Bench, name: str, identity: Sequence[Any], work: Callable[[], Part]) -> Part:
    """What some work leaves behind, now or on an earlier start.

    Args:
        of: The bench.
        name: Shown in progress.
        identity: What sets it apart from other work on this bench.
        work: Does it.
    """
    task = Task(name, part_key(of.own, *identity), 0, 1.0, work)
    run_tasks([task], of.parts, of.progress)
    return finished_part(of.parts, task.key)


def texts_of(found: Iterable[Found]) -> list[Row]:
    """Perplexities as rows of a summary."""
    return [{"arm": f.name, "task": TEXT, **f.perplexity} for f in found if f.perplexity is not None]


def _texts(of: Bench) -> list[list[int]]:
    """The base's greedy completions of the test split, along which KL is taken."""
    pairing = of.pairing
    prompts, asked = pairing.prompts, pairing.asked
    short = Decoding(min(asked.max_tokens(prompts.task), REFERENCE_TOKENS))

    def work(model: "PreTrainedModel") -> Row:
        size = asked.settings.batch_size
        return {"ids": generate_ids(model, prompts.ids["free"], short, ends=asked.ends, batch_size=size)}

    return _done(of, [ends(pairing)[0]], "texts of", _PASSES, work)[0]["ids"]


def _done(
    of: Bench, points: Sequence[Point], what: str, cost: int, work: "Callable[[PreTrainedModel], Row]"
) -> list[Row]:
    """What every point left behind, now or on an earlier start."""

    def done(point: Point) -> Part:
        model = of.load()
        with point.put(model):
            try:
                return Part(work(model), {})
            except BadInput as problem:  # such as NaN, of an arm that went too far
                raise BadInput(f"{point.arm.name}: {problem.error}", problem.fix) from problem

    placed = []
    for p in points:
        side = _side(of.pairing, p) if what in _SHARED else None
        own, folder = (of.own, of.parts) if side is None else of.ends
        identity = (p.arm.name, p.arm.edit) if side is None else (side,)
        placed.append((Task(p.arm.name, part_key(own, what, *identity), 0, float(cost), lambda p=p: done(p)), folder))
    for folder in dict.fromkeys(folder for _, folder in placed):
        run_tasks([task for task, where in placed if where == folder], folder, of.progress)
    return [finished_part(folder, task.key).row for task, folder in placed]


def _side(pairing: Pairing, point: Point) -> str | None:
    """Which side of the pair a point is, under whatever name; None where it is an edit."""
    edit = dict(point.arm.edit)
    if not edit:
        return TUNED if point.arm.name == TUNED else None
    whole = {"base": pairing.base, "tuned": pairing.tuned, "edit": [{"operator": "interpolate", "strength": 0.0}]}
    for name, strength in ((BASE, 0.0), (TUNED, 1.0)):
        whole["edit"][0]["strength"] = strength
        if edit == from_record(whole).record:
            return name
    return None
