"""The parts that the page of a run is made of."""

from dataclasses import dataclass, field
from typing import Any

from deltalens.report.headline import Finding
from deltalens.report.run_figures import Figure


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts under a caption and heads."""

    caption: str
    heads: list[str]
    rows: list[list[str]]


@dataclass(frozen=True, slots=True)
class Part:
    """What one step has to say, or why it is absent; its anchor is the name of the step."""

    anchor: str
    title: str
    said: list[Finding] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    absent: str | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """A phase: the question that it answers, how, and its parts."""

    title: str
    asks: str
    parts: list[Part]


Told = tuple[list[Finding], list[Figure], list[Table]]


def sentence(title: str, text: str) -> Finding:
    """A sentence that stands with its figure."""
    return Finding(title, text, "", "")


def records(value: Any) -> list[dict[str, Any]]:
    """The records of a list that a file holds, none where it is no list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def texts(value: Any) -> list[str]:
    """The texts of a list that a file holds, none where it is no list."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
