"""The architecture, asserted: a room imports only rooms above it; weight-side rooms never load transformers."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "deltalens"
ROOMS = [
    "errors",
    "statistics",
    "checkpoint",
    "store",
    "spectrum",
    "model",
    "direction",
    "edit",
    "evaluate",
    "sweep",
    "methods",
    "experiment",
    "report",
    "export",
    "family",
    "cli",
]
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem in ROOMS)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at any depth of its code, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_one_way(path: Path) -> None:
    here = room(path)
    assert here in ROOMS, f"{here} is not a room"
    for module in imports(path):
        if not module.startswith("deltalens."):
            continue
        there = module.split(".")[1]
        if there == "__version__":
            continue
        assert there in ROOMS, f"{path} imports {module}, which is in no room"
        assert ROOMS.index(there) <= ROOMS.index(here), f"{here} may not import {there} ({path}: {module})"
        if here == "statistics":
            assert there == "statistics", "statistics imports nothing of ours"


WEIGHT_SIDE = {"checkpoint", "store", "spectrum", "report"}


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in WEIGHT_SIDE], ids=str)
def test_weight_side_never_loads_transformers(path: Path) -> None:
    assert not any(m.split(".")[0] == "transformers" for m in imports(path))


def test_family_is_found_without_importing_it() -> None:
    for path in FILES:
        if room(path) == "checkpoint":
            assert not any(m.startswith("deltalens.family") for m in imports(path))
