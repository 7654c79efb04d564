"""`deltalens edit`: carry out an edit file on a model, prove it, and write the edited checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from deltalens.cli.display import invocation, measuring, number, out, table, target, warn
from deltalens.errors import BadInput, printable

if TYPE_CHECKING:
    from deltalens.edit.checkpoint import Written
    from deltalens.edit.edit import Edit as Asked
    from deltalens.edit.plan import Plan
    from deltalens.edit.proof import Proof

_WORST = 5  # tensors shown of the rounding gap


@dataclass(frozen=True, slots=True)
class Edit:
    """Edit a model as a file says: interpolate, truncate, revert, negate, lox, contrast, cut, restore, add."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC.toml")]
    """base, tuned and one table [[edit]] per operation."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Write the edited checkpoint here; without it only say what would be touched."""
    prove: bool = False
    """Run the edit swapped in, as hooks, as an adapter and as a checkpoint, and compare what they compute first."""
    stochastic_rounding: Annotated[int | None, tyro.conf.arg(metavar="SEED")] = None
    """Round at random with this seed, so that small changes survive 16 bits on average."""
    json: bool = False
    """Print what was done as JSON."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Read the file and carry it out."""
        from deltalens.edit.edit import read_edit

        spec = Path(self.spec)
        edit = with_banks(read_edit(spec), spec.parent)
        return carry_out(edit, self.out, self.prove, self.stochastic_rounding, self.json, self.quiet)


def with_banks(edit: "Asked", folder: Path) -> "Asked":
    """The edit with its banks where they lie: beside the edit file, else below the working directory.

    Raises:
        BadInput: One lies at neither place.
    """
    given = [None if o.direction is None else bank_beside(o.direction, folder) for o in edit.operations]
    return replace(edit, operations=tuple(replace(o, direction=d) for o, d in zip(edit.operations, given, strict=True)))


def bank_beside(reference: str, folder: Path) -> str:
    """`BANK[#id]` with its file where it lies, as `with_banks`."""
    from deltalens.direction.bank import split_reference

    try:
        for place in (str(folder / reference), reference):
            if Path(split_reference(place)[0]).is_file():
                return place
        path = Path(split_reference(reference)[0])
        wrong = "is a directory" if path.is_dir() else "no such file"
    except OSError as problem:  # such as a name that is too long
        path, wrong = Path(reference), (problem.strerror or type(problem).__name__).lower()
    raise BadInput(f"cannot read the bank {path}: {wrong}", _nearest(path, "write one with `deltalens directions`"))


def _nearest(path: Path, otherwise: str) -> str:
    """The file beside a missing one that was probably meant, else what to do."""
    try:
        names = [p.name for p in path.parent.iterdir() if p.is_file()]
    except OSError:
        names = []
    near = get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / near[0]}?" if near and path.name not in names else otherwise


def carry_out(edit: "Asked", to: str | None, prove: bool, seed: int | None, as_json: bool, quiet: bool) -> int:
    """Plan an edit, prove it where asked, write it where asked, and print all three."""
    from deltalens.edit.checkpoint import check_target, write_checkpoint
    from deltalens.edit.plan import plan
    from deltalens.edit.shares import left_along, touched_shares

    folder = target(to)
    if seed is not None and folder is None and not prove:
        raise BadInput("--stochastic-rounding says how a checkpoint is written", "--out DIRECTORY")
    opened = plan(edit)
    if folder is not None:
        check_target(opened, folder.absolute())
    for note in opened.notes:
        warn(note)
    shares = touched_shares(opened)
    left = [left_along(opened, operation) if operation.operator == "cut" else {} for operation in edit.operations]
    proof = written = None
    if prove:
        from deltalens.edit.prove import prove as run_proof  # loads torch

        proof = run_proof(opened, seed)
    if folder is not None:
        with measuring(quiet, "edit") as progress:
            written = write_checkpoint(
                opened, folder, seed=seed, share=shares[-1], command=invocation(), progress=progress
            )
    if as_json:
        out(json.dumps(_record(opened, shares, left, proof, written), indent=2, ensure_ascii=False))
        return 0
    _show_plan(opened, shares, left)
    if proof is not None:
        _show_proof(proof)
    if written is not None:
        _show_written(written, seed)
    return 0


def _show_plan(opened: "Plan", shares: Sequence[float | None], left: Sequence[dict[str, float]]) -> None:
    edit, lines = opened.edit, []
    for i, operation in enumerate(edit.operations):
        names = [name for name, steps in opened.steps.items() if any(s.operation is operation for s in steps)]
        record = operation.record
        rank = record.get("rank")
        lines.append(
            [
                operation.operator,
                "–" if rank is None else json.dumps(rank).strip('"'),
                f"{operation.strength:g}",
                str(len(names)),
                number(shares[i], ".1%"),
            ]
        )
    pair = edit.base if edit.tuned is None else f"{edit.base} and {edit.tuned}"
    rest = "" if edit.tuned is None else f", everything else at {edit.home}"
    out(printable(f"edit {edit.edit_hash[:12]} of {pair}{rest}"))
    table(
        "",
        ["operator", "rank", "strength", "tensors", "share of ‖Δ‖²"],
        lines,
        left=2,
    )
    if shares[-1] is not None:
        out(f"share of ‖Δ‖² touched: {shares[-1]:.1%}")
    for operation, tables in zip(edit.operations, left, strict=True):
        for name, share in tables.items():
            said = f"left along {operation.direction}: {name} holds {share:.1%} of what is written along it"
            out(printable(said))


def _show_proof(proof: "Proof") -> None:
    out(printable(f"compared: {proof.mode}, {proof.inputs}"))
    what = "outputs" if proof.rounded is None else "logits"
    for name, difference in proof.differences.items():
        out(f"proved: {name} = swap, {what} within {difference:.1e} of the largest (the edit moves {proof.effect:.1e})")
    for name, reason in proof.left_out.items():
        out(printable(f"not compared: {name} ({reason})"))
    moved = proof.rounded if proof.rounded is not None else max(proof.rounding.values(), default=0.0)
    out(f"rounding to the stored dtype moves {what} by {moved:.1e} of the largest")


def _show_written(written: "Written", seed: int | None) -> None:
    worst = sorted(written.gaps.items(), key=lambda item: item[1].cosine)[:_WORST]
    if worst:
        how = "to nearest" if seed is None else f"at random, seed {seed}"
        table(
            f"rounding gap ({how}): the {len(worst)} largest of {len(written.gaps)}",
            ["tensor", "achieved strength", "cosine"],
            [[name, f"{gap.strength:.4f}", f"{gap.cosine:.5f}"] for name, gap in worst],
            left=1,
        )
    out(printable(f"written: {written.path}"))


def _record(
    opened: "Plan",
    shares: Sequence[float | None],
    left: Sequence[dict[str, float]],
    proof: "Proof | None",
    written: "Written | None",
) -> dict[str, Any]:
    gaps = {} if written is None else written.gaps
    return {
        "edit": opened.edit.record,
        "edit_hash": opened.edit.edit_hash,
        "starts_from": opened.edit.home,
        "tensors": list(opened.steps),
        "shares_of_delta": list(shares[:-1]),
        "share_of_delta": shares[-1],
        "left_along": list(left),
        "notes": list(opened.notes),
        "proof": None if proof is None else asdict(proof),
        "written": None if written is None else str(written.path),
        "rounding": {name: {"strength": gap.strength, "cosine": gap.cosine} for name, gap in gaps.items()},
    }
