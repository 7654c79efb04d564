"""Words and sentences of one run: true for any numbers, with the words that docs/measures.md §2 allows."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalens.report.summary import lead, size_note, summarise, support
from deltalens.report.words import NOTHING, confined_words, facts, number, percent, spike_count, zero_word


def row(**changes: Any) -> dict[str, Any]:
    """A matrix of a bf16 pair with two spikes."""
    return {
        "rows": 64,
        "cols": 32,
        "dtype_base": "BF16",
        "dtype_tuned": "BF16",
        "status": "measured",
        "norm_delta": 2.0,
        "relative_change": 0.1,
        "noise_model": "tuned_rounded",
        "effective_rank": 20.0,
        "denoised_effective_rank": 5.0,
        "spikes": 2,
        "spikes_capped": False,
        "spike_energy": 0.75,
        "above_floor": 7,
        "floor_edge": 0.01,
        "bulk_edge": 0.02,
        "zero_fraction": 0.5,
        "predicted_zero_fraction": 0.45,
        "row_share_1": 0.05,
        "col_share_1": 0.05,
    } | changes


ZERO = row(norm_delta=0.0, relative_change=0.0, spikes=0, spike_energy=0.0, above_floor=0, effective_rank=0.0,
           denoised_effective_rank=None, zero_fraction=1.0, predicted_zero_fraction=1.0)  # fmt: skip
BELOW = row(spikes=0, spike_energy=0.0, above_floor=0, denoised_effective_rank=None)
FLOAT32 = row(noise_model="none", dtype_base="F32", dtype_tuned="F32", floor_edge=0.0, predicted_zero_fraction=None,
              denoised_effective_rank=20.0)  # fmt: skip
REFUSED = dict.fromkeys(row()) | {"rows": 64, "cols": 32, "status": "refused"}


def test_the_answer_of_a_planted_run() -> None:
    summary = summarise([row(), row(effective_rank=24.0, denoised_effective_rank=7.0), BELOW])
    assert lead(1.0, 0.0321, summary) == (
        "The weights moved by 3.21 % of their norm; 2 of 3 matrices have spikes above rounding and chance; "
        "the median effective rank is 6 denoised (22 raw, at most 32)."
    )
    said = support(summary, {"down_proj": 0.4, "up_proj": 0.35, "q_proj": 0.25})
    assert "1 of 3 matrices is below the rounding floor: no singular value exceeds what rounding alone can show." in [
        line[:1].lower() + line[1:] for line in said
    ]
    assert "down_proj and up_proj hold 75 % of ‖Δ‖²." in said
    assert "Entries that did not change, in 3 matrices with a prediction: explained by precision in 3." in said
    assert summary.spike_energy == pytest.approx(0.5)


def test_raw_and_denoised_medians_are_over_the_same_matrices() -> None:
    summary = summarise([row(), row(effective_rank=999.0, denoised_effective_rank=None)])
    assert (summary.raw_rank, summary.denoised_rank, summary.ranked) == (20.0, 5.0, 1)


@pytest.mark.parametrize(
    ("rows", "norm", "change", "answer"),
    [
        ([ZERO, ZERO], 0.0, 0.0, "No compared tensor changed: both matrices are identical on the two sides."),
        ([ZERO], 0.0, None, "No compared tensor changed: the only matrix is identical on the two sides."),
        (
            [ZERO, ZERO],
            0.1,
            1e-4,
            "The weights moved by 0.01 % of their norm, none of it in a matrix: both matrices are identical on the "
            "two sides.",
        ),
        (
            [BELOW, BELOW],
            1.0,
            0.002,
            "The weights moved by 0.2 % of their norm, and both matrices are below the rounding floor.",
        ),
        (
            [FLOAT32],
            1.0,
            0.1,
            "The weights moved by 10 % of their norm; the only matrix has spikes above chance; the median effective "
            "rank is 20 (at most 32), with no rounding floor to correct for.",
        ),
        ([REFUSED], 0.0, None, "No matrix could be measured."),
        ([], 0.0, None, "No matrix could be measured."),
    ],
)
def test_the_answer_at_the_edges(rows: list[dict[str, Any]], norm: float, change: float | None, answer: str) -> None:
    assert lead(norm, change, summarise(rows)) == answer


def test_floorless_and_refused_are_said() -> None:
    said = " ".join(support(summarise([FLOAT32, row(), REFUSED]), {}))
    assert "1 of 2 matrices has no rounding floor (float32 storage)" in said
    assert "1 matrix was refused and not measured; the ledger says why." in said


@pytest.mark.parametrize(
    ("observed", "predicted", "word"),
    [
        (0.50, 0.45, "explained by precision"),
        (0.35, 0.40, "explained by precision"),  # exactly −.05, which binary fractions miss
        (0.52, 0.40, "explained by precision"),  # exactly .12
        (0.521, 0.40, "sparser"),
        (0.349, 0.40, "denser"),
        (None, 0.4, None),
        (0.4, None, None),
    ],
)
def test_words_about_zeros(observed: float | None, predicted: float | None, word: str | None) -> None:
    assert zero_word(observed, predicted) == word


def test_confined() -> None:
    assert confined_words(row(row_share_1=0.26)) == ["row-confined"]
    assert confined_words(row(row_share_1=0.25, col_share_1=0.3)) == ["column-confined"]
    assert confined_words(row()) == []
    assert confined_words(REFUSED) == []
    assert "row-confined (60 % of ‖Δ‖² in one line)" in dict(facts(row(row_share_1=0.6))).values()


def test_caption_of_a_matrix() -> None:
    said = dict(facts(row()))
    assert said["Shape"] == "64 × 32, BF16 → BF16"
    assert said["Effective rank"] == "20 raw → 5 denoised, of 32"
    assert said["Spikes"] == "2, holding 75 % of ‖Δ‖²"
    assert said["Unchanged entries"] == "50 % observed, 45 % predicted: explained by precision"
    assert "not low-rank" in said["Above the floor"]


def test_captions_without_numbers() -> None:
    below = dict(facts(BELOW))
    assert below["Above the floor"] == "nothing: below the rounding floor"
    assert "20" not in below["Effective rank"]  # no raw rank without its denoised partner
    assert dict(facts(ZERO))["Change"] == "none: Δ = 0"
    assert dict(facts(REFUSED))["Status"] == "refused, see the ledger"
    floorless = dict(facts(FLOAT32))
    assert floorless["Rounding floor"] == "none (float32 storage)"
    assert "no rounding floor to correct for" in floorless["Effective rank"]
    no_edge = dict(facts(row(bulk_edge=None, spikes=None, spike_energy=None)))
    assert (no_edge["Bulk edge"], no_edge["Spikes"]) == ("not computed", "not counted")


def test_a_capped_count_says_so() -> None:
    assert spike_count(row(spikes=256, spikes_capped=True)) == "≥ 256"
    assert spike_count(row(spikes=None, spikes_capped=None)) == NOTHING


def test_pairs_of_different_size_are_not_ranked() -> None:
    note = size_note(["a → b", "b → c"], [0.06, 0.03])
    assert note is not None and "6 % (a → b) and 3 % (b → c)" in note and "not a finding" in note
    assert size_note(["a → b", "b → c"], [0.06, 0.0601]) is None
    assert size_note(["a → b"], [0.06]) is None
    assert size_note(["a → b", "b → c"], [0.06, None]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, NOTHING), (math.nan, NOTHING), (math.inf, NOTHING), (0, "0"), (7, "7"), (801536, "801\u202f536"),
     (3.14159, "3.14"), (1234.5, "1\u202f234"), (1e-7, "1e-07"), (5120.0, "5\u202f120")],
)  # fmt: skip
def test_numbers(value: int | float | None, text: str) -> None:
    assert number(value) == text


@given(st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True))
def test_a_part_is_never_all_or_nothing(share: float) -> None:
    assert percent(share) not in ("0 %", "100 %")
    assert "e" not in percent(share)


@given(
    st.lists(
        st.builds(
            row,
            norm_delta=st.sampled_from([0.0, 1e-9, 3.0]),
            spikes=st.one_of(st.none(), st.integers(0, 40)),
            above_floor=st.integers(0, 32),
            denoised_effective_rank=st.one_of(st.none(), st.floats(1, 32)),
            spike_energy=st.one_of(st.none(), st.floats(0, 1)),
            noise_model=st.sampled_from(["none", "tuned_rounded", "both_rounded"]),
            predicted_zero_fraction=st.one_of(st.none(), st.floats(0, 1)),
        ),
        max_size=5,
    ),
    st.one_of(st.none(), st.floats(0, 5)),
)
def test_sentences_hold_no_none_and_no_nan(rows: list[dict[str, Any]], change: float | None) -> None:
    summary = summarise(rows)
    told = [lead(1.0, change, summary), *support(summary, {"q_proj": 0.6, "vector": 0.4})]
    told += [f"{term} {value}" for r in rows for term, value in facts(r)]
    for text in told:
        assert "None" not in text and "nan" not in text
