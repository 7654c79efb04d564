"""`deltalens family train|card|list|path`: the embedded checkpoints, their making and their merit."""

import os
import pathlib
from dataclasses import dataclass

import tyro

from deltalens.cli.display import err, out, table


@dataclass(frozen=True, slots=True)
class Train:
    """Train the family again from random weights (about twenty minutes on two cores)."""

    out: pathlib.Path
    """New or empty directory for the members and recipe.json."""
    seed: int = 0
    """Where the recipe's seeds begin: another number makes another family."""
    threads: int = 2
    """Torch threads."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Trains and prints the directory."""
        # Before torch is loaded: threads that spin while they wait made a stage twenty times slower on a busy machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from deltalens.errors import BadInput
        from deltalens.family.train import train

        if self.threads < 1 or not 0 <= self.seed < 2**32:
            raise BadInput("training needs a seed from 0 to 2^32 − 1 and a thread", "--seed 0 --threads 2")
        train(self.out, self.seed, _nothing if self.quiet else err, self.threads)
        out(str(self.out))
        return 0


@dataclass(frozen=True, slots=True)
class Card:
    """Measure the family on held-out problems and print its tables (a few minutes)."""

    n: int = 200
    """Problems per depth, at most 200; checkpoints are measured on a quarter of them."""
    seed: int = 7
    """Seed of the problems."""
    models: pathlib.Path | None = None
    """A family made by `family train`; the embedded one by default."""
    out: pathlib.Path | None = None
    """Also write the whole card, as Markdown, to this file."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Measures, prints tables and targets; a missed target is printed and is no error."""
        from deltalens.checkpoint.atomic import atomic
        from deltalens.errors import BadInput
        from deltalens.family.card import checks, evaluate, read_recipe, tables
        from deltalens.family.catalog import MODELS
        from deltalens.family.readme import markdown

        models = self.models or MODELS
        read_recipe(models)  # a mistaken directory is said before the minute of measuring
        if self.out is not None and (self.out.is_dir() or not self.out.parent.is_dir()):
            raise BadInput(f"{self.out} cannot be written", "--out FILE in an existing directory")
        card = evaluate(models, self.n, self.seed, progress=_nothing if self.quiet else err)
        verdicts = "\n".join(f"{'met' if holds else 'MISSED'}: {text}" for text, holds in checks(card))
        out(f"{tables(card)}\n\n{verdicts}")
        if self.out is not None:
            with atomic(self.out) as temporary:
                temporary.write_text(markdown(card, models), encoding="utf-8")
        return 0


@dataclass(frozen=True, slots=True)
class List:
    """List the members: parent, parameters, size, what each does."""

    def run(self) -> int:
        """Prints one line per member, from the headers alone."""
        from deltalens.family.catalog import MEMBERS, directory, size

        rows = []
        for member in MEMBERS:
            parameters, stored = size(directory(member.name))
            parent = member.parent or "–"
            rows.append(
                [f"family:{member.name}", member.description, parent, f"{parameters:,}", f"{stored / 1e6:.1f} MB"]
            )
        table("", ("name", "what it does", "from", "parameters", "size"), rows, left=3)
        return 0


@dataclass(frozen=True, slots=True)
class Path:
    """Print the directory of a member."""

    name: tyro.conf.Positional[str]
    """Member, such as `reasoning` or `family:reasoning`."""

    def run(self) -> int:
        """Prints the directory."""
        from deltalens.family.catalog import directory

        out(str(directory(self.name.removeprefix("family:"))))
        return 0


def _nothing(line: str) -> None:
    """Where progress goes with --quiet."""
