"""Spectra and vectors against float64 LAPACK, on every shape and spectrum that could break a Gram."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalens.spectrum.gram import (
    ZERO,
    certificate,
    fix_signs,
    gram,
    long_vectors,
    short_vectors,
    singular_values,
    tridiagonalise,
)
from deltalens.spectrum.ranks import numerical_rank

RNG = np.random.default_rng(0)


def planted(p: int, q: int, sigma: np.ndarray) -> np.ndarray:
    left = np.linalg.qr(RNG.standard_normal((p, len(sigma))))[0]
    right = np.linalg.qr(RNG.standard_normal((q, len(sigma))))[0]
    return ((left * sigma) @ right.T).astype(np.float32)


CASES = {
    "random tall": RNG.standard_normal((300, 80)).astype(np.float32),
    "random square": RNG.standard_normal((96, 96)).astype(np.float32),
    "decaying": planted(200, 64, np.logspace(0, -6, 64)),
    "rank deficient": planted(150, 50, np.array([3.0, 2.0, 1.0])),
    "equal values": planted(120, 40, np.full(40, 2.0)),
    "one column": RNG.standard_normal((70, 1)).astype(np.float32),
    "one entry": np.array([[-3.0]], np.float32),
    "two by two": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
    "diagonal": np.diag(np.arange(30, 0, -1)).astype(np.float32),
    "tiny": RNG.standard_normal((64, 32)).astype(np.float32) * 1e-20,
    "zero": np.zeros((20, 10), np.float32),
}


def blocks(x: np.ndarray, step: int = 7) -> list[np.ndarray]:
    return [x[i : i + step] for i in range(0, len(x), step)]


@pytest.mark.parametrize("case", CASES)
def test_spectrum_equals_float64_lapack(case: str) -> None:
    x = CASES[case]
    oracle = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    sigma = singular_values(tridiagonalise(gram(blocks(x), x.shape[1])))
    assert np.all(np.diff(sigma) <= 0)
    assert np.abs(sigma - oracle).max() <= 1e-6 * oracle[0]
    resolved = oracle > 1e-5 * oracle[0]  # where a float64 Gram promises relative accuracy too
    assert np.abs(sigma - oracle)[resolved].max(initial=0) <= 1e-5 * oracle[resolved].max(initial=0)


@pytest.mark.parametrize("layout", ["C", "F"])
def test_block_layout_and_cut_do_not_matter(layout: str) -> None:
    x = np.array(CASES["random tall"], order=layout)
    whole, cut = gram([x], 80), gram(blocks(x, 11), 80)
    assert np.allclose(np.tril(whole), np.tril(cut), rtol=0, atol=1e-12 * whole[0, 0])
    assert np.allclose(np.tril(whole), np.tril(x.astype(float).T @ x.astype(float)), rtol=1e-12)


@pytest.mark.parametrize("case", [c for c in CASES if c != "zero"])
@pytest.mark.parametrize("left_is_long", [True, False])
def test_vectors_are_orthonormal_and_certified(case: str, left_is_long: bool) -> None:
    x = CASES[case]
    form = tridiagonalise(gram(blocks(x), x.shape[1]))
    sigma = singular_values(form)
    k = min(5, numerical_rank(sigma, ZERO))
    short = short_vectors(form, k)
    long = long_vectors(blocks(x), short, sigma[:k])
    assert np.allclose(short.T @ short, np.eye(k), atol=1e-10)
    assert np.allclose(long.T @ long, np.eye(k), atol=1e-10)
    proof = certificate(blocks(x), long, short, sigma[:k], left_is_long)
    image = x.astype(float).T @ long - short * sigma[:k] if left_is_long else x.astype(float) @ short - long * sigma[:k]
    assert proof == pytest.approx(np.linalg.norm(image, axis=0).max() / sigma[0], abs=1e-14)
    assert proof < 1e-7


def test_certificate_sees_a_wrong_vector() -> None:
    x = CASES["random tall"]
    form = tridiagonalise(gram([x], 80))
    sigma, short = singular_values(form)[:3], short_vectors(form, 3)
    long = long_vectors([x], short, sigma)
    turned = np.roll(short, 1, axis=1)
    assert certificate([x], long, turned, sigma, True) > 0.5


def test_signs_follow_the_left_vector() -> None:
    x = CASES["two by two"].astype(float)
    u, _, vt = np.linalg.svd(x)
    for flip in (1.0, -1.0):
        left, right = fix_signs(u * flip, vt.T * flip)
        assert (left[np.arange(2), np.abs(left).argmax(axis=1)] > 0).all()
        assert np.allclose(np.abs(left @ x @ right.T), np.diag(np.linalg.svd(x)[1]), atol=1e-6)
        assert (np.diag(left @ x @ right.T) > 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 30), st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1.0, 1e6]))
def test_any_matrix(extra: int, q: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, q + 1))
    x = (rng.standard_normal((q + extra, rank)) @ rng.standard_normal((rank, q)) * scale).astype(np.float32)
    oracle = np.linalg.svd(x.astype(float), compute_uv=False)
    sigma = singular_values(tridiagonalise(gram(blocks(x), q)))
    assert np.abs(sigma - oracle).max() <= 1e-6 * max(oracle[0], 1e-300)
