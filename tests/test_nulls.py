"""Nulls: exact rounding, exact permutations, calibrated sizes, and no structure seen where there is none."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_context import row_of, weights

from deltalens.checkpoint.pair import Pair, Row
from deltalens.errors import BadInput
from deltalens.spectrum import nulls
from deltalens.spectrum.delta import Delta
from deltalens.spectrum.draw import NULLS, Draw, binade_groups, calibrated, noise, permuted
from deltalens.spectrum.matching import find_scale
from deltalens.spectrum.noise import binade_index
from deltalens.spectrum.nulls import STATISTICS, NullSettings, choose, cost, measure_nulls, survives
from deltalens.spectrum.rounding import to_grid
from deltalens.statistics import wilson

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def gaussian(seed: int, m: int, n: int, dtype: str = "BF16", size: float = 0.02) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return to_grid(rng.standard_normal((m, n), dtype=np.float32) * np.float32(size), dtype)


def drawn(row: Row, **how: object) -> list[dict]:
    return measure_nulls(row, NullSettings(**{"k": 8, **how})).row["rows"]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_rounding_is_that_of_torch(dtype: str) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    ties = ((rng.integers(0, 2**15, 5000, dtype=np.uint32) << 16) | 0x8000).view(np.float32)
    half = np.arange(0, 0x7BFF, 7, dtype=np.uint16).view(np.float16).astype(np.float32) * np.float32(1 + 2**-11)
    special = np.array([0.0, -0.0, np.inf, -np.inf, 65504, 65519, 65520, 1e-45, 3.4e38, 2**-24, 2**-25], np.float32)
    x = np.concatenate([bits, ties, half, special])
    x = x[~np.isnan(x)]
    expected = torch.from_numpy(x).to(TORCH[dtype]).float().numpy()
    rounded = to_grid(x, dtype)
    assert np.array_equal(rounded.view(np.uint32), expected.view(np.uint32))
    assert np.array_equal(to_grid(rounded, dtype), rounded)
    with pytest.raises(ValueError, match="F8"):
        to_grid(x, "F8_E4M3")


def test_permutation_keeps_every_binade_exactly() -> None:
    base = gaussian(0, 80, 60)
    delta = to_grid(base + gaussian(1, 80, 60, "F32", 1e-4), "BF16") - base
    groups = binade_groups(base)
    mixed = permuted(delta, groups, np.random.default_rng(3))
    binade = binade_index(base.view(np.uint32).ravel())
    for b in np.unique(binade):
        assert np.array_equal(np.sort(delta.ravel()[binade == b]), np.sort(mixed.ravel()[binade == b]))
    assert not np.array_equal(delta, mixed)
    assert np.array_equal(mixed, permuted(delta, groups, np.random.default_rng(3)))
    # Half steps below a power of two stay on powers of two, or rounding would lose them.
    seen = Draw(base, mixed, "BF16")
    seen.at(1.0)
    assert seen.changed == pytest.approx(np.mean(delta != 0), abs=1 / base.size)
    assert seen.norm == pytest.approx(np.linalg.norm(delta), rel=5e-3)


@pytest.mark.parametrize("null", ["gaussian", "laplace", "proportional"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("size", [1e-5, 1e-4, 1e-2])
def test_norm_is_matched_after_rounding(null: str, dtype: str, size: float) -> None:
    base = gaussian(0, 200, 150, dtype)
    observed = to_grid(base + gaussian(1, 200, 150, "F32", size), dtype) - base
    target = float(np.linalg.norm(observed))
    seen = Draw(base, noise(null, np.random.default_rng(2), base), dtype)
    scale = calibrated(seen, "norm", target)
    assert np.linalg.norm(seen.delta) == pytest.approx(target, rel=0.01)
    assert seen.scale == scale
    assert np.array_equal(seen.delta, to_grid(base + np.float32(scale) * seen.noise, dtype) - base)


@pytest.mark.parametrize("null", ["gaussian", "laplace", "proportional"])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.98])
def test_zero_share_is_matched(null: str, share: float) -> None:
    base = gaussian(0, 200, 150)
    seen = Draw(base, noise(null, np.random.default_rng(2), base), "BF16")
    calibrated(seen, "zeros", 1 - share)
    assert np.mean(seen.delta == 0) == pytest.approx(share, abs=0.005)


def test_scales_that_cannot_be_found_end_nearby() -> None:
    assert find_scale(lambda s: s**2, 9.0, 1.0, 1e-9) == pytest.approx(3)
    assert find_scale(lambda s: float(s > 0.7), 0.5, 1.0, 1e-9) > 0.7  # a jump: the nearer side of it
    assert find_scale(lambda s: 0.0, 0.5, 1.0, 1e-9, steps=5) > 0
    assert find_scale(lambda s: 2.0 + s, 1.0, 1.0, 1e-9) < 0.1  # rounding alone exceeds it


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_unstructured_updates_show_no_structure(tmp_path: Path, dtype: str) -> None:
    trials = 40 if dtype == "BF16" else 20
    seen = dict.fromkeys(STATISTICS, 0)
    any_seen = 0
    extreme: dict[str, list[float]] = {name: [] for name in STATISTICS}
    for trial in range(trials):
        m, n = ((48, 64), (64, 48))[trial % 2]
        base = to_grid(weights(np.random.default_rng(trial), m, n) * np.float32(0.05), dtype)
        tuned = base + gaussian(1000 + trial, m, n, "F32", 1e-4)
        rows = drawn(row_of(tmp_path, base, tuned, TORCH[dtype]), seed=trial)
        survivors = {statistic for (_, statistic), names in survives(rows).items() if names}
        any_seen += bool(survivors)
        for statistic in survivors:
            seen[statistic] += 1
        for r in rows:
            if r["z"] is not None:
                extreme[r["statistic"]].append(r["z"])
    for statistic, count in seen.items():
        assert wilson(count, trials)[0] <= 0.05, (statistic, count)
    assert wilson(any_seen, trials)[0] <= 0.05, seen
    for statistic, z in extreme.items():
        if z and (
            dtype == "BF16" or "mask" not in statistic
        ):  # two nulls a trial; t with 19 degrees of freedom has a spread of 1.08; in float32 the
            # masks miss single entries
            assert abs(np.mean(z)) < 0.6, (statistic, np.mean(z))


def planted(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    base = to_grid(weights(rng, 128, 96) * np.float32(0.1), "BF16")
    u, _, vt = np.linalg.svd(base)
    if kind == "rank":
        left, right = (np.linalg.qr(rng.standard_normal((d, 4)))[0] for d in base.shape)
        delta = left @ right.T
    elif kind == "principal":
        delta = u[:, :8] @ rng.standard_normal((8, 8)) @ vt[:8]
    elif kind == "proportional":
        delta = np.abs(base) * rng.standard_normal(base.shape)
    elif kind == "scaling":
        delta = base
    else:
        skew = rng.standard_normal((128, 128))
        delta = (skew - skew.T) @ base
    return base, base + delta * (0.05 * np.linalg.norm(base) / np.linalg.norm(delta))


@pytest.mark.parametrize(
    ("kind", "seen", "unseen"),
    [
        ("rank", ["stable_rank", "top_energy_16"], []),
        ("principal", ["principal_energy", "left_energy", "right_energy", "stable_rank"], []),
        ("scaling", ["spectral_energy", "spectral_drift", "scaling"], []),
        ("rotation", ["spectral_energy"], ["scaling"]),
    ],
)
def test_planted_structure_survives(tmp_path: Path, kind: str, seen: list[str], unseen: list[str]) -> None:
    rows = drawn(row_of(tmp_path, *planted(kind), torch.bfloat16))
    found = {statistic: names for (_, statistic), names in survives(rows).items()}
    for statistic in seen:
        assert set(found[statistic]) == {"gaussian", "permuted"}, statistic
    for statistic in unseen:
        assert found[statistic] == (), statistic
    z = {(r["statistic"], r["null"]): r["z"] for r in rows}
    if kind == "scaling":
        assert z["left_angle", "gaussian"] < 0 < z["spectral_energy", "gaussian"]
    if kind == "rotation":
        assert z["spectral_energy", "gaussian"] < 0


def test_a_proportional_update_is_explained_by_its_own_null_only(tmp_path: Path) -> None:
    base, tuned = planted("proportional")
    row = row_of(tmp_path, base, base + (tuned - base) * 0.1, torch.bfloat16)
    rows = drawn(row, mode="full")
    low = {r["null"]: r for r in rows if r["statistic"] == "mask_low_30" and r["calibration"] == "norm"}
    assert low["gaussian"]["z"] < -8  # magnitude-blind updates change small weights more often
    assert low["laplace"]["z"] < -8
    assert abs(low["proportional"]["z"]) < 4
    assert {(r["null"], r["calibration"]) for r in rows} == {
        ("permuted", "norm"),
        *((null, calibration) for null in set(NULLS) - {"permuted"} for calibration in ("norm", "zeros")),
    }


def test_rows_are_complete_and_repeatable(tmp_path: Path) -> None:
    base = gaussian(0, 64, 40)
    row = row_of(tmp_path, base, base + gaussian(1, 64, 40, "F32", 1e-4), torch.bfloat16)
    rows = drawn(row, draws=3)
    json.dumps(rows, allow_nan=False)
    assert rows == drawn(row, draws=3)
    assert rows != drawn(row, draws=3, seed=1)
    assert {r["statistic"] for r in rows if r["null"] == "gaussian"} == set(STATISTICS)
    assert {r["statistic"] for r in rows if r["null"] == "permuted"} == set(STATISTICS) - {"zero_fraction"}
    for r in rows:
        assert r["draws"] == 3
        assert r["z"] == pytest.approx((r["observed"] - r["mean"]) / r["sd"])
    assert [r["statistic"] for r in rows if r["null"] == "gaussian"] == list(STATISTICS)


def test_large_short_sides_use_krylov(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = weights(np.random.default_rng(0), 700, 600) * np.float32(0.1)
    row = row_of(tmp_path, base, base + gaussian(1, 700, 600, "F32", 1e-4), torch.bfloat16)
    whole = {(r["statistic"], r["null"]): r for r in drawn(row, draws=2)}
    monkeypatch.setattr(nulls, "SPECTRUM_SHORT", 100)
    rows = drawn(row, draws=2)
    assert {"spectral_drift", "scaling"}.isdisjoint({r["statistic"] for r in rows})
    for r in rows:
        assert r["observed"] == pytest.approx(whole[r["statistic"], r["null"]]["observed"], rel=0.02), r["statistic"]


def test_nothing_to_draw_for(tmp_path: Path) -> None:
    base = gaussian(0, 12, 9)
    spoilt = base.copy()
    spoilt[0, 0] = np.inf
    for before, after, reason in [
        (np.zeros_like(base), base, "zero"),
        (base, base, "zero"),
        (base, spoilt, "NaN or Inf"),
    ]:
        part = measure_nulls(row_of(tmp_path, before, after), NullSettings())
        assert part.row["rows"] == []
        assert reason in part.row["reason"]
    one = drawn(row_of(tmp_path, base[:1], base[:1] + 0.01), draws=2)
    assert one
    json.dumps(one, allow_nan=False)


def test_bad_settings() -> None:
    for how in ({"draws": 0}, {"draws": 1}, {"mode": "some"}):
        with pytest.raises(BadInput):
            NullSettings(**how)
    with pytest.raises(BadInput, match="cauchy"):
        noise("cauchy", np.random.default_rng(0), np.zeros((2, 2), np.float32))
    with pytest.raises(BadInput):
        choose([], "some")
    with pytest.raises(BadInput, match="calibration"):
        calibrated(Draw(*(np.ones((2, 2), np.float32),) * 2, "F32"), "size", 1.0)


def test_choice_of_depths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for side in ("base", "tuned"):
        tensors = {f"model.layers.{i}.self_attn.{x}_proj.weight": torch.zeros(4, 4) for i in range(5) for x in "qk"}
        tensors["model.embed_tokens.weight"] = torch.zeros(60, 4)
        tensors["model.norm.weight"] = torch.ones(4)
        save_file(tensors, tmp_path / f"{side}.safetensors")
    rows = Pair.open(str(tmp_path / "base.safetensors"), str(tmp_path / "tuned.safetensors")).rows
    chosen, left = choose(rows)
    assert [r.name.name for r in chosen] == ["embed", "layers.2.self_attn.q_proj", "layers.2.self_attn.k_proj"]
    assert left == {}
    assert len(choose(rows, "full")[0]) == 7
    monkeypatch.setattr(nulls, "MOST_ENTRIES", 100)
    chosen, left = choose(rows)
    assert [r.name.name for r in chosen] == ["layers.2.self_attn.q_proj", "layers.2.self_attn.k_proj"]
    assert list(left) == ["embed"]
    assert cost(chosen[0], NullSettings(draws=20)) > 1.8 * cost(chosen[0], NullSettings(draws=10))
    unmeasured = [replace(r, status="unmeasured") for r in rows]
    assert choose(unmeasured) == ((), {})


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("factor", [0.1, 0.9, 3.0])
def test_size_matched_delta(tmp_path: Path, dtype: str, factor: float) -> None:
    base = gaussian(0, 90, 70, dtype)
    row = row_of(tmp_path, base, base + gaussian(1, 90, 70, "F32", 3e-4), TORCH[dtype])
    plain = Delta(row, 2**20)
    target = factor * plain.scan().delta_sq ** 0.5
    assert plain.scale is None
    matched = Delta(row, 2**20, target_norm=target)
    sums = matched.scan()
    # A stored delta is whole steps of the grid: its rounded norm jumps where many entries cross a threshold at once.
    assert sums.delta_sq**0.5 == pytest.approx(target, rel=2e-3 if dtype == "F32" else 0.05)
    assert matched.scale is not None
    tuned = base + matched.held
    assert np.array_equal(to_grid(tuned, dtype), tuned)
    assert np.sum(matched.held * plain.held) > 0
    streamed = Delta(row, 4000, held_entries=10, target_norm=target)
    again = streamed.scan()
    assert again.delta_sq == pytest.approx(sums.delta_sq, rel=1e-9)
    assert np.array_equal(np.concatenate(list(streamed.blocks())), matched.held)


def test_size_matched_edges(tmp_path: Path) -> None:
    base = gaussian(0, 9, 7)
    row = row_of(tmp_path, base, base, torch.bfloat16)
    assert Delta(row, 2**20, target_norm=1.0).scan().delta_sq == 0
    spoilt = base.copy()
    spoilt[0, 0] = np.nan
    assert not Delta(row_of(tmp_path, base, spoilt), 2**20, target_norm=1.0).scan().finite
    assert Delta(row_of(tmp_path, base, base + 1), 2**20, target_norm=0.0).scan().delta_sq == 0
