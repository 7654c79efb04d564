"""Three-way decompositions of planted deltas: known angles, known cancellation, nothing shared; and of the family."""

from pathlib import Path

import numpy as np
import pytest
import torch
from factories import perturb, tiny_config, tiny_tensors, write_checkpoint

from deltalens.checkpoint.pair import Pair
from deltalens.edit.form import Form, Stored
from deltalens.errors import Refused
from deltalens.experiment.inside import PARTS, SHARES
from deltalens.experiment.stages import METHODS, Matrix, Stages, place, stages
from deltalens.store.results import SUMMARY

SIZE = {"hidden": 128, "ff": 192, "layers": 3, "heads": 4, "kv": 4}
CONFIG = tiny_config(
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=3,
    num_key_value_heads=4,
    head_dim=32,
    torch_dtype="float32",
)
RANK = 3
Change = dict[str, np.ndarray]


def subspace(rng: np.random.Generator, d: int, k: int = RANK) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


class Planted:
    """Frames for every matrix: (U, V) of Δ₁ and two more, all orthonormal to each other."""

    def __init__(self) -> None:
        self.root = tiny_tensors(dtype=torch.float32, **SIZE)
        rng = np.random.default_rng(3)
        self.frames = {}
        for name, w in self.root.items():
            if w.ndim == 2 and "embed" not in name:
                u, v = (subspace(rng, d, 2 * RANK) for d in w.shape)
                self.frames[name] = (u[:, :RANK], v[:, :RANK], u[:, RANK:], v[:, RANK:])

    def decompose(self, folder: Path, first: Change, second: Change, noise: float = 1e-5) -> Stages:
        """Writes the three checkpoints in float32; noise is added to every entry of every delta."""
        rng = np.random.default_rng(4)
        at, sources = {name: w.numpy().astype(np.float64) for name, w in self.root.items()}, []
        for i, change in enumerate(({}, first, second)):
            for name, w in at.items():
                added = change.get(name, np.zeros(w.shape))
                if i and w.ndim == 2:
                    added = added + noise * rng.standard_normal(w.shape)
                at[name] = w + added
            tensors = {name: torch.from_numpy(w).float() for name, w in at.items()}
            sources.append(write_checkpoint(folder / str(i), tensors, CONFIG))
        return stages(*sources)


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


def blocks(found: Stages) -> list[Matrix]:
    return [m for m in found.matrices if m.layer is not None]


SIGMA = np.array([1.0, 0.7, 0.5])


def test_a_shared_subspace_at_a_known_angle(planted: Planted, tmp_path: Path) -> None:
    """Δ₂ = U′AV₁ᵀ with every left vector turned by θ: cos²θ of it is shared on the left, all of it on the right."""
    angle = np.radians(30)
    first = {name: (u * SIGMA) @ v.T for name, (u, v, _, _) in planted.frames.items()}
    turn = np.roll(np.eye(RANK), 1, axis=0)  # other pairs of the same vectors: at right angles to Δ₁
    second = {
        name: (np.cos(angle) * u + np.sin(angle) * u2) @ turn @ v.T for name, (u, v, u2, _) in planted.frames.items()
    }
    found = planted.decompose(tmp_path, first, second)
    for m in blocks(found):
        assert m.ranks == (RANK, RANK)
        assert m.spikes == (True, True)
        assert m.values["shared_left"] == pytest.approx(0.75, abs=1e-3)
        assert m.values["shared_right"] == pytest.approx(1, abs=1e-3)
        assert m.values["shared"] == pytest.approx(0.75, abs=1e-3)
        assert m.values["turned"] == pytest.approx(0.75, abs=1e-3)
        assert m.values["right_only"] == pytest.approx(0.25, abs=1e-3)
        assert m.values["new"] == pytest.approx(0, abs=1e-3)
        np.testing.assert_allclose(m.angles[0], 30, atol=0.1)
        np.testing.assert_allclose(m.angles[1], 0, atol=0.1)
        assert m.values["overlap_left"] == pytest.approx(0.75, abs=1e-3)
        assert abs(m.values["cosine"]) < 0.01
        assert m.nulls["shared_left"][0] < 0.1 < m.values["shared_left"]
        assert m.nulls["angle_left"][0] > 45
    assert found.values["shared"] == pytest.approx(0.75, abs=1e-2)  # the embedding holds noise alone


