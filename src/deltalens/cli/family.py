"""`deltalens family train|card|list|path`: the embedded checkpoints, their making and their merit."""

import pathlib
from dataclasses import dataclass

import tyro

from deltalens.cli.display import err, out, table


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

        if not self.seeds or self.threads < 1 or not all(0 <= seed < 2**63 for seed in self.seeds):
            raise BadInput("training needs seeds below 2^63 and a thread", "--seeds 0 1 --threads 2")
        train(self.out, self.seeds, _nothing if self.quiet else err, self.threads)
        out(str(self.out))
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
        from deltalens.checkpoint.atomic import atomic
        from deltalens.errors import BadInput
        from deltalens.family.card import checks, evaluate, markdown, read_recipe
        from deltalens.family.card import table as card_table
        from deltalens.family.catalog import MODELS

        models = self.models or MODELS
        read_recipe(models)  # a mistaken directory is said before the minute of measuring
        if self.out is not None and (self.out.is_dir() or not self.out.parent.is_dir()):
            raise BadInput(f"{self.out} cannot be written", "--out FILE in an existing directory")
        card = evaluate(self.n, self.seed, models, progress=_nothing if self.quiet else err)
        verdicts = "\n".join(f"{'met' if holds else 'MISSED'}: {text}" for text, holds in checks(card))
        out(f"{card_table(card)}\n\n{verdicts}")
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
