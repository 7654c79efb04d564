"""Run an experiment: every step once, what fails is recorded and the rest goes on, then one set of tables for all."""

import errno
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from time import perf_counter
from typing import Any

import deltalens
from deltalens.checkpoint.identity import behaviour_identity
from deltalens.checkpoint.source import open_checkpoint
from deltalens.errors import BadInput, DeltalensError, Refused
from deltalens.experiment.config import Config
from deltalens.experiment.evidence import REFUSAL
from deltalens.experiment.gather import gather
from deltalens.experiment.phases import PHASES, Step, steps_of
from deltalens.experiment.steps import Work
from deltalens.store.engine import Progress
from deltalens.store.experiment import RECORD, SCHEMA, Experiment
from deltalens.store.files import write_json
from deltalens.store.parts import part_key
from deltalens.store.run import Run
from deltalens.store.session import writing

_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors after which no other step can write either."""

DONE, MISSING, SKIPPED = "done", "missing", "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one step.

    Attributes:
        step: Which.
        status: `done`, `missing` or `skipped`.
        seconds: That it took, this time or the time it was done.
        error: Why it is not done.
        fix: What to do about it.
        full: Whether the disk was full.
    """

    step: Step
    status: str
    seconds: float = 0.0
    error: str | None = None
    fix: str | None = None
    full: bool = False


@dataclass(frozen=True, slots=True)
class Ran:
    """An experiment as far as it came.

    Attributes:
        out: Its directory.
        outcomes: Of every step, in order.
        problem: Why its tables could not be written.
    """

    out: Path
    outcomes: tuple[Outcome, ...]
    problem: Exception | None = None

    @property
    def missing(self) -> list[Outcome]:
        """Steps that were asked for and are not there."""
        return [outcome for outcome in self.outcomes if outcome.status == MISSING]


def run_all(
    config: Config,
    out: Path,
    progress: Callable[[str], AbstractContextManager[Callable[[Progress], None] | None]],
    say: Callable[[str], None],
    command: str,
    expected: Callable[[Step], float] = lambda _: 1.0,
) -> Ran:
    """Runs every step whose inputs have changed since it was last done.

    Args:
        config: The experiment.
        out: Its directory: new, empty, or an experiment about the same pair.
        progress: Gives the sink of one step's progress, by its name.
        say: Told which step begins, what it has to note, and what failed.
        command: The command line to record.
        expected: Seconds that a step should take, for the estimate of time left.

    Raises:
        BadInput: A model cannot be opened, or `out` not be written.
        Refused: `out` holds something else, or two sides are not comparable.
        KeyboardInterrupt: It was interrupted; the same call resumes.
    """
    steps = steps_of(config, out)
    sources = dict.fromkeys(source for pair in (config.main, *config.pairs) for source in (pair.base, pair.tuned))
    identities = {source: behaviour_identity(open_checkpoint(source)) for source in sources}
    record = {
        "schema": SCHEMA,
        "kind": "run",
        "config": config.record,
        "models": [{"source": source, "identity": found} for source, found in identities.items()],
        "settings": {key: value for key, value in config.record.items() if key not in ("pairs", "skip", "minutes")},
        "metric": _metric(config),
        "command": command,
    }
    with writing(out, RECORD):
        _same_pair(out, record)
        (out / "steps").mkdir(exist_ok=True)
        write_json(out / RECORD, record | {"status": "running", "missing": [], "steps": []})
        outcomes = list(_run(config, steps, identities, out, progress, say, command, expected))
        told = record | {"status": "complete", **_told(outcomes, out, command)}
        try:
            gather(out, [o.step for o in outcomes if o.status == DONE])
            write_json(out / RECORD, told)
        except (DeltalensError, OSError) as problem:  # the disk is full: what there is stays readable
            return Ran(out, tuple(outcomes), problem)
    return Ran(out, tuple(outcomes))


