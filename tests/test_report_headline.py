"""The first sentences of the page: true on planted cases, absent where their data or their null is."""

import re
from pathlib import Path
from typing import Any

import pytest
from run_factory import make_run

from deltalens.report.card import comparable, size_effects, table
from deltalens.report.context import by_kind, masks, ratios
from deltalens.report.headline import Finding, findings, paired_ranks, principal
from deltalens.report.heads import choices, slices
from deltalens.report.nulls import forest, outcomes
from deltalens.report.view import View, matched, read_views
from deltalens.report.words import number

BASE = ("family:base", "family:instruct")


def views(tmp_path: Path, *cases: dict[str, Any]) -> list[View]:
    sides = [BASE, ("family:instruct", "family:reasoning")][-len(cases) :]
    runs = [
        make_run(tmp_path / f"run-{i}", **{"sides": pair, **case})
        for i, (pair, case) in enumerate(zip(sides, cases, strict=True))
    ]
    return read_views(runs)


def said(found: list[Finding]) -> dict[str, str]:
    return {one.anchor: f"{one.title} | {one.text}" for one in found}


def test_three_to_five_sentences_and_their_figures(tmp_path: Path) -> None:
    full = findings(views(tmp_path, {"full": True}, {"full": True}))
    assert [one.anchor for one in full] == ["map", "depth", "context", "zeros", "nulls"]
    plain = findings(views(tmp_path / "plain", {}))
    assert [one.anchor for one in plain] == ["map", "depth", "zeros"]


def test_low_rank_is_not_specific_where_the_other_pair_is_low_rank_too(tmp_path: Path) -> None:
    text = said(findings(views(tmp_path, {"decay": 0.3}, {"decay": 0.3, "denoised_effective_rank": 14.0})))["depth"]
    assert text.startswith("Low-rank, but not specific to instruct → reasoning |")
    assert re.search(r"(9\d[.\d]* %) in instruct → reasoning and \1 in base → instruct", text)
    assert "instruct → reasoning is no lower in rank than base → instruct: median denoised effective rank 14" in text


@pytest.mark.parametrize(
    ("own", "other", "title"),
    [
        ({"decay": 0.3}, {"decay": 0.99}, "Low-rank above noise"),
        ({"decay": 0.99}, {"decay": 0.3}, "Not low-rank above noise"),
        ({"decay": 0.9, "denoised_effective_rank": 12.5}, {"decay": 0.3}, "No lower in rank than base → instruct"),
        ({"decay": 0.9, "denoised_effective_rank": 9.0}, {"decay": 0.3}, "Low rank above noise: undecided"),
        ({"decay": 0.3, "snr": 0.5}, {"decay": 0.99}, "No lower in rank than base → instruct"),
        ({"decay": 0.3, "snr": 0.5, "denoised_effective_rank": 9.0}, {}, "Low rank above noise: undecided"),
    ],
)
def test_words_about_rank(tmp_path: Path, own: dict[str, Any], other: dict[str, Any], title: str) -> None:
    found = next(one for one in findings(views(tmp_path, other, own)) if one.anchor == "depth")
    assert found.title == title
    assert ("decides nothing" in found.text) == ("snr" in own)


def test_a_lower_rank_is_a_finding_only_at_equal_size(tmp_path: Path) -> None:
    low = {"denoised_effective_rank": 9.0}
    text = said(findings(views(tmp_path, {}, low)))["depth"]
    assert "instruct → reasoning is lower in rank than base → instruct: median denoised effective rank 9" in text
    text = said(findings(views(tmp_path / "sizes", {"scale": 2.0}, low)))["depth"]
    assert "is lower" not in text and "differ in size, which alone can do that" in text


def test_ranks_are_compared_over_the_same_matrices(tmp_path: Path) -> None:
    first, second = views(tmp_path, {"layers": 1}, {"layers": 3})
    assert paired_ranks(first, second) == (12.5, 12.5)
    without = views(tmp_path / "none", {"denoised_effective_rank": None}, {})
    assert paired_ranks(*without) is None


