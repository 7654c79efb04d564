"""`deltalens demo`: what reasoning training changed in the embedded family, in under a minute."""

import shlex
from dataclasses import dataclass
from typing import Annotated

import tyro

from deltalens.cli.display import err, measuring, out, target
from deltalens.cli.measure import show

PAIRS = (("base", "instruct"), ("base", "reasoning-rl"), ("instruct", "reasoning"))
"""Ordinary fine-tuning first: what it also does is not specific to reasoning. Then by reward, then by example."""


@dataclass(frozen=True, slots=True)
class Demo:
    """Measure instruct, RL and reasoning training of the embedded family and write one page."""

    out: Annotated[str, tyro.conf.arg(metavar="DIR")] = "demo-out"
    """Directory for the runs and the page."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Measure every pair, print its table, write the page."""
        from deltalens.checkpoint.pair import Pair
        from deltalens.report.page import write_page
        from deltalens.spectrum.measure import measure_diff

        folder = target(self.out)
        assert folder is not None
        say = None if self.quiet else err
        runs = []
        for base, tuned in PAIRS:
            pair = Pair.open(f"family:{base}", f"family:{tuned}")
            run = folder / f"{base}-to-{tuned}"
            command = shlex.join(["deltalens", "measure", f"family:{base}", f"family:{tuned}", "--out", str(run)])
            if not self.quiet:
                err(command)
            with measuring(self.quiet) as progress:
                runs.append(measure_diff(pair, run, context=True, progress=progress, say=say, command=command))
        for run in runs:
            show(run)
            out("")
        page = folder / "report.html"
        write_page(runs, page)
        out(f"the page: {page.resolve()}")
        return 0
