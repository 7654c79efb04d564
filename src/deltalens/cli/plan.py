"""`deltalens plan`: from headers alone, what a measurement would read, need and leave out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from deltalens.cli.display import duration, out, size, table
from deltalens.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltalens.checkpoint.parentage import Parentage
    from deltalens.checkpoint.plan import Format, Plan
    from deltalens.checkpoint.vocabulary import Token

_SHOWN = 12  # unmatched tensors spelled out; --json has them all
_TOKENS = 4  # token ids spelled out
_LONGEST = 40  # characters of a value that may be as long as its writer liked
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
    out(f"measure:  reads {size(float(plan.bytes_to_read))}; delta pass, estimated: peak memory {peak}, time {time}")
    out(printable(f"parent:   {_parent(plan.parentage)}"))
    out(printable(f"tokens:   {_tokens(plan.vocabulary)}"))
    for line in _format(plan.format):
        out(printable(line))
    for warning in plan.warnings:
        out(printable(f"warning:  {warning}"))
    for tensor in plan.unmatched[:_SHOWN]:
        out(printable(f"{tensor.status + ':':<9} {tensor.name} ({tensor.reason})"))
    if len(plan.unmatched) > _SHOWN:
        out(f"… and {len(plan.unmatched) - _SHOWN:,} more unpaired or tied tensors (--json lists them all)")


def _value(value: object) -> str:
    return "not set" if value is None else _short(str(value), 2 * _LONGEST)


def _short(text: str, most: int = _LONGEST) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _parent(found: "Parentage") -> str:
    if found.verdict == "unknown":
        return f"parent unknown: {found.evidence}"
    words = {"right": "the right base", "wrong": "WRONG BASE"}
    return f"{words.get(found.verdict, found.verdict)}: {found.evidence}"


def _format(found: "Format") -> "list[str]":
    """How prompts will be rendered, and what of it a reader might not expect."""
    lines = []
    if think := found.think:
        parts = [f"{think.open} … {think.close} ({len(think.open_ids)} + {len(think.close_ids)} tokens)"]
        parts += ["opened by the template"] * think.opened_by_template
        parts += [f"switch {think.switch}"] * (think.switch is not None)
        lines.append(f"think:    {', '.join(parts)}")
    elif found.template:
        lines.append("think:    none: the tokenizer can encode no think tag")
    if found.template == "plain":
        lines.append("format:   the tuned side has no chat template (prompts will be plain questions)")
    elif found.template and found.base_template not in (None, found.template):
        other = "no" if found.base_template == "plain" else "another"
        lines.append(f"format:   the base has {other} chat template (prompts will be rendered with the tuned side's)")
    if found.problem:
        lines.append(f"format:   not known: {_short(found.problem, 4 * _LONGEST)}")
    return lines


def _tokens(found: "tuple[Token, ...] | None") -> str:
    if found is None:
        return "not compared (that needs embed or lm_head, and a tokenizer.json on both sides)"
    if not found:
        return "every id means the same string on both sides"
    changed = [t for t in found if t.base is not None and t.tuned is not None]
    parts = [
        _some(changed, "not the same string", lambda t: f"{t.id} {_short(str(t.base))} → {_short(str(t.tuned))}"),
        _some([t for t in found if t.tuned is None], "in the base only", lambda t: f"{t.id} {_short(str(t.base))}"),
        _some([t for t in found if t.base is None], "in the tuned only", lambda t: f"{t.id} {_short(str(t.tuned))}"),
    ]
    return "; ".join(part for part in parts if part)


def _some(tokens: "list[Token]", what: str, shown: "Callable[[Token], str]") -> str:
    if not tokens:
        return ""
    more = ", …" if len(tokens) > _TOKENS else ""
    ids = "1 id" if len(tokens) == 1 else f"{len(tokens):,} ids"
    return f"{ids} {what} ({', '.join(map(shown, tokens[:_TOKENS]))}{more})"
