"""The delta against its base: every column of docs/measures.md §4 against dense float64 oracles and closed forms."""

import json
from dataclasses import replace
from math import asin, sin
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deltalens.checkpoint.pair import Pair, Row
from deltalens.spectrum import context
from deltalens.spectrum.basis import decompose, principal_k, scaling_null_sd, turned
from deltalens.spectrum.context import ContextSettings, cost, measure_context
from deltalens.spectrum.edge import seed_of, signs
from deltalens.spectrum.krylov import top_triplets
from deltalens.spectrum.masks import expected, masks, overlaps
from deltalens.spectrum.measure import measure_diff
from deltalens.store.schema import CONTEXT

NAME = "layers.0.mlp.up_proj"


def row_of(folder: Path, base: np.ndarray, tuned: np.ndarray, dtype: torch.dtype = torch.float32) -> Row:
    """A pair of one matrix on disk."""
    for side, values in (("base", base), ("tuned", tuned)):
        stored = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(dtype)
        save_file({NAME + ".weight": stored}, folder / f"{side}.safetensors")
    (row,) = Pair.open(str(folder / "base.safetensors"), str(folder / "tuned.safetensors")).rows
    return row


def weights(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """A base with a decaying spectrum, so that its principal vectors are well defined."""
    left, right = np.linalg.qr(rng.standard_normal((m, m)))[0], np.linalg.qr(rng.standard_normal((n, n)))[0]
    q = min(m, n)
    return ((left[:, :q] * np.linspace(2, 0.2, q) ** 2) @ right[:q]).astype(np.float32)


def measured(row: Row, k: int = 8, **how: int) -> dict:
    return measure_context(row, ContextSettings(k=k, **how)).row


@pytest.mark.parametrize(("m", "n"), [(128, 96), (96, 128), (64, 64)])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_column_against_a_dense_oracle(tmp_path: Path, m: int, n: int, transposed: bool) -> None:
    rng, k, q = np.random.default_rng(m), 8, min(m, n)
    base = weights(rng, m, n)
    tuned = (base + 0.01 * rng.standard_normal((m, n))).astype(np.float32)
    tuned = np.where(rng.random((m, n)) < 0.4, base, tuned)
    row = row_of(tmp_path, base, tuned)
    if transposed:  # the file then holds [in, out]
        row, base, tuned = replace(row, transposed=True), base.T, tuned.T
    found = measured(row, k)
    delta = (tuned - base).astype(np.float64)
    u, s, vt = np.linalg.svd(base.astype(np.float64))
    norm = np.linalg.norm(delta)

    def turn(after: np.ndarray) -> dict[str, float]:
        ua, _, va = np.linalg.svd(after.astype(np.float64))
        out = {}
        for side, before, end in (("left", u[:, :k], ua[:, :k]), ("right", vt[:k].T, va[:k].T)):
            cosines = np.linalg.svd(before.T @ end, compute_uv=False)
            out[f"{side}_rotation"] = 1 - np.sum(cosines**2) / k
            out[f"{side}_angle"] = np.arccos(min(1.0, cosines[-1]))
        return out

    stored = (tuned - base).T if transposed else tuned - base
    tall = stored.shape[0] >= stored.shape[1]
    e = signs(0, max(m, n), q, seed_of(NAME, 0))
    flipped = stored * (e if tall else e.T)
    oracle = {
        "principal_energy": np.sum((u[:, :k].T @ delta @ vt[:k].T) ** 2) / norm**2,
        "left_energy": np.sum((u[:, :k].T @ delta) ** 2) / norm**2,
        "right_energy": np.sum((delta @ vt[:k].T) ** 2) / norm**2,
        "spectral_energy": max(m, n) * np.sum(np.diag(u.T @ delta @ vt.T)[:q] ** 2) / norm**2,
        **turn(tuned),
        **{f"{name}_null": value for name, value in turn(base + (flipped.T if transposed else flipped)).items()},
        "spectral_drift": np.linalg.norm(np.linalg.svd(tuned, compute_uv=False) - s) / norm,
        "spectral_drift_null": 1 / np.sqrt(max(m, n)),
        "scaling": np.median(np.linalg.svd(tuned, compute_uv=False) / s),
        "scaling_null_sd": norm / np.sqrt(m * n) * np.sqrt(np.pi * q / 2) / s.sum(),
    }
    for side in ("left", "right"):
        gap = (s[k - 1] - s[k]) / np.linalg.norm(delta, 2)
        oracle[f"{side}_wedin"] = np.sin(oracle[f"{side}_angle"]) * gap
    for name, value in oracle.items():
        assert found[name] == pytest.approx(value, rel=2e-4, abs=1e-7), name
    assert set(CONTEXT) <= set(found)
    assert found["context_k"] == k
    assert found["context_reason"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("size", [1e-5, 1e-2])
def test_float32_products_keep_four_digits(tmp_path: Path, size: float) -> None:
    rng, k = np.random.default_rng(11), 16
    base = rng.standard_normal((640, 560)).astype(np.float32)  # no gaps to speak of: the hardest base
    tuned = (base + size * rng.standard_normal(base.shape)).astype(np.float32)
    found = measured(row_of(tmp_path, base, tuned), k)
    delta = tuned.astype(np.float64) - base
    u, s, vt = np.linalg.svd(base.astype(np.float64), full_matrices=False)
    norm, inside = np.linalg.norm(delta), u.T @ delta @ vt.T
    after = np.linalg.svd(tuned.astype(np.float64), compute_uv=False)
    oracle = {
        "principal_energy": np.sum(inside[:k, :k] ** 2) / norm**2,
        "left_energy": np.sum((u[:, :k].T @ delta) ** 2) / norm**2,
        "right_energy": np.sum((delta @ vt[:k].T) ** 2) / norm**2,
        "spectral_energy": 640 * np.sum(np.diag(inside) ** 2) / norm**2,
        "spectral_drift": np.linalg.norm(after - s) / norm,
    }
    for name, value in oracle.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


def test_masks_against_brute_force(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    base = weights(rng, 96, 128)
    tuned = np.where(rng.random(base.shape) < np.exp(-np.abs(base) / 0.1), base + 0.01, base).astype(np.float32)
    found = measured(row_of(tmp_path, base, tuned))
    u, s, vt = np.linalg.svd(base.astype(np.float64), full_matrices=False)
    k, changed = 48, tuned != base
    rebuilt = np.abs((u[:, :k] * s[:k]) @ vt[:k])
    for alpha in (10, 30, 50):
        low = np.abs(base) <= np.sort(np.abs(base).ravel())[-(-base.size * alpha // 100) - 1]
        top = rebuilt >= np.sort(rebuilt.ravel())[base.size - -(-base.size * alpha // 100)]
        assert found[f"mask_low_{alpha}"] == pytest.approx(low[changed].mean(), abs=1e-12)
        assert found[f"mask_principal_{alpha}"] == pytest.approx(top[changed].mean(), abs=2 / changed.sum())


def test_expectation_explains_a_gate_on_magnitude_and_not_one_on_the_reconstruction() -> None:
    rng = np.random.default_rng(5)
    base = (0.02 * rng.standard_normal((600, 900)) + 0.2 * weights(rng, 600, 900)).astype(np.float32)
    basis = decompose(base.T, 16)
    held = masks(base, basis)
    gated = rng.random(base.shape) < np.exp(-np.abs(base) / 0.02)
    seen, explained = overlaps(held, gated), expected(held, base, gated)
    for name, value in seen.items():
        assert value == pytest.approx(explained[name], abs=0.01), name
    assert seen["mask_low_30"] > 0.35  # far above its share, and all of it explained
    aimed = (held.pattern % 4 >= 1) & (rng.random(base.shape) < 0.5)
    assert overlaps(held, aimed)["mask_principal_50"] == 1
    assert expected(held, base, aimed)["mask_principal_50"] < 0.9


@pytest.mark.parametrize(("m", "n"), [(96, 64), (64, 96)])
def test_pure_scaling(tmp_path: Path, m: int, n: int) -> None:
    base = weights(np.random.default_rng(1), m, n)
    found = measured(row_of(tmp_path, base, base * np.float32(1.01)))
    assert found["spectral_energy"] == pytest.approx(max(m, n), rel=1e-3)
    assert found["scaling"] == pytest.approx(1.01, abs=1e-6)
    assert found["spectral_drift"] == pytest.approx(1, abs=1e-4)
    assert max(found["left_angle"], found["right_angle"]) < 1e-5
    assert found["left_angle"] < 0.01 * found["left_angle_null"]


def test_pure_rotation(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    base = weights(rng, 96, 64)
    skew = np.triu(rng.standard_normal((96, 96)), 1)
    skew = 1e-3 * (skew - skew.T)
    rotation = np.linalg.solve(np.eye(96) - skew / 2, np.eye(96) + skew / 2)  # Cayley: exactly orthogonal
    found = measured(row_of(tmp_path, base, rotation @ base))
    assert found["spectral_energy"] < 0.01
    assert found["scaling"] == pytest.approx(1, abs=1e-6)
    assert found["spectral_drift"] < 1e-4
    assert found["right_angle"] < 1e-5 < found["left_angle"]


def test_principal_only_update(tmp_path: Path) -> None:
    rng, k = np.random.default_rng(4), 8
    base = weights(rng, 128, 96)
    u, _, vt = np.linalg.svd(base)
    delta = u[:, :k] @ rng.standard_normal((k, k)) @ vt[:k]
    found = measured(row_of(tmp_path, base, base + 0.01 * delta), k)
    assert found["principal_energy"] > 0.9999  # the null is k²/mn = .005
    assert min(found["left_energy"], found["right_energy"]) > 0.9999


def test_tiny_angles_by_sines(tmp_path: Path) -> None:
    theta = 1e-6
    before = np.eye(5)[:, :2]
    after = np.stack([np.cos(theta) * np.eye(5)[0] + np.sin(theta) * np.eye(5)[4], np.eye(5)[1]], axis=1)
    turn, sine = turned(before, after)
    assert sine == pytest.approx(sin(theta), rel=1e-12)
    assert turn == pytest.approx(sin(theta) ** 2 / 2, rel=1e-12)
    # Rotating diag(2, 1) by θ turns the left vectors by θ and leaves the right ones.
    base = np.array([[2, 0], [0, 1], [0, 0]], np.float32)
    tuned = base + np.array([[0, -theta], [2 * theta, 0], [0, 0]], np.float32)
    found = measured(row_of(tmp_path, base, tuned))
    assert found["context_k"] == 1
    assert found["left_angle"] == pytest.approx(theta, rel=1e-6)
    assert found["right_angle"] < 1e-11


def test_scaling_spread_of_an_unstructured_update() -> None:
    rng = np.random.default_rng(6)
    base = weights(rng, 96, 64)
    basis = decompose(base, 8)
    s = np.linalg.svd(base.astype(np.float64), compute_uv=False)
    ratios = []
    for _ in range(200):
        noise = rng.standard_normal(base.shape)
        noise *= 1e-3 / np.linalg.norm(noise)
        ratios.append(np.median(np.linalg.svd(base + noise, compute_uv=False) / s))
    assert np.std(ratios) == pytest.approx(scaling_null_sd(basis, 1e-3), rel=0.25)


@pytest.mark.parametrize("order", ["C", "F"])
def test_krylov_against_dense(order: str) -> None:
    rng = np.random.default_rng(8)
    base = weights(rng, 700, 600)
    x = np.asarray(base + np.float32(1e-3) * rng.standard_normal(base.shape, dtype=np.float32), order=order)
    start = np.linalg.svd(base)[2][:24].T
    long, sigma, short = top_triplets(x, 16, start, exact_short=0)
    u, s, vt = np.linalg.svd(x.astype(np.float64))
    np.testing.assert_allclose(sigma, s[:16], rtol=1e-5)
    assert turned(u[:, :16], long)[1] < 1e-3
    assert turned(vt[:16].T, short)[1] < 1e-3
    np.testing.assert_allclose(x @ short, long * sigma, atol=1e-4 * s[0])


def test_null_angle_of_an_unstructured_update_is_its_angle(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    base = weights(rng, 128, 96)
    found = measured(row_of(tmp_path, base, base + 1e-3 * rng.standard_normal(base.shape)))
    for side in ("left", "right"):
        assert 0.5 < found[f"{side}_angle"] / found[f"{side}_angle_null"] < 2
        assert 0.7 < found[f"{side}_rotation"] / found[f"{side}_rotation_null"] < 1.5
        assert found[f"{side}_angle"] <= asin(min(1.0, 2 * found[f"{side}_wedin"])) or found[f"{side}_wedin"] > 0.5


def test_principal_vectors_are_at_most_half() -> None:
    assert principal_k(16, 96, 96) == 16
    assert principal_k(16, 20, 20) == 10
    assert principal_k(16, 96, 3) == 3
    assert principal_k(16, 1, 1) == 1


def test_what_has_no_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = weights(np.random.default_rng(0), 12, 9)
    spoilt = base.copy()
    spoilt[0, 0] = np.nan
    cases = [
        (np.zeros((12, 9)), base, "base matrix is zero"),
        (base, base, "delta is zero"),
        (base, spoilt, "NaN"),
        (base, np.full((12, 9), -3e38), "above 1e+15"),
    ]
    for before, after, reason in cases:
        found = measured(row_of(tmp_path, before, after))
        assert reason in found["context_reason"]
        assert all(found[name] is None for name in (*CONTEXT, "context_k"))
        json.dumps(found, allow_nan=False)
    row = row_of(tmp_path, base, base + 1)
    assert cost(row) > 0
    monkeypatch.setattr(context, "HELD_ENTRIES", 50)
    assert "2^27" in measured(row)["context_reason"]
    assert cost(row) == 0


def test_a_matrix_without_context_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sides = {"base": np.zeros((2, 12, 9)), "tuned": rng.standard_normal((2, 12, 9))}
    sides["base"][1] = sides["tuned"][1]  # unchanged: nothing to explain
    for side, values in sides.items():
        stored = {f"layers.{i}.mlp.up_proj.weight": torch.from_numpy(v).float() for i, v in enumerate(values)}
        save_file(stored, tmp_path / f"{side}.safetensors")
    pair = Pair.open(str(tmp_path / "base.safetensors"), str(tmp_path / "tuned.safetensors"))
    run = measure_diff(pair, tmp_path / "run", context=True, nulls="off")
    assert "no context for layers.0.mlp.up_proj: the base matrix is zero" in run.record["warnings"]
    assert not any("layers.1" in text for text in run.record["warnings"])
    assert [row["context_k"] for row in run.matrices.to_pylist()] == [None, None]


def test_deltas_too_small_for_float32_squares(tmp_path: Path) -> None:
    base = 1e-30 * weights(np.random.default_rng(0), 30, 20)
    found = measured(row_of(tmp_path, base, base * 1.5))
    json.dumps(found, allow_nan=False)
    assert found["left_wedin"] is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 40), (3, 3)])
def test_slender_matrices(tmp_path: Path, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    base = rng.standard_normal(shape)
    found = measured(row_of(tmp_path, base, base + 0.01 * rng.standard_normal(shape)), k=16)
    assert found["context_k"] == max(1, min(shape) // 2)
    assert all(found[name] is not None for name in CONTEXT)


def test_a_tuned_side_of_lower_rank_has_no_angles(tmp_path: Path) -> None:
    base = weights(np.random.default_rng(1), 40, 30)
    found = measured(row_of(tmp_path, base, np.zeros_like(base)))
    assert found["left_angle"] is None
    assert found["right_wedin"] is None
    assert found["scaling"] == 0
    assert found["spectral_energy"] == pytest.approx(40, rel=1e-4)


def test_same_seed_same_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = weights(rng, 96, 64)
    row = row_of(tmp_path, base, base + 0.01 * rng.standard_normal(base.shape), torch.bfloat16)
    first, again, other, blocks = (
        {key: value for key, value in measured(row, **how).items() if key != "seconds_context"}
        for how in ({}, {}, {"seed": 1}, {"block_bytes": 1000})
    )
    assert first == again == blocks
    assert {key for key in first if first[key] != other[key]} <= {
        f"{side}_{what}_null" for side in ("left", "right") for what in ("angle", "rotation")
    }
    assert first != other
