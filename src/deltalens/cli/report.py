"""`deltalens report`: one self-contained page from RUNs, from experiments, or from a whole run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from deltalens.cli.display import out
from deltalens.errors import printable


@dataclass(frozen=True, slots=True)
class Report:
    """Write one self-contained HTML page.

    Several RUNs are laid over each other, the last is the one in question; experiments have a section each; what
    `deltalens run` wrote has its verdicts on top.
    """

    dirs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Finished RUN directories, or what eval, probe, steer and sweep wrote with --out, or one that run wrote."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """The page, report.html in the first DIR by default."""
    figures: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Save the figures of the page of a run here too, as SVG files with their captions."""
    anonymise: bool = False
    """Call the models of a run base and tuned in every text, and leave out paths."""

    def run(self) -> int:
        """Write the page and print where it lies."""
        from deltalens.errors import BadInput
        from deltalens.store.experiment import RECORD, Experiment
        from deltalens.store.run import Run

        if not self.dirs:
            raise BadInput("no directory is named", "deltalens report DIR")
        for folder in self.dirs:
            if not Path(folder).is_dir():
                raise BadInput(f"there is no directory {folder}", "what run, measure, eval, … wrote with --out")
        page = Path(self.out) if self.out is not None else Path(self.dirs[0]) / "report.html"
        from deltalens.report.run_read import is_run

        if any(is_run(Path(folder)) for folder in self.dirs):
            return self._of_run(page)
        if self.figures is not None or self.anonymise:
            raise BadInput("--figures and --anonymise are of what `deltalens run` wrote", "without them")
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

    def _of_run(self, page: Path) -> int:
        from deltalens.errors import BadInput
        from deltalens.report.run_page import save_figures, write_run_page

        if len(self.dirs) > 1:
            raise BadInput("a run has a page of its own", f"deltalens report {self.dirs[0]}")
        exp = Path(self.dirs[0])
        write_run_page(exp, page, self.anonymise)
        out(printable(str(page)))
        if self.figures is not None:
            saved = save_figures(exp, Path(self.figures), self.anonymise)
            out(printable(f"{len(saved)} figures in {self.figures}"))
        return 0
