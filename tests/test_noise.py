"""Grids, floors and predicted zeros against brute force and closed forms."""

import numpy as np
import pytest
import torch

from deltalens.spectrum.noise import (
    binade_index,
    denoised_effective_rank,
    floor_edge,
    gaussian_scale,
    grid_steps,
    noise_model,
    noise_sigma,
    predicted_zero_fraction,
    rounding_variance,
    shrink,
    snr,
)
from deltalens.spectrum.ranks import entropy_rank, shape_of

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16}


def binades(w: torch.Tensor) -> np.ndarray:
    bits = np.ascontiguousarray(w.float().numpy()).view(np.uint32).ravel()
    return np.bincount(binade_index(bits), minlength=256)


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("scale", [1.0, 0.02, 1e-4, 1e-7])
def test_ulp_is_the_gap_to_the_next_number(dtype: str, scale: float) -> None:
    w = (torch.randn(4000, generator=torch.Generator().manual_seed(0)) * scale).to(TORCH[dtype]).abs()
    w = torch.cat([w, torch.zeros(1, dtype=TORCH[dtype])])
    following = (w.view(torch.int16) + 1).view(TORCH[dtype])
    gaps = (following.double() - w.double()).numpy()
    steps = grid_steps(dtype)[binade_index(w.float().numpy().view(np.uint32))]
    assert np.array_equal(steps, gaps)


@pytest.mark.parametrize("dtype", TORCH)
def test_rounding_variance_is_what_rounding_does(dtype: str) -> None:
    wide = torch.randn(400_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.02
    stored = wide.to(TORCH[dtype])
    observed = float(((stored.double() - wide) ** 2).mean())
    assert rounding_variance(binades(stored), dtype) == pytest.approx(observed, rel=0.02)


def predicted_of(base: torch.Tensor, delta: torch.Tensor, dtype: str) -> float:
    scale = gaussian_scale(binades(base), dtype, float((delta.double() ** 2).mean()))
    assert scale is not None
    return predicted_zero_fraction(binades(base), dtype, scale)


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("scale", [2e-6, 1e-5, 1e-4, 1e-3])
def test_predicted_zeros_of_a_dense_update(dtype: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(2)
    base = (torch.randn(600_000, generator=generator) * 0.02).to(TORCH[dtype])
    tuned = (base.double() + scale * torch.randn(600_000, generator=generator, dtype=torch.float64)).to(TORCH[dtype])
    delta = tuned.float() - base.float()
    predicted = predicted_of(base, delta, dtype)
    assert predicted == pytest.approx(float((delta == 0).double().mean()), abs=0.02)


def test_a_sparse_update_is_sparser_than_predicted() -> None:
    generator = torch.Generator().manual_seed(3)
    base = (torch.randn(300_000, generator=generator) * 0.02).bfloat16()
    update = 1e-3 * torch.randn(300_000, generator=generator) * (torch.rand(300_000, generator=generator) < 0.1)
    delta = (base.float() + update).bfloat16().float() - base.float()
    predicted = predicted_of(base, delta, "BF16")
    assert float((delta == 0).double().mean()) - predicted > 0.5


def test_no_change_predicts_all_zeros() -> None:
    assert predicted_of(torch.ones(10), torch.zeros(10), "BF16") == 1.0


@pytest.mark.parametrize(
    ("tuned", "flag", "model"),
    [
        ("BF16", False, "tuned_rounded"),
        ("F16", False, "tuned_rounded"),
        ("F32", False, "none"),
        ("F32", True, "both_rounded"),
        ("BF16", True, "both_rounded"),
    ],
)
def test_noise_model(tuned: str, flag: bool, model: str) -> None:
    assert noise_model(tuned, flag) == model


def test_both_rounded_adds_variances() -> None:
    counts = binades(torch.randn(1000, generator=torch.Generator().manual_seed(4)))
    one = noise_sigma("tuned_rounded", counts, counts, "BF16", "BF16")
    both = noise_sigma("both_rounded", counts, counts, "BF16", "BF16")
    assert both == pytest.approx(one * 2**0.5)
    assert noise_sigma("none", counts, counts, "F32", "F32") == 0


@pytest.mark.parametrize("shape", [(256, 256), (128, 512)])
def test_floor_stands_just_above_pure_noise(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    tops = [np.linalg.svd(rng.normal(0, 0.3, shape), compute_uv=False)[0] for _ in range(10)]
    edge = floor_edge(0.3, *shape)
    assert max(tops) < edge < 1.1 * max(tops)


def test_shrink_inverts_the_spiked_model() -> None:
    m, n, noise = 300, 500, 0.1
    true = np.array([30.0, 12.0, 6.0])
    observed = np.sqrt((true**2 + noise**2 * m) * (true**2 + noise**2 * n)) / true
    assert np.allclose(shrink(observed, noise, m, n), true)
    assert np.array_equal(shrink(observed, 0.0, m, n), observed)


def test_denoised_rank_ignores_the_bulk() -> None:
    rng = np.random.default_rng(6)
    left, right = (np.linalg.qr(rng.standard_normal((n, 4)))[0] for n in (200, 200))
    noisy = 20 * left @ right.T + rng.normal(0, 0.1, (200, 200))
    sigma = np.linalg.svd(noisy, compute_uv=False)
    above = int((sigma > floor_edge(0.1, 200, 200)).sum())
    assert above == 4
    assert denoised_effective_rank(sigma, above, 0.1, 200, 200) == pytest.approx(4, abs=0.01)
    assert entropy_rank(sigma) > 100  # which is why the raw one never stands alone
    assert denoised_effective_rank(sigma, 0, 0.1, 200, 200) is None


def test_snr() -> None:
    assert snr(30.0, 1.0, 2, 5) == pytest.approx(2.0)
    assert snr(5.0, 1.0, 2, 5) == 0.0
    assert snr(5.0, 0.0, 2, 5) is None


@pytest.mark.parametrize("r", [1, 3, 10])
def test_ranks_of_equal_values(r: int) -> None:
    numbers = shape_of(np.array([2.0] * r + [0.0] * (12 - r)))
    for column in ("effective_rank", "energy_effective_rank", "participation_ratio", "stable_rank"):
        assert numbers[column] == pytest.approx(r)
    assert numbers["rank_99"] == r
    assert numbers["nuclear_norm"] == 2 * r
    assert numbers["top_energy_1"] == pytest.approx(1 / r)
    assert numbers["top_energy_16"] == pytest.approx(1.0)


def test_ranks_of_a_geometric_spectrum() -> None:
    sigma = 0.5 ** np.arange(40.0)
    numbers = shape_of(sigma)
    # σ/Σσ is geometric with ratio 1/2: entropy 2·log 2; σ² has ratio 1/4: (4/3)·log 4 − log(3)
    assert numbers["effective_rank"] == pytest.approx(4.0, rel=1e-6)
    assert numbers["energy_effective_rank"] == pytest.approx(4 ** (4 / 3) / 3, rel=1e-6)
    assert numbers["participation_ratio"] == pytest.approx((4 / 3) ** 2 / (16 / 15), rel=1e-6)
    assert numbers["stable_rank"] == pytest.approx(4 / 3, rel=1e-6)
    assert [numbers[f"rank_{p}"] for p in (50, 90, 99)] == [1, 2, 4]


def test_zero_spectrum() -> None:
    assert set(shape_of(np.zeros(5)).values()) == {0}