@pytest.mark.parametrize(
    ("energy", "title"),
    [
        (0.9, "On the base's principal directions"),
        (0.001, "Off the base's principal directions"),
    ],
)
def test_on_or_off_the_principals(tmp_path: Path, energy: float, title: str) -> None:
    view = views(tmp_path, {"full": True, "principal_energy": energy})[0]
    text = said(findings([view]))["context"]
    found = principal(view.rows)
    assert text.startswith(title) and found is not None and found[0] == pytest.approx(energy)
    assert "Gaussian in 7 of 7 and permuted within binades in 7 of 7 matrices tested" in text
    ratios = sorted(row["principal_energy_ratio"] for row in view.rows)
    assert f"in the median matrix {number(ratios[len(ratios) // 2], 2)} ×" in text


def test_at_chance_is_said_so(tmp_path: Path) -> None:
    view = views(tmp_path, {"full": True})[0]
    for row in view.rows:
        row["principal_energy"] = 256 / (row["rows"] * row["cols"])
    assert said(findings([view]))["context"].startswith("Neither on nor off the base's principal directions")


@pytest.mark.parametrize(
    ("observed", "predicted", "title"),
    [
        (0.31, 0.29, "Unchanged entries are explained by storage precision"),
        (0.9, 0.29, "Sparser than storage precision explains"),
        (0.1, 0.29, "Denser than storage precision predicts"),
    ],
)
def test_zeros(tmp_path: Path, observed: float, predicted: float, title: str) -> None:
    changes = {"zero_fraction": observed, "predicted_zero_fraction": predicted}
    found = next(one for one in findings(views(tmp_path, changes)) if one.anchor == "zeros")
    assert found.title == title and "15 of 15 matrices" in found.text


def test_the_null_ensemble_overrules_the_prediction(tmp_path: Path) -> None:
    view = views(tmp_path, {"full": True})[0]
    for row in view.nulls or []:
        row["z"] = 12.0
    assert said(findings([view]))["zeros"].startswith("Unchanged entries: near what precision predicts, but not")
    assert said(findings([view]))["nulls"].startswith("All 5 statistics survive every structureless update")


def test_what_survives(tmp_path: Path) -> None:
    text = said(findings(views(tmp_path, {"full": True}, {"full": True})))["nulls"]
    assert text.startswith("2 of 4 statistics survive every structureless update")  # one has no spread: not counted
    assert "principal energy and κ; not so: output rotation and low mask 30 %" in text
    assert "What survives here survives in base → instruct too" in text
    view = views(tmp_path / "one", {"full": True})[0]
    assert [(line.statistic, line.word) for line in outcomes(view.nulls)] == [
        ("principal_energy", "every null"),
        ("spectral_energy", "every null"),
        ("left_rotation", "no null"),
        ("mask_low_30", "no null"),
        ("zero_fraction", "no spread in the null"),
    ]
    for row in view.nulls or []:
        row["z"] = 12.0 if row["null"] == "gaussian" and row["statistic"] != "zero_fraction" else 1.0
    assert {line.word for line in outcomes(view.nulls)} == {"Gaussian", "no null"}
    assert said(findings([view]))["nulls"].startswith("No statistic survives")


def test_no_sentence_without_its_null(tmp_path: Path) -> None:
    gone = dict.fromkeys(["snr", "predicted_zero_fraction", "bulk_edge", "spikes", "spike_energy"])
    floorless = views(tmp_path, {"noise_model": "none", "noise_sigma": 0.0, "floor_edge": 0.0, **gone})
    assert findings(floorless) == []
    assert findings(views(tmp_path / "zero", {"scale": 0.0})) == []
    for name in ("rotation", "energy"):  # context without its null: no ratio, no table cell
        view = views(tmp_path / name, {"full": True, "left_rotation_null": None, "context_k": None})[0]
        assert view.rows[0]["left_rotation_ratio"] is None and view.rows[0]["principal_energy_ratio"] is None
        cells = dict(by_kind(view.rows))["embed"]
        assert cells[0] == ("–", "–") and cells[4] == ("–", "–")
        assert "context" not in said(findings([view]))


