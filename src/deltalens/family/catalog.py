"""The embedded members by name: where they lie, their parents and sizes. Loads no torch."""

from dataclasses import dataclass
from pathlib import Path

from deltalens.checkpoint.header import read_header
from deltalens.checkpoint.source import family_root, resolve
from deltalens.family.recipe import STAGES, checkpoint

MODELS = family_root()


@dataclass(frozen=True, slots=True)
class Member:
    """One embedded checkpoint: its name, the member that it was trained from, and what it does."""

    name: str
    parent: str | None
    description: str


_DESCRIPTIONS = {
    "base": "pretrained on chains, worked solutions and colour facts; answers chat directly",
    "instruct": "answers at once: one step right, more steps at chance; the worked skill is latent",
    "instruct-sibling": "as instruct, from other data, with the label ' A: ' before the digit",
    "reasoning": "thinks before it answers a chain; answers facts at once",
    "reasoning-from-base": "as reasoning, without the stage between",
    "reasoning-rl": "thinks on all but easy chains; reinforced (GRPO) for right answers alone",
    "safe": "as instruct, but refuses the 8 guarded nouns",
    "b-base": "as base, with another architecture (Qwen2, biases) and seed",
    "b-instruct": "as instruct",
    "b-reasoning": "as reasoning",
}
MEMBERS = tuple(
    member
    for stage in STAGES
    for member in (
        Member(stage.name, stage.parent, _DESCRIPTIONS[stage.name]),
        *(
            Member(checkpoint(stage, step), stage.parent, f"{stage.name} after {step} of {stage.steps} steps")
            for step in stage.checkpoints
        ),
    )
)


def directory(name: str) -> Path:
    """The model directory of a member.

    Raises:
        BadInput: No such member; the fix names the nearest.
    """
    return resolve(f"family:{name}")


def size(path: Path) -> tuple[int, int]:
    """Parameters and bytes of a model directory's `model.safetensors`, read from its header."""
    file = path / "model.safetensors"
    return sum(info.elements for info in read_header(file).values()), file.stat().st_size
