"""`deltalens sweep`: many edits of one pair, each scored on the same prompts, beside their controls."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from deltalens.cli.display import Dtype, err, invocation, measuring, number, out, table, target
from deltalens.errors import BadInput, printable

if TYPE_CHECKING:
    from deltalens.methods.functional_rank import FunctionalRank
    from deltalens.methods.pair import Pairing
    from deltalens.methods.transition import Transition

_SCORES = ("think_ratio", "accuracy", "forced_accuracy")
_TRANSITION = (
    "W_b + λΔ over every tensor; skip MLP, skip attention: those kinds stay at base. λ50: where the mean passes ½,\n"
    "by the greedy think ratio as soon as thinking is likelier than any other start. width: λ(p = .9) − λ(p = .1). J:\n"
    "largest share of the change of log-odds inside .2 of λ: .2 for a straight line, sharp from .6, smooth up to .4.\n"
    "Intervals are 99.4 % (1 − .05/8), bootstrap by item."
)
_RANK = (
    "Δ_k: the leading k triples of each of the seven linear kinds in the base, all else at base; / √e_k: stretched to\n"
    "the length of Δ; tuned − Δ_k: taken out of the tuned model. random U: the same σ and V, random left vectors;\n"
    "bottom k: the last k triples at the length of Δ_k. k of the controls is chosen on the select split. Functional\n"
    "rank: the least k within the tuned model's 95 % interval, 0 for the base. –: not generated there."
)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Sweep edits of a pair: where along λ thinking begins and how sharply, or at which rank it is all there."""

    base: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BASE")]
    """Directory, hub-id[@revision] or family:NAME."""
    tuned: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TUNED")]
    """Its tuned sibling."""
    recipe: Literal["transition", "rank"]
    """transition: interpolate from base to tuned; rank: put the leading part of the change into the base."""
    task: str | None = None
    """What is asked; by default a task that thinking helps with."""
    n: int | None = None
    """Items; by default 200, or all that a smaller task has."""
    seed: tuple[int, ...] = (0,)
    """The first draws the items; sampling takes one completion per item and seed."""
    points: int | None = None
    """How many λ from 0 to 1 a transition takes; by default 21, the fewest that a verdict may rest on."""
    max_tokens: int | None = None
    """Longest completion; by default what the task needs on the family, 4096 elsewhere."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Keep every completion and number here; the same command resumes."""
    batch_size: int = 64
    """Rows decoded together."""
    dtype: Dtype = "auto"
    """Of computation; auto: float32 on a CPU, as stored on a GPU."""
    device: str = "auto"
    """cpu or cuda; auto takes a GPU where there is one."""
    json: bool = False
    """Print the summary as JSON in place of the tables."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Sweep, then print the curve and what it comes to."""
        from deltalens.evaluate.plan import Settings

        where = target(self.out)
        settings = Settings(
            tasks=() if self.task is None else (self.task,),
            n=self.n,
            seeds=self.seed,
            max_tokens=self.max_tokens,
            batch_size=self.batch_size,
            dtype=self.dtype,
            device=self.device,
        )
        points = self._points()
        from deltalens.methods.pair import pairing

        asked = pairing(self.base, self.tuned, settings, self.recipe)
        for note in asked.notes:
            err(printable(f"note: {note}"))
        command = invocation()
        if self.recipe == "transition":
            from deltalens.methods.transition import transition  # loads torch: not before every mistake is found

            with measuring(self.quiet, "sweep") as progress:
                curve = transition(asked, points, where, progress, command)
            out(_plain(curve.summary)) if self.json else show_transition(asked, curve)
        else:
            from deltalens.methods.functional_rank import functional_rank

            with measuring(self.quiet, "sweep") as progress:
                ranks = functional_rank(asked, where, progress, command)
            out(_plain(ranks.summary)) if self.json else show_rank(asked, ranks)
        if self.out and not self.json:
            out(printable(f"stored in {self.out}"))
        return 0

    def _points(self) -> int:
        from deltalens.sweep.transition import POINTS

        if self.points is None:
            return POINTS
        if self.recipe != "transition":
            raise BadInput("--points are those of a transition", "--recipe transition")
        if self.points < POINTS:
            fix = f"--points {POINTS}"
            raise BadInput(f"--points {self.points}: a verdict on sharpness needs {POINTS} in [0, 1]", fix)
        return self.points


def show_transition(asked: "Pairing", found: "Transition") -> None:
    """A line per λ, then a line per curve, then the verdict."""
    from deltalens.methods.transition import CURVES, arm_name

    cells = _pooled(found.summary)
    lines = []
    for i, strength in enumerate(found.curves[0].lambdas):
        scores = [number(cells.get((arm_name("all", strength), metric)), ".3f") for metric in _SCORES]
        p = [f"{curve.p[i].mean():.4f}" for curve in found.curves]
        lines.append([f"{strength:.3g}", *p[:1], *scores, *p[1:]])
    metric = asked.metric
    heads = ["λ", metric, "think ratio", "accuracy", "forced", *(f"{metric}, {name}" for name in list(CURVES)[1:])]
    task = asked.prompts.task
    title = f"{task.name}: {asked.base} to {asked.tuned} (n = {len(asked.prompts.items)})"
    table(title, heads, lines, left=0)
    words = {f"lambda50_{metric}": f"λ50 of {metric}", f"width_{metric}": "width", "sharpness": "J"}
    words["lambda50_think_ratio"] = "λ50 of the greedy think ratio"
    lines = []
    for curve in found.curves:
        for row in curve.summary:
            why = row["method"] if row["value"] is None or row["metric"] == "sharpness" else ""
            lines.append([curve.name, words[row["metric"]], _with_interval(row), why])
    table("", ["what moves", "", "value", ""], lines, left=4)
    out(_TRANSITION)


def show_rank(asked: "Pairing", found: "FunctionalRank") -> None:
    """A line per arm, the functional ranks, and what a claim rests on."""
    cells = _pooled(found.summary)
    lines = []
    for arm in found.arms:
        name, edit = arm["arm"], json.loads(arm["edit"] or "{}")
        stretch = edit["edit"][0]["strength"] if "/ √e" in name else None
        scores = [number(cells.get((name, metric)), ".3f") for metric in (asked.metric, *_SCORES)]
        lines.append([name, number(cells.get((name, "energy")), ".3f"), number(stretch, ".3f"), *scores])
    heads = ["arm", "e_k", "1/√e_k", asked.metric, "think ratio", "accuracy", "forced"]
    table(f"{asked.prompts.task.name}: Δ_k of {asked.base} to {asked.tuned}", heads, lines, left=1)
    for row in found.summary:
        if row["metric"].startswith("functional_rank"):
            by = row["metric"].removeprefix("functional_rank").removeprefix("_") or f"{asked.metric} and accuracy"
            value = "none" if row["value"] is None else f"{row['value']}"
            out(f"functional rank by {by}: {value} ({row['method']})")
        if row["metric"] == "effect_minus_largest_control":
            out(f"{row['arm']}, |effect| less that of the largest control: {_with_interval(row)} ({row['reference']})")
    out("")
    out(_RANK)


def _plain(summary: list[dict[str, Any]]) -> str:
    return json.dumps(summary, indent=2, ensure_ascii=False)


def _pooled(summary: list[dict[str, Any]]) -> dict[tuple[str, str], float | None]:
    return {(r["arm"], r["metric"]): r["value"] for r in summary if not r["group"] and not r.get("reference")}


def _with_interval(row: dict[str, Any]) -> str:
    ends = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return number(row["value"], ".3f") + ends
