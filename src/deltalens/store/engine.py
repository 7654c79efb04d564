"""The local engine: idempotent tasks in order, one atomic part each, nothing done twice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from deltalens.store.parts import Part, read_part, write_part


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of work whose result is a part.

    Attributes:
        name: Shown in progress.
        key: File name of its part: a hash of everything that its numbers depend on.
        bytes: Stored bytes it reads, for progress.
        cost: Arithmetic it takes, for the estimate of time left.
        work: Does it.
    """

    name: str
    key: str
    bytes: int
    cost: float
    work: Callable[[], Part]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the work stands, told after every task.

    Attributes:
        name: The task just finished.
        tasks_done: Finished tasks, including those found from an earlier start.
        tasks: All tasks.
        bytes_done: Stored bytes behind them.
        bytes: All stored bytes.
        seconds_left: Estimate by arithmetic done in this start.
    """

    name: str
    tasks_done: int
    tasks: int
    bytes_done: int
    bytes: int
    seconds_left: float


def run_tasks(tasks: Sequence[Task], parts: Path, progress: Callable[[Progress], None] | None = None) -> None:
    """Run the tasks that have no readable part yet, in order.

    Args:
        tasks: All of them, finished ones included.
        parts: Directory of the parts.
        progress: Called after every task done now.
    """
    waiting = [task for task in tasks if read_part(parts, task.key) is None]
    size = sum(task.bytes for task in tasks)
    bytes_left, cost_left = sum(task.bytes for task in waiting), sum(task.cost for task in waiting)
    cost, began = cost_left, perf_counter()
    for left, task in zip(range(len(waiting) - 1, -1, -1), waiting, strict=True):
        write_part(parts, task.key, task.work())
        bytes_left, cost_left = bytes_left - task.bytes, cost_left - task.cost
        if progress is not None:
            seconds = (perf_counter() - began) * cost_left / max(cost - cost_left, 1.0)
            progress(Progress(task.name, len(tasks) - left, len(tasks), size - bytes_left, size, seconds))
