"""The truth benchmark in small: every part runs, and no target is contradicted by what its few trials can show.

The full run (`make truth`) holds the measured figures themselves against the targets and writes docs/truth.md.
"""

import json
import runpy
import sys
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from truth import accuracy, alarms, ranks, structure, zeros
from truth.document import write
from truth.planted import NOISES, generator
from truth.svg import Series, chart, ticks

from deltalens.statistics import wilson

PARTS = {
    "sigma": (accuracy.run_sigma, accuracy.judge_sigma, accuracy.show_sigma),
    "ranks": (ranks.run_ranks, ranks.judge_ranks, ranks.show_ranks),
    "stored": (ranks.run_stored, ranks.judge_stored, ranks.show_stored),
    "alarms": (alarms.run_alarms, alarms.judge_alarms, alarms.show_alarms),
    "directions": (accuracy.run_directions, accuracy.judge_directions, accuracy.show_directions),
    "zeros": (zeros.run_zeros, zeros.judge_zeros, zeros.show_zeros),
    "structure": (structure.run_structure, structure.judge_structure, structure.show_structure),
    "intervals": (accuracy.run_intervals, accuracy.judge_intervals, accuracy.show_intervals),
}


@cache
def quick(part: str) -> dict:
    """The quick result of a part, through JSON as the cache folder would hand it back."""
    return json.loads(json.dumps(PARTS[part][0](True)))


def script() -> dict:
    """The names of benchmarks/truth.py, whose own name the folder of its parts takes."""
    return runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "truth.py"))


@pytest.mark.parametrize("part", ["sigma", "intervals", "directions"])
def test_exact_targets_are_met(part: str) -> None:
    for target in PARTS[part][1](quick(part)):
        assert target["met"], target


def test_planted_rank_is_not_shown_to_miss() -> None:
    for cell in quick("ranks")["cells"]:
        assert wilson(cell["hits"], cell["trials"])[1] >= ranks.GOAL - 0.05, cell
        assert cell["over"] == 0, cell  # too many would be a false discovery, too few is only caution
    for cell in quick("stored")["cells"]:
        assert wilson(cell["hits"], cell["trials"])[1] >= ranks.GOAL, cell
        assert cell["overlap"] > 0.8, cell


def test_noise_is_not_shown_to_alarm() -> None:
    for cell in quick("alarms")["cells"]:
        assert wilson(cell["alarms"], cell["trials"])[0] <= alarms.GOAL, cell
        assert 0.8 < cell["median"] < 1 or "ulp/4" in cell["noise"], cell  # the edge stands near the noise, above it


def test_dead_zone_is_never_conclusive_and_wrong() -> None:
    never, always, _ = zeros.judge_zeros(quick("zeros"))
    assert never["met"], never
    assert always["met"], always
    laws = {c["law"] for c in quick("zeros")["cells"] if c["verdict"] == "dense"}
    assert "Gaussian" in laws  # silence would also never be wrong


def test_structure_is_seen_and_its_absence_too() -> None:
    passes = quick("structure")["passes"]
    assert wilson(sum(bool(p["survivors"]) for p in passes), len(passes))[0] <= structure.LEVEL
    for target in structure.judge_structure(quick("structure"))[1:]:
        assert target["met"], target


@pytest.mark.parametrize("part", PARTS)
def test_every_part_shows_its_result(part: str) -> None:
    text, plots = PARTS[part][2](quick(part))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) >= 3
    for svg in plots.values():
        assert "nan" not in svg
        assert ET.fromstring(svg).tag.endswith("svg")


def test_the_document_says_what_was_missed(tmp_path: Path) -> None:
    text, plots = PARTS["directions"][2](quick("directions"))
    missed = {"name": "a target", "goal": "≥ 95 %", "measured": "93 %", "met": False, "n": 100, "note": "the cause"}
    part = {"title": "Directions", "seconds": 2.0, "machine": "cpu", "targets": [missed], "text": text, "plots": plots}
    write(tmp_path / "truth.md", [part], {"seed": "1"})
    page = (tmp_path / "truth.md").read_text()
    assert "0 of 1 targets met" in page
    assert "a target: 93 % (goal ≥ 95 %). Why: the cause." in page
    assert (tmp_path / "truth" / "directions.svg").exists()


@pytest.mark.parametrize("name", NOISES)
def test_draws_are_seeded(name: str) -> None:
    one, two = (NOISES[name](generator("seed", name), 20, 30) for _ in range(2))
    assert (one[0] == two[0]).all()
    assert one[1] == two[1]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.9, 4.1), (-6.2, -2.8), (0.0, 15.0), (0.0, 3.0)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 11
    assert low <= found[0] and found[-1] <= high


def test_labels_are_escaped() -> None:
    svg = chart("a < b", "x & y", "z", [Series("<label>", [0, 1], [0, 1])], (0, 1), (0, 1))
    assert "<label>" not in svg
    ET.fromstring(svg)


def test_an_unknown_part_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["truth.py", "--only", "nonsense"])
    with pytest.raises(SystemExit):
        script()["main"]()
    assert "nonsense is no part" in capsys.readouterr().err


def test_a_cached_part_is_not_run_again(tmp_path: Path) -> None:
    made = script()
    first = made["result_of"]("sigma", True, tmp_path, False)
    file = tmp_path / "sigma-quick.json"
    file.write_text(json.dumps(first | {"data": "kept"}))
    assert made["result_of"]("sigma", True, tmp_path, False)["data"] == "kept"
    file.write_text(json.dumps(first | {"code": "older", "data": "stale"}))
    assert made["result_of"]("sigma", True, tmp_path, False)["data"] == first["data"]
