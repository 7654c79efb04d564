"""The dead zone against planted truth: right when conclusive, and never conclusive and wrong on the traps."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import write_checkpoint

import deltalens as dl
from deltalens.checkpoint.pair import Pair
from deltalens.spectrum.deadzone import Cells, DeadZone, fit
from deltalens.spectrum.delta import Delta
from deltalens.spectrum.matrix import Settings, measure_matrix

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16}
SHAPE = (560, 560)  # 313 600 entries
WEIGHT = 0.02


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    return torch.from_numpy(x).to(TORCH[dtype]).double().numpy()


def cells_of(base: np.ndarray, tuned: np.ndarray) -> Cells:
    delta = tuned.astype(np.float32) - base.astype(np.float32)
    cells = Cells.empty()
    for rows in np.array_split(np.arange(len(base)), 3):  # in blocks, as the delta pass counts
        cells.add(base[rows].astype(np.float32), delta[rows], delta[rows].astype(np.float64) ** 2)
    return cells


def judge(update: Callable[..., np.ndarray], scale: float, seed: int, dtype: str = "BF16") -> tuple[DeadZone, float]:
    """The verdict on one planted update, and its true root mean square over the entries that it moves."""
    rng = np.random.default_rng(seed)
    base = rounded(WEIGHT * rng.standard_normal(SHAPE), dtype)
    true = scale * update(rng, base / WEIGHT)
    return fit(cells_of(base, rounded(base + true, dtype)), dtype), rms(true)


def rms(true: np.ndarray) -> float:
    return float(np.sqrt((true**2).sum() / np.count_nonzero(true)))


def gaussian(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
    return rng.standard_normal(w.shape)


def laplace(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
    return rng.laplace(size=w.shape) / 2**0.5


def student(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
    return rng.standard_t(3, w.shape) / 3**0.5


def proportional(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
    return rng.standard_normal(w.shape) * np.abs(w)


def root_proportional(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
    return rng.standard_normal(w.shape) * np.sqrt(np.abs(w))


def scaling(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
    return w


def low_rank(rank: int) -> Callable[..., np.ndarray]:
    def update(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
        return rng.standard_normal((w.shape[0], rank)) @ rng.standard_normal((rank, w.shape[1])) / rank**0.5

    return update


def row_scaled(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
    rows, cols = (np.exp(0.5 * rng.standard_normal(n)) for n in w.shape)
    return rng.standard_normal(w.shape) * rows[:, None] * cols


def wild(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
    return rng.standard_normal(w.shape) * np.exp(2 * rng.standard_normal(w.shape))


def many_scales(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
    return rng.standard_normal(w.shape) * np.exp(rng.uniform(-8, 0, w.shape))


def half_proportional(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
    return rng.standard_normal(w.shape) * np.where(np.arange(len(w))[:, None] % 2 == 0, np.abs(w), 1.0)


def bounded(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
    return rng.uniform(-1, 1, w.shape) * 3**0.5


def signs(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
    return rng.choice([-1.0, 1.0], w.shape)


def sparse(share: float, moved: Callable[..., np.ndarray] = gaussian) -> Callable[..., np.ndarray]:
    def update(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
        return moved(rng, w) * (rng.random(w.shape) >= share)

    return update


DENSE_TRAPS = {
    "gaussian": gaussian,
    "laplace": laplace,
    "student": student,
    "proportional": proportional,
    "root_proportional": root_proportional,
    "scaling": scaling,
    "rank_1": low_rank(1),
    "rank_4": low_rank(4),
    "row_scaled": row_scaled,
    "wild": wild,
    "many_scales": many_scales,
    "bounded": bounded,
    "signs": signs,
}


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("trap", DENSE_TRAPS)
def test_a_dense_update_is_never_called_sparse(trap: str, dtype: str) -> None:
    for seed, scale in enumerate((3e-7, 1e-6, 1e-5, 1e-4, 1e-3)):
        found, true = judge(DENSE_TRAPS[trap], scale, seed, dtype)
        assert found.verdict in ("dense", "inconclusive")
        if found.verdict == "dense":
            assert found.sparsity is not None
            assert found.sparsity <= 0.01
        if found.scale is not None:
            assert found.scale == pytest.approx(true, rel=0.03)


@pytest.mark.parametrize(("dtype", "scales"), [("BF16", (1e-5, 1e-4, 1e-3)), ("F16", (1e-6, 1e-5, 1e-4))])
def test_dense_gaussian_updates_are_recognised(dtype: str, scales: tuple[float, ...]) -> None:
    for scale in scales:
        for seed in range(3):
            found, true = judge(gaussian, scale, seed, dtype)
            assert found.verdict == "dense", found.reason
            assert found.scale == pytest.approx(true, rel=0.01)
            assert found.sparsity == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("trap", ["laplace", "student", "rank_1", "rank_4", "row_scaled"])
def test_other_dense_updates_are_recognised_where_the_grid_is_fine(trap: str) -> None:
    for seed in range(3):
        assert judge(DENSE_TRAPS[trap], 1e-4, seed)[0].verdict == "dense"


@pytest.mark.parametrize("moved", [gaussian, laplace, row_scaled])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("dtype", TORCH)
def test_true_sparsity_is_right_when_found(dtype: str, share: float, moved: Callable[..., np.ndarray]) -> None:
    for seed, scale in enumerate((1e-6, 1e-5, 1e-4)):
        found, true = judge(sparse(share, moved), scale, seed, dtype)
        assert found.verdict in ("sparse", "inconclusive")
        if found.verdict == "sparse":
            assert found.sparsity == pytest.approx(share, abs=0.03)
        if found.scale is not None:
            assert found.scale == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize(("dtype", "scale"), [("BF16", 1e-4), ("F16", 1e-5)])
def test_true_sparsity_is_found(dtype: str, scale: float, share: float) -> None:
    verdicts = [judge(sparse(share), scale, seed, dtype)[0].verdict for seed in range(4)]
    assert verdicts.count("sparse") >= 3, verdicts


def test_heavy_tailed_weights() -> None:
    rng = np.random.default_rng(0)
    base = rounded(WEIGHT * rng.standard_t(4, SHAPE), "BF16")
    for scale in (1e-6, 1e-5, 1e-4):
        true = scale * rng.standard_normal(SHAPE)
        found = fit(cells_of(base, rounded(base + true, "BF16")), "BF16")
        assert found.verdict == "dense" or scale == 1e-6
        assert found.scale is None or found.scale == pytest.approx(scale, rel=0.03)


@pytest.mark.parametrize("share", [0.0, 0.8])
def test_two_independently_rounded_masters(share: float) -> None:
    for seed, scale in enumerate((1e-6, 1e-5, 1e-4, 1e-3)):
        rng = np.random.default_rng(seed)
        master = WEIGHT * rng.standard_normal(SHAPE)
        true = scale * sparse(share)(rng, master)
        found = fit(cells_of(rounded(master, "BF16"), rounded(master + true, "BF16")), "BF16")
        assert found.verdict in ("sparse" if share else "dense", "inconclusive")
        assert found.scale is None or found.scale == pytest.approx(rms(true), rel=0.03)


def test_rows_that_share_their_scale_with_the_weights() -> None:
    for seed, scale in enumerate((1e-6, 1e-5, 1e-4, 1e-3)):
        rng = np.random.default_rng(seed)
        rows = np.exp(0.5 * rng.standard_normal((SHAPE[0], 1)))
        base = rounded(WEIGHT * rows * rng.standard_normal(SHAPE), "BF16")
        true = scale * rows * rng.standard_normal(SHAPE)
        found = fit(cells_of(base, rounded(base + true, "BF16")), "BF16")
        assert found.verdict in ("dense", "inconclusive")
        assert found.scale is None or found.scale == pytest.approx(rms(true), rel=0.03)


@pytest.mark.parametrize("frozen", ["small", "large"])
def test_weights_frozen_by_size_are_not_judged(frozen: str) -> None:
    def update(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
        return rng.standard_normal(w.shape) * ((np.abs(w) < 0.67) == (frozen == "large"))

    for seed, scale in enumerate((1e-5, 1e-4, 1e-3)):
        found, _ = judge(update, scale, seed)
        # Freezing what rounding hides anyway is no observable fact.
        assert found.verdict == "inconclusive" or (frozen == "large" and scale == 1e-5)


def test_a_part_that_grows_with_its_weights_is_noticed_where_it_moves() -> None:
    # At 1e-5 that half of the rows moves by 5e-4 of each weight, an eighth of half a step: no grid shows it, and it
    # counts as not moving.
    for seed, scale in enumerate((3e-5, 1e-4, 3e-4)):
        assert judge(half_proportional, scale, seed)[0].verdict == "inconclusive"


def test_training_without_float32_masters() -> None:
    rng = np.random.default_rng(0)
    base = rounded(WEIGHT * rng.standard_normal(SHAPE), "BF16")
    drift, tuned = rng.standard_normal(SHAPE), base
    for _ in range(20):
        tuned = rounded(tuned + 2e-5 * np.sign(drift + rng.standard_normal(SHAPE)), "BF16")
    assert fit(cells_of(base, tuned), "BF16").verdict == "inconclusive"


def test_no_entry_moved() -> None:
    base = rounded(WEIGHT * np.random.default_rng(0).standard_normal(SHAPE), "BF16")
    found = fit(cells_of(base, base), "BF16")
    assert (found.verdict, found.scale, found.sparsity) == ("inconclusive", None, None)
    assert found.reason == "no entry moved"


@pytest.mark.parametrize("base", [np.zeros((40, 40)), np.full((600, 600), 0.01), np.ones((1, 1))])
def test_too_little_to_see_a_curve(base: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    tuned = rounded(base + 1e-4 * rng.standard_normal(base.shape), "BF16")
    assert fit(cells_of(rounded(base, "BF16"), tuned), "BF16").verdict == "inconclusive"


def test_the_curve_shows_what_was_fitted() -> None:
    found, _ = judge(gaussian, 1e-5, 0)
    steps, entries, observed, fitted = found.curve.T
    assert np.all(np.diff(steps) > 0)
    assert entries.sum() == pytest.approx(15 / 16 * 560**2, rel=0.05)  # less the cells of powers of two
    assert found.misfit is not None
    spread = np.sqrt(observed * (1 - observed) / entries)
    assert np.all(np.abs(observed - fitted) <= found.misfit + 4 * spread + 5 / entries)


def test_cells_count_every_entry_once() -> None:
    rng = np.random.default_rng(1)
    base = rounded(WEIGHT * rng.standard_normal((60, 70)), "F16")
    base[:3] = 0
    tuned = rounded(base + 1e-5 * rng.standard_normal(base.shape), "F16")
    cells = cells_of(base, tuned)
    delta = (tuned - base).astype(np.float32).astype(np.float64)
    assert cells.counts[1].sum() == (delta == 0).sum()
    assert cells.binades.sum() == base.size
    assert cells.binades[0] == (base == 0).sum()
    assert cells.squares.sum() == pytest.approx((delta**2).sum(), rel=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_delta_pass_counts_the_same_cells(tmp_path: Path, transposed: bool) -> None:
    rng = np.random.default_rng(2)
    base = rounded(WEIGHT * rng.standard_normal((90, 50)), "BF16")
    tuned = rounded(base + 1e-5 * rng.standard_normal(base.shape), "BF16")
    row = pair_of(tmp_path, base, tuned).rows[0]
    row = type(row)(row.name, row.base, row.tuned, row.status, row.reason, transposed)
    for held in (2**27, 0):
        cells = Delta(row, block_bytes=2000, held_entries=held).scan().cells
        expected = cells_of(base, tuned)
        assert np.array_equal(cells.counts, expected.counts)
        assert np.allclose(cells.squares, expected.squares, rtol=1e-12)


def pair_of(folder: Path, base: np.ndarray, tuned: np.ndarray, dtypes: tuple[str, str] = ("BF16", "BF16")) -> Pair:
    kinds = TORCH | {"F32": torch.float32}
    sides = [
        write_checkpoint(folder / name, {"w.weight": torch.from_numpy(side).to(kinds[dtype])})
        for name, side, dtype in zip("ab", (base, tuned), dtypes, strict=True)
    ]
    return Pair.open(*map(str, sides))


@pytest.mark.parametrize(
    ("dtypes", "both", "asked"),
    [
        (("BF16", "BF16"), False, True),
        (("F16", "F16"), False, True),
        (("BF16", "BF16"), True, False),
        (("F32", "F32"), False, False),
        (("F32", "BF16"), False, False),
        (("BF16", "F16"), False, False),
    ],
)
def test_columns_of_a_matrix(tmp_path: Path, dtypes: tuple[str, str], both: bool, asked: bool) -> None:
    rng = np.random.default_rng(3)
    base = WEIGHT * rng.standard_normal((300, 300))
    pair = pair_of(tmp_path, rounded(base, "BF16"), base + 1e-3 * rng.standard_normal(base.shape), dtypes)
    part = measure_matrix(pair.rows[0], Settings(both_rounded=both))
    row = part.row
    assert ("zeros" in part.arrays) == asked
    columns = ("deadzone", "deadzone_scale", "deadzone_sparsity", "deadzone_misfit")
    if asked:
        assert row["deadzone"] == "dense"
        assert row["deadzone_scale"] == pytest.approx(1e-3, rel=0.03)
    else:
        assert [row[column] for column in columns] == [None] * 4


def test_the_stored_curve_is_the_fitted_one_beside_the_prediction(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    base = rounded(WEIGHT * rng.standard_normal(SHAPE), "BF16")
    sparse = 1e-4 * rng.standard_normal(SHAPE) * (rng.random(SHAPE) < 0.3)
    tuned = rounded(base + sparse, "BF16")
    run = dl.measure_diff(pair_of(tmp_path, base, tuned), tmp_path / "run", context=False)
    assert run.deadzone is not None
    rows = run.deadzone.to_pylist()
    curve = fit(cells_of(base, tuned), "BF16").curve
    stored = np.array([[row[key] for key in ("step", "entries", "observed", "fitted")] for row in rows])
    assert {row["name"] for row in rows} == {"w.weight"}
    assert np.allclose(stored, curve, rtol=1e-12)
    entries, observed, predicted = (
        np.array([row[key] for row in rows]) for key in ("entries", "observed", "predicted")
    )
    (matrix,) = run.matrices.to_pylist()
    assert entries @ predicted / entries.sum() == pytest.approx(matrix["predicted_zero_fraction"], abs=0.01)
    assert np.all(np.diff(predicted) > 0)  # a coarser step hides more
    assert observed[0] > 0.6 > 0.1 > predicted[0]  # at the finest step only what never moved is left


def test_a_curve_without_a_fit_has_none(tmp_path: Path) -> None:
    base = rounded(WEIGHT * np.random.default_rng(5).standard_normal((30, 30)), "BF16")
    run = dl.measure_diff(pair_of(tmp_path, base, 1.01 * base), tmp_path / "run", context=False)
    assert run.deadzone is not None
    rows = run.deadzone.to_pylist()
    assert rows
    assert all(row["fitted"] is None and row["observed"] <= 1 for row in rows)


def test_a_run_of_an_earlier_version_opens_without_its_curve(tmp_path: Path) -> None:
    base = rounded(WEIGHT * np.random.default_rng(6).standard_normal((30, 30)), "BF16")
    run = dl.measure_diff(pair_of(tmp_path, base, 1.01 * base), tmp_path / "run", context=False)
    (run.path / "deadzone.parquet").unlink()
    record = json.loads((run.path / "run.json").read_text())
    del record["tables"]["deadzone.parquet"]
    (run.path / "run.json").write_text(json.dumps(record | {"numerics_version": 1}))
    assert dl.Run.open(run.path).deadzone is None
    again = dl.measure_diff(pair_of(tmp_path, base, 1.01 * base), tmp_path / "run", context=False)
    assert again.deadzone is not None  # measuring again redoes what an earlier version left
    assert again.record["numerics_version"] > 1
