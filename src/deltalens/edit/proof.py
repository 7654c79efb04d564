"""What a proof says, and when two renderings agree."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from deltalens.errors import Refused

TOLERANCE = 1e-4
"""Largest difference of two renderings, in units of the largest |logit|, or |output| of a module."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What was compared with the edit swapped in.

    Attributes:
        mode: `whole model`: logits are compared; `layer by layer`: the output of every touched module.
        inputs: What the model, or every module, was given.
        differences: Largest |difference| over the largest |logit| or |output|, by rendering; of modules the worst.
        left_out: Renderings that cannot take the edit, with the reason.
        rounding: The same measure for each tensor rounded to its stored dtype alone, by canonical name.
        rounded: The same for all of them together: the written checkpoint. None layer by layer.
        effect: The same for the model without the edit: how much there was to agree on.
    """

    mode: str
    inputs: str
    differences: Mapping[str, float]
    left_out: Mapping[str, str]
    rounding: Mapping[str, float]
    rounded: float | None
    effect: float


def gap(found: Tensor, reference: Tensor) -> float:
    """The largest |difference| over the largest |entry| of the reference; 0 where both are 0."""
    difference = float((found - reference).abs().max())
    return difference / float(reference.abs().max().clamp(min=1e-38)) if difference else 0.0


def agree(rendering: str, difference: float, what: str) -> float:
    """The difference itself.

    Raises:
        Refused: It is above the tolerance, or no number.
    """
    if not difference <= TOLERANCE:
        raise Refused(
            f"{rendering} and swap disagree: {what} differ by {difference:.1e} of the largest, above {TOLERANCE:.0e}",
            "report this edit: nothing was written",
        )
    return difference
