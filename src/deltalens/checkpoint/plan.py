"""The preflight: what a measurement of a pair would read, need and leave out, from headers alone."""

import json
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from deltalens.checkpoint.chat import ThinkFormat, read_chat, read_template, template_hash
from deltalens.checkpoint.embedding import tied
from deltalens.checkpoint.pair import Pair, Row
from deltalens.checkpoint.parentage import Parentage
from deltalens.checkpoint.read import BLOCK_BYTES, HELD_ENTRIES
from deltalens.checkpoint.settings import Difference, differences
from deltalens.checkpoint.source import Checkpoint
from deltalens.checkpoint.vocabulary import Token
from deltalens.errors import BadInput

# Float64 dsyrk and eigensolver on one AVX-512 server core, measured (44 GF/s as gemm); other cores are up to three
# times slower, and small matrices never reach it, hence the margin.
FLOPS_PER_CORE = 40e9
MARGIN = 2.0
BYTES_PER_SECOND = 1e9  # a plain NVMe drive, read in order
# Memory, checked against `peak_rss_bytes` of real runs from 8×8 to 4096² and 270336×512: between 1.0 and 1.3 of it.
INTERPRETER_BYTES = 135 * 2**20  # Python with numpy, scipy and pyarrow loaded; torch is not
LIVE_BLOCKS = 5  # both sides as stored and as float32, Δ, or the temporaries of a sign flip
KEPT_VECTORS = 16  # of the long side, three times in float64 while they are made orthonormal
LANCZOS_PASSES = 60  # two products for each step of the bulk edge's null, four rounds of it as a rule


