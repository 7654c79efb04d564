"""`deltalens steer`: push a model along a direction, and see what that does beside what controls do."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from deltalens.cli.display import (
    Dtype,
    Generate,
    completed,
    err,
    estimate,
    invocation,
    measuring,
    out,
    table,
    target,
)
from deltalens.cli.evaluate import show_task, show_text
from deltalens.errors import printable

if TYPE_CHECKING:
    from deltalens.methods.steer import Plan
    from deltalens.methods.steer_run import Steered

_LEGEND = (
    "v: the direction; permuted: a difference of means of activations under permuted labels; isotropic: random; v of\n"
    "layer N: the same direction of a wrong layer. Controls have v's length and act at its place. Effects are changes\n"
    "from the baseline on the same items. * operating point: least strength of 90 % of the largest effect, chosen on\n"
    "the select split; all else is the test split. forced: the last prompt token is then that of the think tag. Where\n"
    "one prompt token is moved, perplexity is that of a text whose first token is moved. Broken: forced accuracy −.1,\n"
    "format failures or loops +.1, its interval excluding 0, or perplexity doubled."
)
_SHOWN = 600  # characters of an example


@dataclass(frozen=True, slots=True)
class Steer:
    """Steer a model along a direction: dose and response, operating point, controls and breaking point."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Directory, hub-id[@revision] or family:NAME."""
    direction: Annotated[str, tyro.conf.arg(metavar="BANK[#id]")]
    """A bank, one direction of it, or a glob such as 'BANK#*.probe': one direction of every layer."""
    alpha: tuple[float, ...] = ()
    """Strengths; by default 0.25 to 4 of the vector, 0.125 to 4 of mean ‖h‖, or shares up to 1 of what is ablated."""
    operator: Literal["add", "add_keep_norm", "ablate", "clamp", "ablate_subspace"] = "add"
    """What is done: add_keep_norm only turns, clamp sets the part along the direction, ablate takes a share."""
    unit: Literal["raw", "residual"] | None = None
    """raw: α multiplies the stored vector; residual: α is in units of mean ‖h‖ there; by default as the bank says."""
    site: str | None = None
    """Where: resid_pre, attn_out, resid_mid, mlp_out, resid_post; by default where the direction lives."""
    layers: tuple[int, ...] = ()
    """Only these layers of the bank."""
    select: str = "last"
    """Which tokens: last (of the prompt), prompt, all, an offset such as -3; all also moves what is generated."""
    task: str | None = None
    """What is asked; by default a task that thinking helps with."""
    n: int | None = None
    """Items of the test split; by default 200, or all that a smaller task has."""
    seed: tuple[int, ...] = (0,)
    """The first draws the items; sampling takes one completion per item and seed."""
    max_tokens: int | None = None
    """Longest completion; by default what the task needs on the family, 4096 elsewhere."""
    temperature: float = 0.0
    """Of decoding; 0 is greedy."""
    generate: Generate = "all"
    """Who completes: all strengths of the chosen curve; points: the operating point; few: nobody."""
    generated: int = 0
    """Items that are completed, the first of n; 0: all."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Keep every completion and number here; the same command resumes."""
    batch_size: int = 64
    """Rows at a time."""
    dtype: Dtype = "auto"
    """Of computation; auto: float32 on a CPU, as stored on a GPU."""
    device: str = "auto"
    """cpu or cuda; auto takes a GPU where there is one."""
    json: bool = False
    """Print the summary as JSON in place of the tables."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Steer, then print dose and response, the arms, what a claim rests on, and two completions."""
        from deltalens.evaluate.plan import Settings as Asked
        from deltalens.methods.steer import Settings, plan

        folder = target(self.out)
        asked = plan(
            self.model,
            Settings(
                self.direction,
                self.alpha,
                self.operator,
                self.unit,
                self.site,
                self.layers,
                self.select,
                self.generate,
                completed(self.generated),
            ),
            Asked(
                tasks=() if self.task is None else (self.task,),
                n=self.n,
                seeds=self.seed,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                batch_size=self.batch_size,
                dtype=self.dtype,
                device=self.device,
            ),
        )
        for note in asked.notes:
            err(printable(f"note: {note}"))
        from deltalens.methods.steer_run import steer  # loads torch: not before every mistake is found
        from deltalens.store.results import SUMMARY

        with measuring(self.quiet, "steer") as progress:
            found = steer(asked, folder, progress, invocation())
        if self.json:
            rows = [dict.fromkeys(SUMMARY.names) | row for row in found.summary]
            out(json.dumps(rows, indent=2, ensure_ascii=False))
            return 0
        show_doses(asked, found)
        show_arms(asked, found)
        show_claim(asked, found)
        show_examples(asked, found)
        out(_LEGEND)
        if folder is not None:
            out(printable(f"stored in {self.out}"))
        return 0


