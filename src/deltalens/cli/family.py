"""`deltalens family train|card|list|path`: the embedded checkpoints, their making and their merit."""

import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import tyro


@dataclass(frozen=True, slots=True)
class Train:
    """Train the family again from random weights (about ten minutes on two cores)."""

    out: pathlib.Path
    """New or empty directory for base, instruct, reasoning and recipe.json."""
    seeds: tuple[int, ...] = (0, 1)
    """Pretraining seeds, tried in turn until one meets the criterion."""
    threads: int = 2
    """Torch threads."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Trains and prints the directory."""
        from deltalens.errors import BadInput
        from deltalens.family.train import train

        if not self.seeds or self.threads < 1:
            raise BadInput("training needs a seed and a thread", "--seeds 0 1 --threads 2")
        train(self.out, self.seeds, _progress(self.quiet), self.threads)
        sys.stdout.write(f"{self.out}\n")
        return 0


@dataclass(frozen=True, slots=True)
class Card:
    """Measure the family on held-out problems and print its table."""

    n: int = 200
    """Problems per depth, at most 200."""
    seed: int = 7
    """Seed of the problems."""
    models: pathlib.Path | None = None
    """A family made by `family train`; the embedded one by default."""
    out: pathlib.Path | None = None
    """Also write the whole card, as Markdown, to this file."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Measures, prints table and targets; a missed target is printed and is no error."""
        from deltalens.errors import BadInput
        from deltalens.family.card import checks, evaluate, markdown, read_recipe, table
        from deltalens.family.catalog import MODELS

        models = self.models or MODELS
        read_recipe(models)  # a mistaken directory is said before the minute of measuring
        if self.out is not None and (self.out.is_dir() or not self.out.parent.is_dir()):
            raise BadInput(f"{self.out} cannot be written", "--out FILE in an existing directory")
        card = evaluate(self.n, self.seed, models, progress=_progress(self.quiet))
        verdicts = "\n".join(f"{'met' if holds else 'MISSED'}: {text}" for text, holds in checks(card))
        sys.stdout.write(f"{table(card)}\n\n{verdicts}\n")
        if self.out is not None:
            self.out.write_text(markdown(card, models))
        return 0


@dataclass(frozen=True, slots=True)
class List:
    """List the members: parent, parameters, size, what each does."""

    def run(self) -> int:
        """Prints one line per member, from the headers alone."""
        from rich.console import Console
        from rich.table import Table

        from deltalens.family.catalog import MEMBERS, directory, size

        shown = Table("name", "parent", "parameters", "size", "what it does", box=None, pad_edge=False)
        for member in MEMBERS:
            parameters, stored = size(directory(member.name))
            shown.add_row(
                f"family:{member.name}",
                member.parent or "-",
                f"{parameters:,}",
                f"{stored / 1e6:.1f} MB",
                member.description,
            )
        # A pipe has no width; rich's 80 would break every description.
        Console(width=None if sys.stdout.isatty() else 160).print(shown)
        return 0


@dataclass(frozen=True, slots=True)
class Path:
    """Print the directory of a member."""

    name: tyro.conf.Positional[str]
    """Member, such as `reasoning` or `family:reasoning`."""

    def run(self) -> int:
        """Prints the directory."""
        from deltalens.family.catalog import directory

        sys.stdout.write(f"{directory(self.name.removeprefix('family:'))}\n")
        return 0


def _progress(quiet: bool) -> Callable[[str], None]:
    """A writer of progress lines to stderr, or nothing."""

    def write(line: str) -> None:
        if not quiet:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    return write