def _run(
    config: Config,
    steps: Sequence[Step],
    identities: dict[str, Any],
    out: Path,
    progress: Callable[[str], AbstractContextManager[Callable[[Progress], None] | None]],
    say: Callable[[str], None],
    command: str,
    expected: Callable[[Step], float],
) -> Iterator[Outcome]:
    """Every step in order; after a full disk none is tried."""
    keys: dict[str, str] = {}
    found: dict[str, Outcome] = {}
    told: set[str] = set()
    began, spent = perf_counter(), 0.0
    wanted = [step for step in steps if step.absent is None and step.name not in config.skip]
    left = sum(map(expected, wanted))

    def once(text: str) -> None:
        if text not in told:
            told.add(text)
            say(text)

    for step in steps:
        behind = [[keys[name], found[name].status] for name in (*step.needs, *step.after)]
        marker = out / "steps" / f"{step.name.replace('/', '-')}.key"
        earlier = _read(marker)
        # A step that never ran and will not needs no key: that of some would load their modules.
        keys[step.name] = _key(config, step, identities, behind) if earlier or step in wanted else SKIPPED
        damaged = earlier.get("done") and not _sound(out / step.place)
        if earlier and (damaged or earlier.get("key") != keys[step.name]):
            _wipe(out / step.place)  # also of other inputs: nothing may read it any more
        needed = next((name for name in step.needs if found[name].status != DONE), None)
        share = expected(step) if step in wanted else 0.0
        if earlier.get("key") == keys[step.name] and earlier.get("done") and (out / step.place).exists():
            outcome = Outcome(step, DONE, earlier["seconds"])
        elif step not in wanted:
            outcome = Outcome(step, SKIPPED, error=step.absent or "the configuration skips it")
        elif any(outcome.full for outcome in found.values()):
            outcome = Outcome(step, MISSING, error="the disk is full", fix="make room, then repeat the command")
        elif needed is not None:
            outcome = Outcome(step, MISSING, error=f"it needs {needed}, which is missing", fix=found[needed].fix)
        else:
            elapsed = perf_counter() - began
            later = f", about {_time(left * elapsed / spent)} left" if spent else ""
            say(f"[{wanted.index(step) + 1}/{len(wanted)}] {step.name}: {step.title} ({_time(elapsed)}{later})")
            with progress(step.name) as sink:
                work = Work(config, out, out / step.place, step.command(out, command), sink, once)
                outcome = _done(step, work, marker, keys[step.name])
            spent += share
            if outcome.error is not None:
                say(f"missing: {step.name}: {outcome.error}")
        left -= share
        found[step.name] = outcome
        yield outcome


def _done(step: Step, work: Work, marker: Path, key: str) -> Outcome:
    """One step, from what an interrupted start left of it."""
    began = perf_counter()
    try:
        write_json(marker, {"key": key, "done": False})
        work.place.parent.mkdir(exist_ok=True)
        step.run(work)
        seconds = perf_counter() - began
        write_json(marker, {"key": key, "done": True, "seconds": seconds})
        return Outcome(step, DONE, seconds)
    except DeltalensError as problem:
        cause = problem.__cause__
        full = isinstance(cause, OSError) and cause.errno in _FULL
        return Outcome(step, MISSING, perf_counter() - began, problem.error, problem.fix, full)
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        error = f"{where}{(problem.strerror or str(problem)).lower()}"
        return Outcome(step, MISSING, perf_counter() - began, error, "repeat the command", problem.errno in _FULL)


def _sound(place: Path) -> bool:
    """Whether what a step left behind can be read; what was damaged since is done again."""
    try:
        if (place / RECORD).is_file():
            found = Experiment.open(place)
            return bool(found.arms.num_columns and found.summary.num_columns)
        if (place / "run.json").is_file():
            Run.open(place)
    except DeltalensError:
        return False
    found = _read(place) if place.suffix == ".json" else {"rows": []}
    return bool(found) and (place.name != REFUSAL or isinstance(found.get("rows"), list))


def _wipe(place: Path) -> None:
    if place.is_dir():
        rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _key(config: Config, step: Step, identities: dict[str, Any], behind: list[list[str]]) -> str:
    """Everything that the numbers of a step depend on: also what became of the steps that it uses."""
    values = config.record
    own = [step.name, step.number, deltalens.__version__, {name: values[name] for name in step.uses}]
    known = {source: identities[source] for source in step.models}
    return part_key(own, known, behind)


def _same_pair(out: Path, record: dict[str, Any]) -> None:
    """Refuses to put another question where an experiment lies; other settings or controls are the same question."""
    earlier = _read(out / RECORD)
    if not earlier:
        return
    if earlier.get("kind") != record["kind"]:
        raise Refused(f"{out} holds a result of deltalens {earlier.get('kind')}", "--out NEW")
    old, new = ([model["source"] for model in one["models"][:2]] for one in (earlier, record))
    if old != new:
        raise Refused(f"{out} is about {' → '.join(old)}, not {' → '.join(new)}", "--out NEW")


def _read(path: Path) -> dict[str, Any]:
    """A small JSON file; empty where there is none or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _metric(config: Config) -> str | None:
    """`p_think` or `p_skip`; None where the format of the main pair knows no thinking, or has no format."""
    from deltalens.checkpoint.chat import read_chat

    try:
        think = read_chat(open_checkpoint(config.main.tuned)).think
    except BadInput:
        return None
    return None if think is None else "p_skip" if think.opened_by_template else "p_think"


def _told(outcomes: Sequence[Outcome], out: Path, command: str) -> dict[str, Any]:
    """What the record says of every step."""
    missing = [{"step": o.step.name, "error": o.error, "fix": o.fix} for o in outcomes if o.status == MISSING]
    steps = [
        {
            "name": o.step.name,
            "phase": PHASES[o.step.phase],
            "title": o.step.title,
            "status": o.status,
            "error": o.error,
            "seconds": o.seconds,
            "command": o.step.command(out, command),
        }
        for o in outcomes
    ]
    return {"missing": missing, "steps": steps}


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
