"""The `deltalens` command: verbs, exit codes, and errors as `error:` and `fix:` lines."""

import contextlib
import io
import os
import re
import signal
import sys
from typing import Annotated, Any

import tyro

from deltalens.cli.compare import Compare
from deltalens.cli.cut import Cut
from deltalens.cli.demo import Demo
from deltalens.cli.directions import Activations, Weights
from deltalens.cli.display import err
from deltalens.cli.edit import Edit
from deltalens.cli.evaluate import Eval
from deltalens.cli.family import Card, List, Path, Train
from deltalens.cli.measure import Measure
from deltalens.cli.plan import PlanCommand
from deltalens.cli.probe import Probe
from deltalens.cli.report import Report
from deltalens.cli.run import Run
from deltalens.cli.steer import Steer
from deltalens.cli.sweep import Sweep
from deltalens.errors import DeltalensError, printable

_Family = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Path, tyro.conf.subcommand("path")]
    | Annotated[Card, tyro.conf.subcommand("card")]
    | Annotated[Train, tyro.conf.subcommand("train")]
)
_Directions = (
    Annotated[Weights, tyro.conf.subcommand("weights")] | Annotated[Activations, tyro.conf.subcommand("activations")]
)
_Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[PlanCommand, tyro.conf.subcommand("plan")]
    | Annotated[Measure, tyro.conf.subcommand("measure")]
    | Annotated[
        _Directions, tyro.conf.subcommand("directions", description="Banks of directions from weights or activations.")
    ]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Probe, tyro.conf.subcommand("probe")]
    | Annotated[Steer, tyro.conf.subcommand("steer")]
    | Annotated[Cut, tyro.conf.subcommand("cut")]
    | Annotated[Edit, tyro.conf.subcommand("edit")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[_Family, tyro.conf.subcommand("family", description="The embedded checkpoints.")]
)
_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 2 bad input, 3 refused, 130 interrupted, 1 a bug."""
    command = None
    try:
        command = _parse(argv)
        code = command.run()
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk or a closed pipe shows here, not after we said that all went well
        return code
    except DeltalensError as problem:
        return _fail(problem.error, problem.fix, problem.exit_code)
    except KeyboardInterrupt:
        resumes = isinstance(command, Measure | Run | Demo | Eval | Probe | Steer | Sweep) and command.out is not None
        err("\ninterrupted" + ("; repeat the command to go on where it stopped" if resumes else ""))
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RecursionError:
        return _fail("the input is nested too deeply", None, 2)
    except OSError as problem:  # what the system refuses is never a bug of ours
        where = f"{problem.filename}: " if problem.filename else ""
        return _fail(f"{where}{(problem.strerror or str(problem)).lower()}", None, 2)


def _fail(error: str, fix: str | None, code: int) -> int:
    err(f"error: {printable(error)}")
    if fix:
        err(f"fix: {printable(fix)}")
    return code


def _parse(argv: list[str] | None) -> Any:
    """The command that the arguments name; bad usage ends in two lines, not in a box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                _Command,
                prog="deltalens",
                description="What reasoning training changed in the weights, matrix by matrix, above its noise floor.",
                args=argv,
                config=_STYLE,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        error, fix = _usage(said.getvalue())
        raise SystemExit(_fail(error, fix, 2)) from None


def _usage(box: str) -> tuple[str, str]:
    """The error and the fix in one of tyro's boxes: a title, then sections between rules, details indented twice."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    sections: list[list[str]] = [[]]
    for line in text.splitlines()[1:-1]:
        inside = line.strip().strip("│")
        if set(inside.strip()) <= {"─"}:
            sections.append([])
        elif not inside.startswith(" " * 9):  # the help text of an argument
            sections[-1].append(inside.strip())
    error = " ".join(sections[0]) or "bad usage"
    more = " ".join(sections[-1])
    helped = more[more.index("deltalens") :] if "deltalens" in more else "deltalens --help"
    hints = [" ".join(section).removeprefix("Argument helptext: ") for section in sections[1:-1]]
    fix = " ".join([*hints, f"({helped})"]) if hints else helped
    return error[:1].lower() + error[1:], fix[:1].lower() + fix[1:]


def entry() -> None:
    """The console script, once everything is loaded."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal gets escapes, not a traceback
    sys.exit(main())
