"""The model card of an edited checkpoint."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deltalens.edit.rounding import Gap
from deltalens.errors import printable

if TYPE_CHECKING:
    from deltalens.edit.plan import Plan


def card(
    opened: "Plan", name: str, gaps: Mapping[str, Gap], seed: int | None, share: float | None, command: str
) -> str:
    """README.md: what was done to which model, what rounding left of it, and how to do it again."""
    edit = opened.edit
    tensors = f"{len(gaps)} of {len(opened.carrier.tensors)} tensors were written anew"
    touched = "" if share is None else f"; they hold {share:.1%} of ‖Δ‖², the squared difference of tuned and base"
    lines = [
        "---",
        "library_name: transformers",
        "tags: [deltalens, edited-weights]",
        "---",
        "",
        f"# {printable(name)}",
        "",
        f"An edit of `{printable(opened.carrier.source)}` made with deltalens; {tensors}{touched}.",
        "",
        "```toml",
        edit.toml.rstrip(),
        "```",
        "",
    ]
    if gaps:
        worst = min(gaps, key=lambda tensor: gaps[tensor].cosine)
        how = "to nearest" if seed is None else f"stochastically (seed {seed})"
        lines += [
            f"Values were rounded {how} to each tensor's stored dtype. Least faithful is `{worst}`: its change as "
            f"written has {gaps[worst].strength:.3f} of the strength asked for, and a cosine of "
            f"{gaps[worst].cosine:.4f} with it; `reproduce/record.json` lists every tensor.",
            "",
        ]
    again = "deltalens edit reproduce/edit.toml --out NEW"
    again += "" if seed is None else f" --stochastic-rounding {seed}"
    lines += ["To make it again, from the folder of this card:", "", "```sh", again, "```", ""]
    if command:
        lines += ["It was made with:", "", "```sh", command, "```", ""]
    return "\n".join(lines)
