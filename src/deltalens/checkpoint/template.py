"""Render a chat template as transformers does, in a sandbox that also bounds its steps, output and memory.

A template comes with the weights, so it is a stranger's program. jinja's sandbox keeps it from Python's internals; here
every turn of a loop and every call costs a step as well, and what it builds must fit.
"""

import json
import resource
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from jinja2 import Template, nodes, pass_environment
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deltalens.checkpoint.header import one_line
from deltalens.errors import BadInput

MAX_STEPS = 100_000  # a template takes a few dozen for each message; these take a second at most
MAX_SIZE = 10_000_000  # characters of a prompt, or any product: beyond every context window
MAX_BYTES = 2**29  # of memory that rendering may add
_ONE_AT_A_TIME = Lock()  # steps are counted in the shared sandbox, memory is the whole process's


def render(template: str, variables: dict[str, Any]) -> str:
    """The text that a template makes of its variables (`messages`, `add_generation_prompt`, the special tokens).

    Raises:
        BadInput: It is malformed, raises, reaches for what the sandbox forbids, or does not end within bounds.
    """
    try:
        with _ONE_AT_A_TIME, _bounded_memory():
            sandbox, program = _compiled(template)  # inside: jinja computes constant expressions already here
            sandbox.steps = size = 0
            pieces = []
            for piece in program.generate(**variables):
                size += len(piece)
                _bounded(size)
                pieces.append(piece)
    except Exception as problem:  # whatever a stranger's expression raises, MemoryError and RecursionError included
        fix = "take the template from the model's publisher"
        raise BadInput(f"the chat template cannot be rendered ({one_line(problem)})", fix) from None
    return "".join(pieces)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training masks; its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja's sandbox, counting calls and the turns of loops and refusing numbers that take for ever to compute."""

    intercepted_binops = frozenset({"*", "**"})
    steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TemplateError(f"it does not end within {MAX_STEPS:,} steps")

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.step()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise TemplateError("it raises to a power, which no prompt needs")
        sizes = [len(side) if hasattr(side, "__len__") else abs(side) for side in (left, right)]
        _bounded(sizes[0] * sizes[1])
        return super().call_binop(context, operator, left, right)


@lru_cache(maxsize=8)
def _compiled(template: str) -> tuple[_Sandbox, Template]:
    """A sandbox and, in it, the template: compiled as transformers does, every loop made to count its turns."""
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    sandbox.filters |= {"tojson": _tojson, "counted": _counted}
    functions: dict[str, Any] = {"raise_exception": _raise, "strftime_now": _now}
    sandbox.globals.update(functions)
    parsed = sandbox.parse(template)
    for loop in list(parsed.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
    return sandbox, sandbox.from_string(parsed)


@contextmanager
def _bounded_memory() -> Generator[None]:
    """Lets the process grow by MAX_BYTES at most, where the system tells its size (Linux)."""
    size = Path("/proc/self/statm")
    if not size.exists():
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    grown = int(size.read_text().split()[0]) * resource.getpagesize() + MAX_BYTES
    if limits[0] == resource.RLIM_INFINITY or grown < limits[0]:
        resource.setrlimit(resource.RLIMIT_AS, (grown, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _bounded(size: int | float) -> None:
    if size > MAX_SIZE:
        raise TemplateError(f"it makes more than {MAX_SIZE:,} of something")


@pass_environment
def _counted(sandbox: _Sandbox, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        sandbox.step()
        yield value


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of jinja's own filter, as templates expect it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
