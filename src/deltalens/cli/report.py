"""`deltalens report`: one self-contained page from one or several RUNs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from deltalens.cli.display import out
from deltalens.errors import printable


@dataclass(frozen=True, slots=True)
class Report:
    """Write one self-contained HTML page; several RUNs are laid over each other, the last is the one in question."""

    dirs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Finished RUN directories."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """The page, report.html in the first DIR by default."""

    def run(self) -> int:
        """Write the page and print where it lies."""
        from deltalens.errors import BadInput
        from deltalens.report.page import write_page
        from deltalens.store.run import Run

        if not self.dirs:
            raise BadInput("no RUN directory is named", "deltalens report RUN")
        for folder in self.dirs:
            if not Path(folder).is_dir():
                raise BadInput(f"there is no directory {folder}", "deltalens measure BASE TUNED --out RUN")
        runs = [Run.open(folder) for folder in self.dirs]
        page = write_page(runs, Path(self.out) if self.out is not None else Path(self.dirs[0]) / "report.html")
        out(printable(str(page)))
        return 0