def test_a_known_part_is_cancelled(planted: Planted, tmp_path: Path) -> None:
    """Δ₂ = −0.4 Δ₁ + as much that is new: cosine, undone and new follow."""
    first = {name: (u * SIGMA) @ v.T for name, (u, v, _, _) in planted.frames.items()}
    second = {name: -0.4 * first[name] + (u2 * 0.4 * SIGMA) @ v2.T for name, (_, _, u2, v2) in planted.frames.items()}
    found = planted.decompose(tmp_path, first, second)
    for m in blocks(found):
        assert m.values["cancelled"] == pytest.approx(0.4, abs=1e-3)
        assert m.values["remaining"] == pytest.approx(0.36, abs=1e-3)
        assert m.values["cosine"] == pytest.approx(-(0.5**0.5), abs=1e-3)
        assert m.values["energy_ratio"] == pytest.approx((0.36 + 0.16) / 1.32, abs=1e-3)
        assert m.values["shared"] == pytest.approx(0.5, abs=1e-3)
        assert m.values["undone"] == pytest.approx(0.5, abs=1e-3)
        assert m.values["repeated"] == 0
        assert m.values["new"] == pytest.approx(0.5, abs=1e-3)
        assert m.nulls["cosine"][0] < 0.1
    assert found.values["cancelled"] == pytest.approx(0.4, abs=1e-2)
    assert found.values["remaining"] == pytest.approx((1 - found.values["cancelled"]) ** 2)


def test_what_points_along_is_repeated_not_undone(planted: Planted, tmp_path: Path) -> None:
    first = {name: (u * SIGMA) @ v.T for name, (u, v, _, _) in planted.frames.items()}
    found = planted.decompose(tmp_path, first, {name: 0.5 * delta for name, delta in first.items()})
    for m in blocks(found):
        assert (m.values["cancelled"], m.values["undone"]) == (0, 0)
        assert m.values["repeated"] == pytest.approx(1, abs=1e-3)
        assert m.values["energy_ratio"] == pytest.approx(2.25 / 1.25, abs=1e-3)