def show_doses(plan: "Plan", found: "Steered") -> None:
    """The grid: a line per layer and sign, a column per strength."""
    from deltalens.methods.steer import SHARES
    from deltalens.store.results import SELECT

    task = plan.chosen_on.task.name + SELECT
    values = {(r["arm"], r["metric"]): r for r in found.summary if r["task"] == task and not r["group"]}
    sizes = list(dict.fromkeys(abs(s) for s in plan.strengths))
    unit = "" if plan.settings.operator in SHARES else {"raw": " v", "residual": " ‖h‖"}[plan.directions[0].unit]
    for metric, name in ((plan.metric, plan.metric), ("kl", "KL, nats per token")):
        lines = []
        for curve in found.curves:
            cells = []
            for size in sizes:
                at = next((s for s in curve.strengths if abs(s) == size), None)
                row = None if at is None else values.get((f"layer {curve.layer}, {at:+g} v", metric))
                mark = "*" if at == curve.point and metric == plan.metric else ""
                cells.append("–" if row is None else f"{row['value']:.3f}{mark}")
            lines.append([f"{curve.layer}", "−v" if curve.strengths[0] < 0 else "+v", *cells])
        base = values.get(("baseline", metric))
        before = "" if base is None else f", baseline {base['value']:.3f}"
        out(printable(f"{name} on {len(plan.chosen_on.items)} select items of {plan.chosen_on.task.name}{before}"))
        table("", ["layer", "", *(f"{size:g}{unit}" for size in sizes)], lines, left=2)


def show_arms(plan: "Plan", found: "Steered") -> None:
    """Every arm of the test split, those with completions first."""
    rows = [r for r in found.summary if not r["group"] or r["metric"] == "perplexity"]
    rows = [r | {"arm": r["arm"] + " *" * (r["arm"] == found.point)} for r in rows]
    own = [r for r in rows if r["task"] == plan.test.task.name and r["metric"] not in _CLAIMS]
    generated = {r["arm"] for r in own if r["metric"] == "accuracy"}
    if generated:
        show_task(plan.test.task.name, plan.test.task.description, [r for r in own if r["arm"] in generated])
    show_text(plan.asked.text[0], rows)
    moved = [r for r in own if r.get("reference") == "baseline" and r["metric"] == plan.metric]
    level = {r["arm"]: r for r in own if r["metric"] == plan.metric and not r.get("reference")}
    moved = [r for r in moved if r["arm"] not in generated or r["arm"].rstrip(" *") in (found.point, *found.controls)]
    lines = [[r["arm"], f"{level[r['arm']]['value']:.4f}", estimate(r, "+.4f")] for r in moved]
    table(f"{found.point} beside its controls", ["arm", plan.metric, "effect"], lines, left=1)


_CLAIMS = {
    "effect_minus_largest_control": "|effect| less that of the largest control",
    "effect_minus_largest_random": "the same, of the random controls only",
    "operating_point": "operating point",
    "breaking_point": "breaking point",
}


def show_claim(plan: "Plan", found: "Steered") -> None:
    """What a claim rests on."""
    for row in found.summary:
        if row["metric"] not in _CLAIMS:
            continue
        what = row.get("reference") or row["method"]
        value = "none" if row["value"] is None else f"{row['value']:+g}"
        if row.get("reference"):
            value = estimate(row, "+.4f")
        out(printable(f"{_CLAIMS[row['metric']]}: {value} ({what})"))
    out("")


def show_examples(plan: "Plan", found: "Steered") -> None:
    """A completion of the baseline and of the operating point, of the first item on which they differ."""
    free = [r for r in found.rows if r["mode"] == "free" and r["split"] == "test" and r["text"] is not None]
    arms = ("baseline", found.point)
    texts: dict[str, dict[str, str]] = {arm: {r["item"]: r["text"] for r in free if r["arm"] == arm} for arm in arms}
    both = [i for i in plan.test.items if all(i.id in texts[arm] for arm in arms)]
    if not both:
        return
    item = next((i for i in both if texts[arms[0]][i.id] != texts[arms[1]][i.id]), both[0])
    for name, text in (("prompt", item.prompt), *((arm, texts[arm][item.id]) for arm in arms)):
        out(printable(f"{name}: {text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}"))
    out("")
