"""`deltalens run`: the whole experiment, and a page that says what was found and what was not."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from deltalens.cli.display import duration, err, invocation, measuring, out, say, size, table, target
from deltalens.errors import BadInput, DeltalensError, printable

if TYPE_CHECKING:
    from deltalens.experiment.budget import Scale
    from deltalens.experiment.config import Config
    from deltalens.experiment.run import Ran
    from deltalens.experiment.verdicts import Answer

_INCOMPLETE = 3
"""Exit code where something that was asked for is missing."""


@dataclass(frozen=True, slots=True)
class Run:
    """What reasoning training changed, where, whether it is causal, and what it is not: every step, one page."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="BASE TUNED")] = ()
    """The pair in question (directory, hub-id[@revision] or family:NAME); or none, with --config."""
    out: Annotated[str | None, tyro.conf.arg(metavar="EXP")] = None
    """Directory of the result; the same command resumes, other settings repeat only what depends on them."""
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML: control pairs and settings; every key is in experiment/config.default.toml of the package."""
    minutes: float | None = None
    """Leave out what fits least, until the rest takes no longer; --dry-run says what."""
    dry_run: bool = False
    """Say what would run, with the time and memory it would take, and run nothing."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Run every step, then print the verdicts and where the page is."""
        from deltalens.experiment.config import default, read_config, shortened

        if (self.config is None) == (not self.sources) or (self.sources and len(self.sources) != 2):
            raise BadInput("run takes a pair, or a configuration that names it", "deltalens run BASE TUNED --out EXP")
        config = read_config(self.config) if self.config is not None else default(*self.sources)
        where = target(self.out)
        if where is None and not self.dry_run:
            raise BadInput("run keeps what it finds", "--out EXP")
        return carry_out(shortened(config, self.minutes), where or Path("EXP"), self.dry_run, self.quiet)


def carry_out(config: "Config", where: Path, dry_run: bool, quiet: bool) -> int:
    """Plan an experiment, and unless it is only asked what it takes, run it; returns the exit code."""
    from deltalens.experiment import budget
    from deltalens.experiment.phases import Step, steps_of

    steps = steps_of(config, where)
    models = len(next(step.models for step in steps if step.name == "eval"))
    of = budget.scale(config)
    if config.minutes and not dry_run:
        of = budget.timed(config, of)
    config, dropped = budget.fitted(config, of, steps, models)
    for words in dropped:
        err(printable(f"to fit into {config.minutes:g} minutes: {words}"))
    if dry_run:
        show_plan(config, of, steps_of(config, where), models)
        return 0
    from deltalens.experiment.run import run_all

    def expected(step: Step) -> float:
        return budget.cost(config, of, step, models).seconds

    ran = run_all(config, where, partial(measuring, quiet), partial(say, quiet), invocation(), expected)
    return finish(ran)


def finish(ran: "Ran") -> int:
    """Verdicts, the pages, and what is missing; a full disk keeps none of it from being said."""
    from deltalens.experiment.evidence import notes

    problem = ran.problem
    try:
        show_verdicts(write_pages(ran.out))
        for text in notes(ran.out):
            err(printable(f"warning: {text}"))
        out(printable(f"the page: {(ran.out / 'report.html').resolve()}"))
    except (DeltalensError, OSError) as failed:
        problem = problem or failed
    missing = ran.missing
    told, fix = [], "make room, then repeat the command; what is done is kept"
    if missing:
        named, first = ", ".join(outcome.step.name for outcome in missing), missing[0]
        told.append(f"missing: {named} ({first.step.name}: {first.error})")
        fix = first.fix or "mend it, then repeat the command; what is done is kept"
    if problem:
        told.append(getattr(problem, "error", str(problem)))
        fix = fix if missing else getattr(problem, "fix", None) or fix
    if told:
        err(printable(f"error: {'; '.join(told)}"))
        err(printable(f"fix: {fix}"))
    return _INCOMPLETE if told else 0


def write_pages(exp: Path) -> "list[Answer]":
    """`verdicts.json`, `spectra.html` and `report.html`; returns the answers."""
    from deltalens.experiment.claims import claims
    from deltalens.experiment.evidence import pairs_of
    from deltalens.experiment.verdicts import verdicts, write_verdicts
    from deltalens.report.page import RUNS, write_page
    from deltalens.report.run_page import write_run_page
    from deltalens.store.run import Run as Measured

    answers = verdicts(exp)
    write_verdicts(exp, answers, claims(exp))
    main, *others = (exp / "pairs" / name for name in pairs_of(exp))
    beside = [run for run in others if _complete(run)][: RUNS - 1]  # more cannot be told apart on one page
    runs = [Measured.open(run) for run in (*beside, main) if _complete(run)]
    if runs:
        write_page(runs, exp / "spectra.html")  # the last is the one in question
    write_run_page(exp, exp / "report.html")
    return answers


def _complete(run: Path) -> bool:
    from deltalens.store.run import read_record

    record = read_record(run)
    return record is not None and record["status"] == "complete"


def show_verdicts(answers: "Sequence[Answer]") -> None:
    """A line per question."""
    table("", ["question", "verdict", "why"], [[one.question, one.word, one.why] for one in answers], left=3)


def show_plan(config: "Config", of: "Scale", steps: "Sequence", models: int) -> None:
    """A line per step: passes, arms, completions, time and memory, or why it is left out."""
    from deltalens.experiment import budget
    from deltalens.experiment.phases import PHASES

    lines, total, most, arms = [], 0.0, 0.0, 0
    for step in steps:
        takes = budget.cost(config, of, step, models)
        reason = step.absent or ("skipped" if step.name in config.skip else of.lacking if budget.asks(step) else None)
        if reason is None:
            total, most, arms = total + takes.seconds, max(most, takes.bytes), arms + takes.arms
        counts = [f"{takes.passes:.0f}", f"{takes.arms}", f"{takes.completions:.0f}"]
        counts += [duration(takes.seconds), size(takes.bytes)]
        lines.append(
            [
                f"{step.phase} {PHASES[step.phase]}",
                step.name,
                reason or step.title,
                *(counts if reason is None else ["–"] * 5),
            ]
        )
    columns = ["phase", "step", "what", "passes", "arms", "completions", "time", "memory"]
    table(f"{config.main.base} → {config.main.tuned}, n = {config.n}", columns, lines, left=3)
    out(f"in all about {duration(total)}, at most {size(most)} of memory; estimated from headers and prompts.")
    out(f"At most {arms} arms write completions, of {config.completed} items each, free and forced.")
    out("passes: forward passes over all items; completions: once for each of these arms and task.")
