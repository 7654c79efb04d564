"""`deltalens cut`: take a direction out of what a model's matrices write."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from deltalens.cli.edit import carry_out, with_banks


@dataclass(frozen=True, slots=True)
class Cut:
    """Cut a direction out of a model: what writes it, o_proj, down_proj and an untied embed, no longer does."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Directory, hub-id[@revision] or family:NAME."""
    direction: Annotated[str, tyro.conf.arg(metavar="BANK[#id]")]
    """A direction of the residual stream; one of several vectors is cut as a subspace."""
    layers: str | None = None
    """Only in these layers: 0-13, 50%-100%, or several of either between commas."""
    kinds: tuple[str, ...] = ()
    """Cut these kinds instead; of readers (q_proj, up_proj, …) what they read."""
    strength: float = 1.0
    """Share that is taken out; 2 mirrors."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Write the edited checkpoint here; without it only say what would be touched."""
    prove: bool = False
    """Run the cut swapped in, as hooks, as an adapter and as a checkpoint, and compare what they compute first."""
    stochastic_rounding: Annotated[int | None, tyro.conf.arg(metavar="SEED")] = None
    """Round at random with this seed, so that small changes survive 16 bits on average."""
    json: bool = False
    """Print what was done as JSON."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Carry it out as an edit of one operation."""
        from deltalens.edit.edit import Edit, Operation

        operation = Operation(
            "cut", self.strength, layers=self.layers, kinds=self.kinds or None, direction=self.direction
        )
        edit = with_banks(Edit(self.model, (operation,)), Path())
        return carry_out(edit, self.out, self.prove, self.stochastic_rounding, self.json, self.quiet)
