"""`deltalens sweep`: many edits of one pair, each scored on the same prompts, beside their controls."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from deltalens.cli.display import Dtype, Generate, completed, err, invocation, measuring, out, target
from deltalens.cli.edit import bank_beside, with_banks
from deltalens.cli.sweep_tables import SHOWN, show_curves
from deltalens.errors import BadInput, printable

if TYPE_CHECKING:
    from deltalens.evaluate.plan import Settings
    from deltalens.sweep.curves import Swept
    from deltalens.sweep.pair import Pairing

Recipe = Literal["transition", "rank", "lox-reasoning", "spectrum-behaviour", "direct-pair", "contrast", "negate"]
_ROLES = ("sibling", "further", "parent")


@dataclass(frozen=True, slots=True)
class Sweep:
    """Sweep edits of a pair: a published recipe, or an edit file over a grid of strengths, ranks, layers and kinds."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="BASE TUNED|SPEC.toml")]
    """A pair (directory, hub-id[@revision] or family:NAME) with --recipe, or an edit file with --grid."""
    recipe: Recipe | None = None
    """transition: interpolate; rank: least sufficient rank; all are described in docs/behaviour.md, §8."""
    grid: tuple[str, ...] = ()
    """Values of a field of an edit file, as TOML: 'strength = [0.5, 1]' 'layers = ["0-1", "2-3"]' '2.rank = [1, 4]'."""
    adaptive: bool = False
    """Add strengths of a grid where thinking jumps between neighbours."""
    sibling: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """A fine-tune of the same kind that does not think: a control; θ⁻ of contrast."""
    further: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """A model fine-tuned from TUNED: lox-reasoning asks how much of the leading part it keeps."""
    parent: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """Another candidate base of TUNED: direct-pair says which of the two is nearer."""
    task: tuple[str, ...] = ()
    """What is asked; the first is swept, by default one that thinking helps with, the others are the price."""
    n: int | None = None
    """Items; by default 200 (direct-pair: 20), or all that a smaller task has."""
    seed: tuple[int, ...] = (0,)
    """The first draws the items; sampling takes one completion per item and seed."""
    points: int | None = None
    """How many λ from 0 to 1 a transition takes; by default 21, the fewest that a verdict may rest on."""
    beyond: float = 0.0
    """How far a transition goes on below λ = 0 and above λ = 1."""
    parts: bool = True
    """--no-parts: leave out the transitions of single kinds and bands of layers."""
    max_tokens: int | None = None
    """Longest completion; by default what the task needs on the family, 4096 elsewhere."""
    temperature: float = 0.0
    """Of decoding; 0 is greedy, at any other the choice verdict is undecided."""
    generate: Generate = "all"
    """Who completes: every operating point and largest control; points: fewer of many alike; few: almost nobody."""
    generated: int = 0
    """Items that are completed, the first of n; 0: all."""
    kl: bool = True
    """--no-kl: leave out the KL from the base, which needs the base as a second model in memory."""
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
        """Sweep, then print every curve and what it comes to."""
        where = target(self.out)
        if self.recipe is None:
            asked, work, show = self._over_grid()
        else:
            asked, work, show = self._of_recipe(self.recipe)
        _apart(asked)
        for note in asked.notes:
            err(printable(f"note: {note}"))
        with measuring(self.quiet, "sweep") as progress:
            found = work(where, progress, invocation())
        if self.json:
            out(json.dumps(found.summary, indent=2, ensure_ascii=False))
        else:
            show(asked, found)
            if self.out:
                out(printable(f"stored in {self.out}; its page: deltalens report {self.out}"))
        return 0

    def _settings(self) -> "Settings":
        from deltalens.evaluate.plan import Settings

        return Settings(
            tasks=self.task,
            n=self.n,
            seeds=self.seed,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            batch_size=self.batch_size,
            dtype=self.dtype,
            device=self.device,
        )

    def _of_recipe(self, name: Recipe) -> "tuple[Pairing, Callable[..., Any], Callable[..., None]]":
        from deltalens.methods.recipes import recipe
        from deltalens.sweep.pair import pairing

        if len(self.sources) != 2:
            raise BadInput(
                f"a recipe is about a pair, {len(self.sources)} models are named", "--recipe NAME BASE TUNED"
            )
        if self.grid or self.adaptive:
            raise BadInput("--grid and --adaptive belong to an edit file", "deltalens sweep SPEC.toml --grid …")
        if name != "transition" and (self.points is not None or self.beyond or not self.parts):
            raise BadInput("--points, --beyond and --no-parts are those of a transition", "--recipe transition")
        given = {role: getattr(self, role) for role in _ROLES}
        one = recipe(name, given)
        more = {"points": self._points(), "beyond": self._beyond(), "alone": self.parts} if name == "transition" else {}
        settings = self._settings()
        if settings.n is None:
            settings = replace(settings, n=one.n)
        asked = self._writes(pairing(*self.sources, settings, one.ends, given))
        module = one.load()  # loads torch: not before every mistake is found

        def work(where: Path | None, progress: Any, command: str) -> Any:
            return getattr(module, one.module)(asked, out=where, progress=progress, command=command, kl=self.kl, **more)

        def show(asked: "Pairing", found: Any) -> None:
            SHOWN.get(name, show_curves)(asked, found)
            out(module.LEGEND)

        return asked, work, show

    def _over_grid(self) -> "tuple[Pairing, Callable[..., Any], Callable[..., None]]":
        from deltalens.edit.edit import from_record, read_record
        from deltalens.methods.grid import LEGEND, edits, read_grid
        from deltalens.sweep.pair import pairing

        if len(self.sources) != 1:
            raise BadInput(
                "a sweep needs a recipe, or one edit file", "--recipe NAME BASE TUNED, or SPEC.toml --grid …"
            )
        if self.points is not None or self.beyond or self.further or self.parent:
            raise BadInput("--points, --beyond, --further and --parent belong to recipes", "without them")
        record, folder = read_record(self.sources[0]), Path(self.sources[0]).parent
        edit = with_banks(from_record({key: value for key, value in record.items() if key != "grid"}), folder)
        varied = read_grid(self.grid, record)
        for field, values in varied.items():
            if field[1] == "direction":
                varied[field] = [bank_beside(v, folder) if isinstance(v, str) else v for v in values]
        if edit.tuned is None:
            raise BadInput("a sweep measures an edit against a pair, the edit has no tuned side", 'tuned = "…"')
        edits(edit, varied, self.adaptive)  # their mistakes come before those of the models
        asked = self._writes(pairing(edit.base, edit.tuned, self._settings(), others={"sibling": self.sibling}))
        from deltalens.methods.grid_run import grid

        def work(where: Path | None, progress: Any, command: str) -> "Swept":
            return grid(asked, edit, varied, self.adaptive, where, progress, command, self.kl)

        def show(asked: "Pairing", found: "Swept") -> None:
            show_curves(asked, found)
            out(LEGEND)

        return asked, work, show

    def _writes(self, asked: "Pairing") -> "Pairing":
        return replace(asked, generate=self.generate, generated=completed(self.generated))

    def _points(self) -> int:
        from deltalens.sweep.transition import POINTS

        if self.points is None:
            return POINTS
        if self.points < POINTS:
            fix = f"--points {POINTS}"
            raise BadInput(f"--points {self.points}: a verdict on sharpness needs {POINTS} in [0, 1]", fix)
        return self.points

    def _beyond(self) -> float:
        if not 0 <= self.beyond <= 4:
            raise BadInput(f"--beyond {self.beyond} is not possible", "--beyond 0.5, at most 4")
        return self.beyond


def _apart(asked: "Pairing") -> None:
    """Refuses a further model that is one of the pair: a control that is the edit, or a difference that is nothing."""
    from deltalens.checkpoint.identity import identity

    sides = [identity(side) for side in asked.asked.checkpoints]
    for role, other in asked.others.items():
        if identity(other) in sides:
            raise BadInput(f"--{role} {other.source} has the weights of a side of the pair", f"--{role} ANOTHER")