@dataclass(frozen=True, slots=True)
class Side:
    """One side in figures.

    Args:
        source: What the user named.
        revision: The commit of a hub repository.
        files: Number of files that hold tensors.
        bytes: Bytes of all its tensors.
        tensors: Number of tensors.
        dtypes: Number of tensors of each dtype.
        architecture: The class that its config names.
        tied: Whether its output head is its embedding.
    """

    source: str
    revision: str | None
    files: int
    bytes: int
    tensors: int
    dtypes: dict[str, int]
    architecture: str | None
    tied: bool


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A tensor whose difference will not be taken, and why."""

    name: str
    status: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Format:
    """How the prompts of both sides are rendered: as the tuned side's chat template says.

    Args:
        template: What tells the tuned side's template apart, `plain` without one; None where it cannot be known.
        base_template: The base's likewise.
        think: The tuned side's think format, None where it has or can have none.
        problem: Why something of this is not known.
    """

    template: str | None
    base_template: str | None
    think: ThinkFormat | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What measuring a pair would do. Memory and time are estimates.

    Args:
        base: The base in figures.
        tuned: The tuned side in figures.
        match: The glob that restricts what is measured.
        statuses: Number of ledger rows of each planned status.
        warnings: What a reader of the results should know.
        parentage: Whether the base is the one that the tuned side was trained from.
        vocabulary: Token ids that are not one token on both sides; None where that was not compared.
        format: The chat templates and the tags of thinking.
        differences: Config values in which the sides differ.
        unmatched: Unpaired and tied tensors and those of an unknown dtype.
        bytes_to_read: Bytes of both sides that one pass reads.
        peak_memory_bytes: Estimated peak of the process.
        seconds: Estimated time on this machine, all cores.
    """

    base: Side
    tuned: Side
    match: str | None
    statuses: dict[str, int]
    warnings: tuple[str, ...]
    parentage: Parentage
    vocabulary: tuple[Token, ...] | None
    format: Format
    differences: tuple[Difference, ...]
    unmatched: tuple[Unmatched, ...]
    bytes_to_read: int
    peak_memory_bytes: int
    seconds: float

    def to_json(self) -> str:
        """The plan as one JSON object."""
        return json.dumps(_finite(asdict(self)), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """A config may hold NaN or Infinity, which JSON cannot: they become text."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def plan(base: str, tuned: str, match: str | None = None) -> Plan:
    """Plan the measurement of a pair from headers alone; of a hub repository only the small files are downloaded.

    Raises:
        BadInput: A side cannot be opened, or `match` matches nothing.
        Refused: The two are not comparable.
    """
    pair = Pair.open(base, tuned, match, headers_only=True)
    sides = pair.base, pair.tuned
    warnings = [*pair.warnings, *(f"{c.source} has no config.json: tying is guessed" for c in sides if not c.config)]
    to_read = sum(
        info.end - info.start
        for row in pair.rows
        if row.status in ("measured", "vector", "unmeasured")
        for info in (row.base, row.tuned)
        if info is not None
    )
    measured = [row for row in pair.rows if row.status == "measured"]
    return Plan(
        base=_side(pair.base),
        tuned=_side(pair.tuned),
        match=match,
        statuses=dict(Counter(row.status for row in pair.rows)),
        warnings=tuple(warnings),
        parentage=pair.parentage,
        vocabulary=pair.vocabulary,
        format=_format(*sides),
        differences=tuple(differences(*sides)),
        unmatched=tuple(_unmatched(row) for row in pair.rows if row.status in ("unpaired", "tied")),
        bytes_to_read=to_read,
        peak_memory_bytes=INTERPRETER_BYTES + max((_peak(row) for row in measured), default=0),
        seconds=_seconds(measured, to_read),
    )


def _side(ckpt: Checkpoint) -> Side:
    named = ckpt.config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else ckpt.config.get("model_type")
    infos = ckpt.tensors.values()
    return Side(
        source=ckpt.source,
        revision=ckpt.revision,
        files=len(ckpt.files),
        bytes=sum(info.end - info.start for info in infos),
        tensors=len(ckpt.tensors),
        dtypes=dict(Counter(info.dtype for info in infos).most_common()),
        architecture=architecture if isinstance(architecture, str) else None,
        tied=tied(ckpt),
    )


def _format(base: Checkpoint, tuned: Checkpoint) -> Format:
    """The format of a pair; no chat template is needed to compare weights, so a broken one is told and no error."""
    template = base_template = think = None
    problems = []
    try:
        base_template = template_hash(read_template(base)[0])
    except BadInput as problem:
        problems.append(problem.error)
    try:
        chat = read_chat(tuned)
        template, think = chat.template_hash, chat.think
    except BadInput as problem:
        problems.append(problem.error)
    return Format(template, base_template, think, "; ".join(problems) or None)


def _unmatched(row: Row) -> Unmatched:
    return Unmatched(row.name.name, row.status, row.reason)


def _peak(row: Row) -> int:
    """Bytes that measuring one matrix holds.

    A held difference has its sign-flipped twin beside it and the reflectors of its Gram matrix, or no twin and the
    reflectors twice (for the vectors); a streamed one has two Gram matrices and the copies that complete the second.
    """
    rows, cols = row.shape
    short = min(rows, cols)
    held = 4 * rows * cols if rows * cols <= HELD_ENTRIES else 0
    square = 8 * short**2
    solver = max(held + square, 2 * square) if held else 4 * square
    vectors = 3 * 8 * min(KEPT_VECTORS, short) * max(rows, cols)
    return held + solver + vectors + LIVE_BLOCKS * min(BLOCK_BYTES, 4 * rows * cols)


def _seconds(measured: list[Row], to_read: int) -> float:
    arithmetic = sum(flops(row) for row in measured) / (FLOPS_PER_CORE * cores())
    return MARGIN * arithmetic + to_read / BYTES_PER_SECOND


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; macOS has no such call
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def flops(row: Row) -> float:
    """Arithmetic of one task: symmetric Gram product, tridiagonal form with vectors, the bulk edge's Lanczos steps."""
    if row.status != "measured":
        return float(sum(info.elements for info in (row.base, row.tuned) if info))
    m, n = row.shape
    q = min(m, n)
    return m * n * q + 8 / 3 * q**3 + 4 * 2 * LANCZOS_PASSES * m * n
