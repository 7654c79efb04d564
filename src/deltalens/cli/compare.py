"""`deltalens compare`: do directions overlap beyond chance, shared inputs and shared layers; is reasoning refusal?"""

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from deltalens.cli.display import Dtype, out, say, table
from deltalens.errors import BadInput, printable

if TYPE_CHECKING:
    from deltalens.direction.compare import Comparison
    from deltalens.direction.direction import Direction

_LEGEND = (
    "φ = ‖QaᵀQb‖²/k, beside the largest null that there is. φ − null with its interval (bootstrap by prompt, level\n"
    "1 − .05/8): distinct where all of it lies below .05, overlapping where it lies above 0 and p ≤ .05 (permutation,\n"
    "Holm over layers), else undecided."
)


@dataclass(frozen=True, slots=True)
class Compare:
    """Compare two banks, or a bank with the writers of a RUN: overlap, angles, nulls, and "distinct?" as a verdict."""

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """BANK[#id] or RUN: the directions in question; a whole bank stands for its writers and differences of means."""
    b: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="B")] = None
    """BANK[#id] or RUN: what they are compared with; not with --refusal."""
    refusal: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """Compare with the refusal direction of this model: harmful less harmless requests at the last prompt token."""
    sibling: Annotated[str | None, tyro.conf.arg(metavar="RUN2")] = None
    """BANK or RUN of a delta that is not in question: what it shares with B is no finding."""
    top: int = 8
    """Vectors per layer that a RUN gives."""
    seed: int = 0
    """Of the null draws and of the bootstrap."""
    dtype: Dtype = "auto"
    """Of computation; auto: float32 on a CPU, as stored on a GPU."""
    device: str = "auto"
    """cpu or cuda; auto takes a GPU where there is one."""
    json: bool = False
    """Print every comparison as JSON in place of the tables."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Compare, then print a table and a verdict per pair of kinds."""
        if (self.b is None) == (self.refusal is None):
            raise BadInput(
                "compare takes B or --refusal", "deltalens compare A B, or deltalens compare A --refusal MODEL"
            )
        if self.seed < 0:
            raise BadInput(f"--seed {self.seed} is not possible", "--seed 0")
        from deltalens.direction.compare import compare, overall

        a = directions(self.a, self.top)
        if self.refusal is not None:
            from deltalens.methods.thinking import refusal_directions

            tell = partial(say, self.quiet)
            b = refusal_directions(self.refusal, self.seed, self.dtype, self.device, tell)
        else:
            b = directions(self.b or "", self.top)
        sibling = [] if self.sibling is None else directions(self.sibling, self.top)
        rows = compare(a, b, sibling=sibling, seed=self.seed)
        if not rows:
            raise BadInput(
                f"no direction of A shares layer, space and width with one of B ({_places(a)}; {_places(b)})",
                "compare directions of one model and one space, such as '#*.writers' with '#*.difference'",
            )
        families = {family: [row for row in rows if row.family == family] for family in {row.family: 0 for row in rows}}
        verdicts = {family: overall(members) for family, members in families.items()}
        if self.json:
            out(json.dumps({"verdicts": verdicts, "rows": [asdict(row) for row in rows]}, indent=2, ensure_ascii=False))
            return 0
        for family, members in families.items():
            show(family, members, f"distinct{' from refusal' if self.refusal else ''}? {verdicts[family]}")
        out(_LEGEND)
        return 0


def directions(reference: str, top: int) -> "list[Direction]":
    """The writers of a RUN, or a bank's directions (of a whole one, writers and differences) with their samples."""
    from deltalens.direction.bank import read_bank, read_directions, split_reference

    if (Path(reference) / "run.json").is_file():
        from deltalens.direction.weights import from_run, pair_of
        from deltalens.store.run import Run

        run = Run.open(reference)
        top = min(top, run.record["settings"]["top"])
        return [d for d in from_run(run, pair_of(run), "*", top) if d.kind == "writers"]
    path, wanted = split_reference(reference)
    named = read_directions(reference)
    if wanted is None:  # the kinds that a verdict can be had for; others by name, such as BANK#*.probe
        named = tuple(d for d in named if d.kind in ("writers", "difference")) or named
    behind = {d.source.get("samples") for d in named}
    return [*named, *(d for d in read_bank(path) if d.id in behind)]


def show(family: str, rows: "list[Comparison]", verdict: str) -> None:
    """One table: a line per layer."""
    table(
        family,
        ["layer", "largest null", "ka", "kb", "d", "φ", "null", "φ − null", "angle", "p", "verdict"],
        [
            [
                "–" if row.layer is None else str(row.layer),
                row.largest,
                *map(str, (*row.ranks, row.width)),
                f"{row.overlap:.3f}",
                f"{row.nulls[row.largest]:.3f}",
                "–" if row.low is None else f"[{row.low:+.3f}, {row.high:+.3f}]",
                f"{row.angles[0]:.0f}°",
                f"{row.p_holm:.3f}",
                row.verdict,
            ]
            for row in rows
        ],
    )
    reasons = sorted({row.reason for row in rows if row.reason is not None})
    out(printable(f"{family}: {verdict}" + (f" ({'; '.join(reasons)})" if reasons else "")))


def _places(found: "list[Direction]") -> str:
    return ", ".join(sorted({f"{d.space} of {d.vectors.shape[1]}" for d in found}))
