"""What verbs share: flags, tables on stdout, progress on stderr, and no control characters from anyone's file."""

import io
import shlex
import shutil
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from deltalens.errors import BadInput, printable

if TYPE_CHECKING:
    from deltalens.checkpoint.chat import Chat
    from deltalens.store.engine import Progress

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
"""The flag of every verb that runs a model."""

Generate = Literal["all", "points", "few"]
"""The flag of every verb that intervenes."""

_TABLE_WIDTH = 200
_PLAIN_EVERY = 10.0
"""Seconds between progress lines where stderr is no terminal."""


def out(text: str) -> None:
    """One line on stdout, where there is one."""
    if sys.stdout is not None:
        sys.stdout.write(text + "\n")


def err(text: str) -> None:
    """One line on stderr, where there is one."""
    if sys.stderr is not None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def warn(text: str) -> None:
    """One warning on stderr."""
    err(printable(f"warning: {text}"))


def say(quiet: bool, text: str) -> None:
    """A line of progress."""
    if not quiet:
        err(printable(text))


def invocation() -> str:
    """The command line as it was typed, for a record."""
    return shlex.join(["deltalens", *sys.argv[1:]])


def target(path: str | None) -> Path | None:
    """The directory that `--out` names; None without the flag.

    Raises:
        BadInput: It is empty, a shell variable without a value, or no UTF-8, which tables cannot be written to.
    """
    if path == "":
        raise BadInput("--out is empty", "--out DIRECTORY")
    if path is not None and any("\ud800" <= c <= "\udfff" for c in path):
        raise BadInput(f"--out {path!r} is not UTF-8", "--out a name in UTF-8")
    return None if path is None else Path(path)


def completed(items: int) -> int:
    """How many items `--generated` asks for.

    Raises:
        BadInput: Fewer than none.
    """
    if items < 0:
        raise BadInput(f"--generated {items} is not possible", "--generated 100, or 0 for all")
    return items


def chat_of(source: str) -> "Chat":
    """Template and tokenizer of a model."""
    from deltalens.checkpoint.chat import read_chat
    from deltalens.checkpoint.source import open_checkpoint

    return read_chat(open_checkpoint(source))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> None:
    """Print a table on stdout.

    Args:
        title: Above it.
        columns: Headings.
        rows: Cells, taken as plain text.
        left: How many columns are words; the others are numbers and align right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=Text(printable(title)) if title else None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for i, column in enumerate(columns):
        shown.add_column(Text(printable(column)), justify="left" if i < left else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    # Rendered to text first: rich would turn a closed pipe into an exit code of its own. Never narrower than the
    # table: a terminal may wrap a line, but a cut number is no number.
    live = sys.stdout is not None and sys.stdout.isatty()
    page = io.StringIO()
    width = max(shutil.get_terminal_size().columns if live else 0, _TABLE_WIDTH)
    Console(file=page, width=width, force_terminal=live, highlight=False).print(shown)
    out("\n".join(line.rstrip() for line in page.getvalue().splitlines()))


def number(value: float | None, form: str = ".3g") -> str:
    """A number for a table, an en dash where there is none."""
    return "–" if value is None else format(value, form)


def interval(value: float | None, low: float | None, high: float | None, form: str) -> str:
    """A number for a table with its interval, where it has one."""
    return number(value, form) + ("" if low is None else f" [{low:{form}}, {high:{form}}]")


def estimate(row: Mapping[str, Any], form: str) -> str:
    """The number of a summary row with its interval."""
    return interval(row["value"], row["low"], row["high"], form)


def size(count: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def duration(seconds: float) -> str:
    """Seconds in words short enough for a progress line."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def measuring(quiet: bool, verb: str = "measure") -> Generator[Callable[["Progress"], None] | None, None, None]:
    """A progress sink for a list of tasks: one live line on a terminal, a line now and then elsewhere."""
    if quiet:
        yield None
        return
    live = sys.stderr is not None and sys.stderr.isatty()
    last = monotonic()

    def show(step: "Progress") -> None:
        nonlocal last
        now = monotonic()
        finished = step.tasks_done == step.tasks
        if now - last < (0.1 if live else _PLAIN_EVERY) and not finished:
            return
        last = now
        left = "" if finished else f", {duration(step.seconds_left)} left"
        read = f", {size(step.bytes_done)} of {size(step.bytes)}" if step.bytes else ""
        line = f"{verb}: {step.tasks_done}/{step.tasks} tasks{read}{left}  {printable(step.name)}"
        if live:
            sys.stderr.write("\r\x1b[K" + line[:100])
            sys.stderr.flush()
        else:
            err(line)

    try:
        yield show
    finally:
        if live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
