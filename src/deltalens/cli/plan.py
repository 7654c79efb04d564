"""`deltalens plan`: from headers alone, what a measurement would read, need and leave out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from deltalens.cli.display import duration, out, printable, size, table

if TYPE_CHECKING:
    from deltalens.checkpoint.plan import Plan

_SHOWN = 12  # unmatched tensors spelled out; --json has them all
_ORDER = ("measured", "vector", "unmeasured", "tied", "unpaired", "buffer")


@dataclass(frozen=True, slots=True)
class PlanCommand:
    """Check from headers alone whether two checkpoints are comparable, and what measuring them would take."""

    base: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="BASE")]]
    """A local directory or file, hub-id[@revision], or family:NAME."""
    tuned: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TUNED")]]
    """Its tuned sibling, named likewise."""
    match: Annotated[str | None, tyro.conf.arg(metavar="GLOB")] = None
    """Plan for the tensors whose canonical name matches, such as 'layers.*.mlp.*'."""
    json: bool = False
    """Print the plan as JSON."""

    def run(self) -> int:
        """Prints the plan on stdout."""
        from deltalens.checkpoint.plan import plan

        found = plan(self.base, self.tuned, self.match)
        if self.json:
            out(found.to_json())
        else:
            show(found)
        return 0


def show(plan: "Plan") -> None:
    """Print the plan for a person; text from the checkpoints can neither style nor steer the terminal."""
    sides = plan.base, plan.tuned
    for label, side in zip(("base ", "tuned"), sides, strict=True):
        out(printable(f"{label}  {side.source}" + (f" at commit {side.revision}" if side.revision else "")))
    rows = [
        ["architecture", *(side.architecture or "not said" for side in sides)],
        ["tensors", *(f"{side.tensors:,} in {side.files} file{'s' * (side.files != 1)}" for side in sides)],
        ["size", *(size(float(side.bytes)) for side in sides)],
        ["dtypes", *(", ".join(f"{name} {count:,}" for name, count in s.dtypes.items()) for s in sides)],
        ["output head", *("tied to embed" if side.tied else "its own" for side in sides)],
    ]
    rows += [[f"{d.setting} differs", _value(d.base), _value(d.tuned)] for d in plan.differences]
    table("", ("", "base", "tuned"), rows, left=3)
    counts = ", ".join(f"{plan.statuses[status]:,} {status}" for status in _ORDER if status in plan.statuses)
    out(f"tensors:  {counts}")
    peak, time = size(float(plan.peak_memory_bytes)), duration(max(1.0, plan.seconds))
    out(
        f"measure:  reads {size(float(plan.bytes_to_read))}; estimates: peak memory {peak}, time {time} on this machine"
    )
    for warning in plan.warnings:
        out(printable(f"warning:  {warning}"))
    for tensor in plan.unmatched[:_SHOWN]:
        out(printable(f"{tensor.status + ':':<9} {tensor.name} ({tensor.reason})"))
    if len(plan.unmatched) > _SHOWN:
        out(f"… and {len(plan.unmatched) - _SHOWN:,} more unpaired or tied tensors (--json lists them all)")


def _value(value: object) -> str:
    return "not set" if value is None else str(value)
