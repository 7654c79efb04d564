"""The formula of an edited tensor against dense arithmetic, and the bits of what it takes whole."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deltalens.checkpoint.header import read_header
from deltalens.edit import form as form_module
from deltalens.edit.form import Form, Stored, triples
from deltalens.spectrum.ranks import energy_rank, shape_of

SHAPES = {"tall": (40, 12), "wide": (12, 40), "vector": (12,), "stack": (3, 4, 5), "scalar": ()}


@pytest.fixture(params=SHAPES)
def two(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[Stored], list[np.ndarray]]:
    """Two stored tensors of one shape, and their values as matrices."""
    rng, shape = np.random.default_rng(0), SHAPES[request.param]
    arrays = {name: np.array(rng.standard_normal(shape), np.float32) for name in "ab"}
    arrays["a"].flat[0] = -0.0
    save_file(arrays, tmp_path / "x.safetensors")
    infos = read_header(tmp_path / "x.safetensors")
    flat = [arrays[name].reshape(shape[0] if shape else 1, -1) for name in "ab"]
    return [Stored(infos[name]) for name in "ab"], flat


def test_algebra_is_that_of_matrices(
    two: tuple[list[Stored], list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form_module, "BLOCK_BYTES", 256)  # several blocks
    (a, b), (x, y) = two
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((len(x), 2)), rng.standard_normal((2, x.shape[1]))
    rows = (rng.random((len(x), 1)) > 0.5).astype(float)
    cols = (rng.random((1, x.shape[1])) > 0.5).astype(float)
    made = 0.3 * Form.of(a) + Form.product(left, right) - 2.0 * Form.of(b)
    dense = 0.3 * x.astype(float) + left @ right - 2.0 * y
    for mask in (rows, cols, 1.0, 0.5):
        assert np.abs((mask * made).dense() - mask * dense).max() < 1e-6
    q = np.linalg.qr(rng.standard_normal((x.shape[1], min(2, x.shape[1]))))[0]
    p = np.linalg.qr(rng.standard_normal((len(x), min(2, len(x)))))[0]
    assert np.allclose(made.times(q), dense @ q) and np.allclose(made.transposed_times(p), p.T @ dense)
    assert np.isclose(made.norm_sq(), np.sum(dense**2))
    assert (0.0 * made).zero and (made - made).norm_sq() < 1e-20


def test_what_is_taken_whole_keeps_its_bits(two: tuple[list[Stored], list[np.ndarray]]) -> None:
    (a, b), (x, y) = two
    base, tuned = Form.of(a), Form.of(b)
    assert (base + (tuned - base)).same == b  # truncate, full
    assert (tuned - (tuned - base)).same == a  # revert, full
    assert base.dense().tobytes() == x.tobytes()
    mask = np.zeros((len(x), 1))
    mask[::2] = 1.0
    mixed = (mask * tuned + (1.0 - mask) * base).dense()
    expected = np.where(mask == 1.0, y, x)
    assert mixed.tobytes() == expected.tobytes()  # -0.0 included
    kept = (base + Form.product(mask, np.zeros((1, x.shape[1])))).dense()
    assert kept.tobytes() == x.tobytes()


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (16, 16)])
def test_triples_are_those_of_lapack(shape: tuple[int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name in "ab"}
    save_file(arrays, tmp_path / "x.safetensors")
    infos = read_header(tmp_path / "x.safetensors")
    delta = Form.of(Stored(infos["b"])) - Form.of(Stored(infos["a"]))
    u, sigma, v = np.linalg.svd((arrays["b"] - arrays["a"]).astype(float), full_matrices=False)
    found = triples(delta, 3)
    assert np.abs(found.sigma - sigma).max() < 1e-12 * sigma[0]
    part = found.first(3)
    assert np.abs(part.left @ part.right - u[:, :3] * sigma[:3] @ v[:3]).max() < 1e-9 * sigma[0]


def test_bare_factors_are_decomposed_without_being_multiplied_out() -> None:
    rng = np.random.default_rng(3)
    left, right = rng.standard_normal((30, 3)), rng.standard_normal((3, 20))
    found = triples(Form.product(left, right), 20)
    sigma = np.linalg.svd(left @ right, compute_uv=False)
    assert np.allclose(found.sigma, sigma[:3]) and found.left.shape == (30, 3)
    assert np.allclose(found.first(3).dense(), left @ right, atol=1e-5)
    doubled = triples(Form.product(np.hstack([left, left]), np.vstack([right, -0.5 * right])), 20)
    assert doubled.rank == 3 == doubled.left.shape[1]


def test_a_zero_delta_has_no_direction(tmp_path: Path) -> None:
    save_file({"a": np.ones((4, 6), np.float32), "b": np.ones((4, 6), np.float32)}, tmp_path / "x.safetensors")
    infos = read_header(tmp_path / "x.safetensors")
    found = triples(Form.of(Stored(infos["b"])) - Form.of(Stored(infos["a"])), 2)
    assert found.left.shape == (4, 0) and found.rank == 0 and found.first(2).zero


def test_energy_picks_the_least_rank() -> None:
    sigma = np.array([2.0, 1.0, 1.0])  # shares 4/6, 5/6, 1
    assert [energy_rank(sigma, share) for share in (0.1, 0.66, 0.67, 0.84, 1.0)] == [1, 1, 2, 3, 3]
    assert energy_rank(1e-200 * sigma, 0.84) == shape_of(sigma)["rank_90"] == 3  # σ² would underflow
    assert energy_rank(0 * sigma, 0.5) == 0