def test_independent_deltas_lie_at_their_nulls(tmp_path: Path) -> None:
    """Low-rank changes that know nothing of each other, and row scales that they have in common."""
    scale = np.exp(0.7 * np.random.default_rng(9).standard_normal(128))[:, None]
    root = tiny_tensors(dtype=torch.float32, **SIZE)
    sources = [write_checkpoint(tmp_path / "0", root, CONFIG)]
    at = root
    for seed in (1, 2):
        moved = perturb(at, rank=2, sigma=0.05, noise=1e-3, seed=seed)
        for name in at:
            if moved[name].ndim == 2 and len(moved[name]) == 128:
                moved[name] = (at[name] + torch.from_numpy(scale).float() * (moved[name] - at[name])).contiguous()
        sources.append(write_checkpoint(tmp_path / str(seed), moved, CONFIG))
        at = moved
    found = stages(*sources)
    for metric in ("shared_left", "shared_right", "shared", "undone", "repeated"):
        assert found.values[metric] < found.nulls[metric] + 0.03, metric
    assert found.values["new"] > found.nulls["new"] - 0.03
    assert abs(found.values["cosine"]) < 2 * found.nulls["cosine"]
    scaled = [m for m in blocks(found) if m.kind in ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")]
    shared = np.mean([m.values["shared_left"] for m in scaled])
    assert shared > 4 * np.mean(
        [m.ranks[0] / 128 for m in scaled]
    )  # rows of unequal size alone: the sign flip knows them
    assert shared == pytest.approx(np.mean([m.nulls["shared_left"][0] for m in scaled]), rel=0.2)


@pytest.fixture(scope="module")
def family() -> Stages:
    return stages("family:base", "family:instruct", "family:reasoning")


def test_family_shares_sum_to_one_and_energies_are_exact(family: Stages) -> None:
    """‖Δ‖² from the end points alone is ‖Δ₁‖² + ‖Δ₂‖² + 2⟨Δ₁, Δ₂⟩; ‖Δ₁ₖ‖ and all shares by dense algebra."""
    pairs = [Pair.open(f"family:{a}", f"family:{b}") for a, b in (("base", "reasoning"), ("base", "instruct"))]
    ends, first = ({row.name.name: row for row in pair.rows} for pair in pairs)
    for m in family.matrices:
        assert sum(m.values[part] for part in PARTS) == pytest.approx(1, abs=1e-12)
        row = ends[m.name]
        exact = Form.of(Stored(row.tuned)) - Form.of(Stored(row.base))
        assert m.whole_sq == pytest.approx(exact.norm_sq(), rel=1e-6)
        assert m.first_sq + m.second_sq + 2 * m.product == pytest.approx(m.whole_sq, rel=1e-12)
    for name in ("layers.1.self_attn.k_proj", "layers.2.mlp.down_proj", "layers.0.mlp.up_proj"):
        m = next(m for m in family.matrices if m.name == name)
        root, middle = (Form.of(Stored(i)).dense().astype(np.float64) for i in (first[name].base, first[name].tuned))
        tuned = Form.of(Stored(ends[name].tuned)).dense()
        u, sigma, vt = np.linalg.svd(middle - root, full_matrices=False)
        k, second = m.ranks[0], tuned - middle
        u, vt, energy = u[:, :k], vt[:k], np.sum(second**2)
        leading = (u * sigma[:k]) @ vt
        along = np.sum(leading * second) / np.linalg.norm(leading)
        assert m.values["shared_left"] == pytest.approx(np.sum((u.T @ second) ** 2) / energy, rel=1e-5)
        assert m.values["shared_right"] == pytest.approx(np.sum((second @ vt.T) ** 2) / energy, rel=1e-5)
        assert m.values["shared"] == pytest.approx(np.sum((u.T @ second @ vt.T) ** 2) / energy, rel=1e-5)
        assert m.values["undone"] == pytest.approx(min(0, along) ** 2 / energy, rel=1e-5)


def test_sign_flip_null_is_the_mean_over_draws(family: Stages) -> None:
    """The closed form of the null against draws, for a matrix that is wide and one that is tall."""
    from deltalens.experiment.inside import inside, leading
    from deltalens.experiment.stages import _scanned

    rows = [Pair.open(f"family:{a}", f"family:{b}").rows for a, b in (("base", "instruct"), ("instruct", "reasoning"))]
    for name in ("layers.1.self_attn.v_proj", "layers.1.mlp.up_proj"):
        one, two = (next(row for row in side if row.name.name == name) for side in rows)
        (delta, sums), (second, second_sums) = _scanned(one), _scanned(two)
        first = leading(one, delta, sums)
        expected = inside(first, first.k, second, second_sums.delta_sq)[1]
        rng, kept = np.random.default_rng(0), second.held.copy()
        draws = []
        for _ in range(60):
            second.held = kept * rng.choice([-1, 1], kept.shape).astype(np.float32)
            draws.append(inside(first, first.k, second, second_sums.delta_sq)[0])
        for part in ("long", "short", "both"):
            found = np.array([getattr(draw, part) for draw in draws])
            assert abs(found.mean() - getattr(expected, part)) < 4 * found.std() / len(found) ** 0.5
        along = np.mean([draw.undone + draw.repeated for draw in draws])
        assert along == pytest.approx(expected.undone + expected.repeated, rel=0.6)


def test_rows_are_those_of_a_summary(family: Stages) -> None:
    rows = family.rows
    assert all(list(row) == SUMMARY.names for row in rows)
    pooled = {row["metric"]: row for row in rows if row["arm"] == "all"}
    assert set(METHODS) <= set(pooled)
    assert pooled["cosine"]["value"] == family.values["cosine"]
    assert pooled["shared_left"]["low"] < pooled["shared_left"]["value"] < pooled["shared_left"]["high"]
    assert {f"{m}_null" for m in ("cosine", "cancelled", "shared_left", "new", "angle_right")} <= set(pooled)
    assert len({row["arm"] for row in rows}) == 1 + len(family.matrices)


def test_what_the_family_shows(family: Stages) -> None:
    """Reasoning takes back much of what instruct training did: it had taught the model not to think."""
    assert family.values["cosine"] < -0.2 < -family.nulls["cosine"]
    assert family.values["cancelled"] > 0.4
    assert family.values["undone"] > 0.1 > family.nulls["undone"]
    assert family.values["shared_left"] > family.nulls["shared_left"] + 0.1


def test_nothing_is_left_out_in_silence(family: Stages) -> None:
    pair = Pair.open("family:base", "family:instruct")
    assert {name for name, _ in family.left_out} | {m.name for m in family.matrices} == {r.name.name for r in pair.rows}


def test_a_stage_without_change_has_no_shares(tmp_path: Path) -> None:
    root = tiny_tensors(dtype=torch.float32)
    moved = perturb(root, sigma=0.3)
    a, b = (write_checkpoint(tmp_path / n, w, tiny_config()) for n, w in (("a", root), ("b", moved)))
    still = stages(a, b, b)
    assert still.values["new"] is None
    assert still.values["cosine"] is None
    assert still.values["energy_ratio"] == 1
    fresh = stages(a, a, b)
    assert fresh.values["new"] == 1
    assert fresh.values["cancelled"] is None
    assert all(m.values[s] == (s == "new") for m in fresh.matrices for s in SHARES)
    assert all(len(row) == len(SUMMARY.names) for row in still.rows + fresh.rows)


def test_nan_is_left_out_with_its_reason(tmp_path: Path) -> None:
    root = tiny_tensors(dtype=torch.float32)
    middle, tuned = perturb(root, seed=1), perturb(root, seed=2)
    middle["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    sides = ((n, w) for n, w in (("a", root), ("b", middle), ("c", tuned)))
    found = stages(*(write_checkpoint(tmp_path / n, w, tiny_config()) for n, w in sides))
    assert ("layers.1.mlp.up_proj", "NaN or Inf") in found.left_out
    assert "layers.0.mlp.up_proj" in {m.name for m in found.matrices}


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "b", tiny_tensors(), tiny_config())
    with pytest.raises(Refused):
        stages("family:base", "family:instruct", other)


def test_place_is_the_name_without_its_layer() -> None:
    assert place("layers.3.mlp.experts.3.up_proj", 3) == "layers.*.mlp.experts.3.up_proj"
    assert place("embed", None) == "embed"
