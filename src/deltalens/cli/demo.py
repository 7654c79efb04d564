"""`deltalens demo`: the experiment on the embedded family, in four minutes on two cores."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from deltalens.cli.display import target
from deltalens.cli.run import carry_out


@dataclass(frozen=True, slots=True)
class Demo:
    """Run the experiment on the embedded family: what reasoning training changed, is it causal, what is it not."""

    out: Annotated[str, tyro.conf.arg(metavar="DIR")] = "demo-out"
    """Directory for the experiment and its page."""
    minutes: float | None = None
    """As of `deltalens run`."""
    dry_run: bool = False
    """Say what would run, and run nothing."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """The configuration of the demo, carried out."""
        from deltalens.experiment.config import DEMO, read_config, shortened

        folder = target(self.out)
        assert folder is not None
        return carry_out(shortened(read_config(DEMO), self.minutes), folder, self.dry_run, self.quiet)