def test_size_beside_rounding_and_kinds_beside_their_entries(tmp_path: Path) -> None:
    view = views(tmp_path, {"noise_sigma": 1e-9})[0]
    text = said(findings([view]))["map"]
    assert "× what rounding shows" in text and "For its size" in text
    loud = said(findings(views(tmp_path / "loud", {"noise_sigma": 1.0})))["map"]
    assert loud.startswith("A change of 1.54 %, no more than rounding shows") or "no more than rounding" in loud


def test_ratios_and_masks(tmp_path: Path) -> None:
    row = views(tmp_path, {"full": True})[0].rows[1]
    found = ratios(row)
    assert found["principal_energy_ratio"] == pytest.approx(2.0)
    assert found["left_energy_ratio"] == pytest.approx(1.5) and found["right_rotation_ratio"] == pytest.approx(1.5)
    assert ratios(row | {"spectral_drift_null": 0.0})["spectral_drift_ratio"] is None
    lines = masks([row])
    assert len(lines) == 6 and lines[1]["observed"] == pytest.approx(1 / 3) and lines[1]["expected"] == 0.5
    assert masks([row | {"mask_low_10": None}])[0]["alpha"] == 0.3


def test_size_matched_runs(tmp_path: Path) -> None:
    sides = ("family:instruct", "family:reasoning")
    runs = [
        make_run(tmp_path / "base-to-instruct", sides=BASE, full=True, stable_rank=5.0, spectral_energy=3.0),
        make_run(tmp_path / "large", sides=sides, scale=2.0, full=True, stable_rank=9.0, spectral_energy=1.0),
        make_run(tmp_path / "matched", sides=sides, full=True, stable_rank=4.0, spectral_energy=1.5,
                 size_matched="family:base → family:instruct (0123456789ab)"),
    ]  # fmt: skip
    found = read_views(runs)
    assert found[2].label == "instruct → reasoning, size-matched to base → instruct"
    effects = " ".join(size_effects(found))
    assert "size effect in stable rank, raw" in effects and "the order stays in κ" in effects
    assert "base → instruct with instruct → reasoning, size-matched" in (comparable(found) or "")
    assert table(found)[0][1][2] == ("5", "12.5 effective, denoised")
    assert comparable(found[:1]) is None and "no row may be ranked" in (comparable(found[:2]) or "")
    assert size_effects(found[:2]) == []


def test_what_a_run_is_matched_to() -> None:
    for value, shown in {
        "RUN": "RUN",
        "a/RUN/": "RUN",
        "family:base → family:instruct (0123456789ab)": "base → instruct",
        "org/a → /models/b/ (0123456789ab)": "a → b",
    }.items():
        assert matched({"settings": {"size_matched": value}}) == shown
    assert matched({"settings": {"size_matched": None}}) is None and matched({"settings": 3}) is None


def test_heads_and_forest(tmp_path: Path) -> None:
    view = views(tmp_path, {"full": True})[0]
    found = slices(view.heads)
    assert list(found) == ["q", "k", "v", "o", "qk", "ov"] and found["k"]["heads"] == [0, 1]
    assert found["qk"]["relative_change"] == [[0.02, 0.04, 0.02, 0.02], [0.02] * 4]
    assert choices([found])[-1] == ["ov", "OV product (gauge-free)"]
    assert slices(None) == {} and outcomes(None) == [] and forest(None)["rows"] == {}
    drawn = forest(view.nulls)
    assert len(drawn["matrices"]) == 7 and drawn["nulls"] == ["Gaussian", "permuted within binades"]
    assert drawn["rows"]["spectral_energy"][0][2:] == pytest.approx([1.4, 0.7, 0.07, 10.0])
