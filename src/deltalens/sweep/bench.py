"""Arms of a pair on one running model: weights are swapped in, scored, and put back; every score is a part."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.checkpoint.identity import behaviour_identity
from deltalens.checkpoint.pair import Row as Tensor
from deltalens.edit.form import Form
from deltalens.edit.plan import Plan as Opened
from deltalens.edit.swap import swap, swapped
from deltalens.evaluate.behaviour import completions, p_skip, p_think
from deltalens.evaluate.prompts import Prompts
from deltalens.evaluate.scores import Row
from deltalens.methods.pair import Pairing
from deltalens.model.load import load
from deltalens.store.engine import Progress, Task, run_tasks
from deltalens.store.experiment import workspace
from deltalens.store.parts import Part, finished_part, part_key
from deltalens.store.results import RESULTS
from deltalens.sweep.arms import Arm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PASSES = 20  # forward passes' worth of a completion, for the estimate of time left


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """An arm, and how the loaded tuned model becomes it for the length of a block.

    Attributes:
        arm: What it is.
        strength: λ or k, for its rows.
        put: From the model to the block.
    """

    arm: Arm
    strength: float | None
    put: "Callable[[PreTrainedModel], AbstractContextManager[None]]"


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Where points are scored.

    Attributes:
        pairing: The pair and its prompts.
        load: Gives the tuned model, loaded once, when the first part is missing.
        own: Hash of everything but the arm that a score depends on.
        parts: Directory of finished parts.
        progress: Called after every part.
    """

    pairing: Pairing
    load: "Callable[[], PreTrainedModel]"
    own: str
    parts: Path
    progress: Callable[[Progress], None] | None


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What is known of one arm: its probabilities on every item, and rows of completions where it generated."""

    point: Point
    probabilities: dict[str, list[float | None]]
    rows: list[Row] = field(default_factory=list)

    def table(self, pairing: Pairing) -> list[Row]:
        """Its rows of `store.results.RESULTS`; without completions one per item, with probabilities alone."""
        arm, prompts = self.point.arm, pairing.prompts
        common = dict.fromkeys(RESULTS.names) | arm.labels | {"strength": self.point.strength}
        common |= {"task": prompts.task.name, "split": prompts.split}
        scored = {item.id: {m: v[i] for m, v in self.probabilities.items()} for i, item in enumerate(prompts.items)}
        if not self.rows:
            return [common | {"item": i.id, "group": i.group, "mode": "free"} | scored[i.id] for i in prompts.items]
        return [common | row | (scored[row["item"]] if row["mode"] == "free" else {}) for row in self.rows]


def edited(name: str, role: str, edit: Opened, strength: float | None, norm: float | None = None) -> Point:
    """A point that is an edit as it stands in its file."""
    arm = Arm(name, role, edit.edit.record, norm_delta=norm)
    return Point(arm, strength, lambda model: swap(model, edit, side="tuned"))


def untouched(name: str) -> Point:
    """The tuned model itself."""
    return Point(Arm(name, "model"), None, lambda _: nullcontext())


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
) -> Generator[Bench, None, None]:
    """The bench of one experiment; an interrupted one resumes by point.

    Args:
        pairing: The pair and its prompts.
        recipe: Name, version and settings of what is swept.
        out: Directory of the experiment; None keeps nothing.
        progress: Called after every point.
        command: The command line to record.

    Raises:
        Refused: `out` holds something else.
    """
    asked, prompts = pairing.asked, pairing.prompts
    settings = asdict(asked.settings) | {"tasks": [prompts.task.name], "temperature": asked.temperature}
    del settings["batch_size"]  # no result depends on it
    record = {
        "kind": "sweep",
        **recipe,
        "models": [{"source": c.source, "identity": behaviour_identity(c)} for c in asked.checkpoints],
        "settings": settings,
        "metric": pairing.metric,
        "template": asked.chat.template_hash,
        "command": command,
    }
    asks = [
        sorted(asked.ends),
        *([p.ids, [[i.id, i.answer, i.group] for i in p.items]] for p in (prompts, pairing.chosen_on)),
    ]
    own = part_key({k: v for k, v in record.items() if k != "command"}, asks)
    ready = lru_cache(1)(lambda: load(pairing.tuned, asked.settings.dtype, asked.settings.device)[0])
    with workspace(out, record) as parts:
        yield Bench(pairing, ready, own, parts, progress)


def score(of: Bench, points: Sequence[Point], prompts: Prompts | None = None) -> list[Found]:
    """The probabilities of every point on the test split or on given prompts: one forward pass per item."""
    on, size = prompts or of.pairing.prompts, of.pairing.asked.settings.batch_size

    def work(model: "PreTrainedModel") -> Row:
        return {"p_think": p_think(model, on, size), "p_skip": p_skip(model, on, size)}

    return [Found(p, row) for p, row in zip(points, _done(of, points, f"score {on.split}", 1, work), strict=True)]


def generate(of: Bench, found: Sequence[Found]) -> list[Found]:
    """The same points with their completions, free and forced."""
    asked, prompts = of.pairing.asked, of.pairing.prompts
    decoding = asked.decoding(prompts.task)
    modes = ("free", "forced") if prompts.task.measures == "accuracy" else ("free",)

    def work(model: "PreTrainedModel") -> Row:
        each = (
            completions(model, prompts, mode, decoding, asked.settings.seeds, asked.ends, asked.settings.batch_size)[0]
            for mode in modes
        )
        return {"rows": [row for rows in each for row in rows]}

    made = _done(of, [f.point for f in found], "generate", _PASSES, work)
    return [Found(f.point, f.probabilities, row["rows"]) for f, row in zip(found, made, strict=True)]


def _done(
    of: Bench, points: Sequence[Point], what: str, cost: int, work: "Callable[[PreTrainedModel], Row]"
) -> list[Row]:
    """What every point left behind, now or on an earlier start."""

    def done(point: Point) -> Part:
        model = of.load()
        with point.put(model):
            return Part(work(model), {})

    tasks = [
        Task(p.arm.name, part_key(of.own, what, p.arm.name, p.arm.edit), 0, float(cost), lambda p=p: done(p))
        for p in points
    ]
    run_tasks(tasks, of.parts, of.progress)
    return [finished_part(of.parts, task.key).row for task in tasks]
