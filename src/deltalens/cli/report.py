"""`deltalens report`: one self-contained page from RUNs, or from experiments."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from deltalens.cli.display import out
from deltalens.errors import printable


@dataclass(frozen=True, slots=True)
class Report:
    """Write one self-contained HTML page.

    Several RUNs are laid over each other, the last is the one in question; experiments have a section each.
    """

    dirs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Finished RUN directories, or what eval, probe, steer and sweep wrote with --out."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """The page, report.html in the first DIR by default."""

    def run(self) -> int:
        """Write the page and print where it lies."""
        from deltalens.errors import BadInput
        from deltalens.store.experiment import RECORD, Experiment
        from deltalens.store.run import Run

        if not self.dirs:
            raise BadInput("no RUN directory is named", "deltalens report RUN")
        for folder in self.dirs:
            if not Path(folder).is_dir():
                raise BadInput(f"there is no directory {folder}", "deltalens measure BASE TUNED --out RUN")
        page = Path(self.out) if self.out is not None else Path(self.dirs[0]) / "report.html"
        experiments = [folder for folder in self.dirs if (Path(folder) / RECORD).is_file()]
        runs = [folder for folder in self.dirs if folder not in experiments]
        if experiments and runs:
            raise BadInput(
                f"{experiments[0]} is an experiment and {runs[0]} is not: they have pages of their own",
                f"deltalens report {' '.join(runs)}, then deltalens report {' '.join(experiments)}",
            )
        if experiments:
            from deltalens.report.experiment import write_experiments

            write_experiments([Experiment.open(folder) for folder in experiments], page)
        else:
            from deltalens.report.page import write_page

            write_page([Run.open(folder) for folder in runs], page)
        out(printable(str(page)))
        return 0
