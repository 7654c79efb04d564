"""Overlaps between measured pairs: planted sharing is found, independent deltas claim nothing, and seeds are marked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import tiny_config, tiny_tensors, write_checkpoint
from scipy.stats import kstest

from deltalens.checkpoint.pair import Pair
from deltalens.direction.compare import overlap
from deltalens.experiment.atlas import (
    NOT_SHARED,
    SHARED,
    Atlas,
    Member,
    Relation,
    _judged,
    _Table,
    atlas,
    crossed,
    layers_p,
)
from deltalens.experiment.gauge import OTHER, UNALIGNED, UNDECIDED, gauge
from deltalens.spectrum.measure import measure_diff
from deltalens.store.results import SUMMARY
from deltalens.store.run import Run

K, LAYERS = 4, 6
Change = Callable[[str, tuple[int, int]], np.ndarray]


def frame(seed: object, d: int, k: int = K) -> np.ndarray:
    """Orthonormal columns, the same for the same seed."""
    rng = np.random.default_rng(list(repr(seed).encode()))
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def low_rank(left: str, right: str) -> Change:
    """UVᵀ of four equal values for every matrix; pairs of one `left` have the same U, of one `right` the same V."""
    return lambda name, shape: frame((left, name), shape[0]) @ frame((right, name), shape[1]).T


def measured(folder: Path, change: Change, base: Path, layers: int = LAYERS) -> Run:
    """A RUN of a base in `folder/base`, float32, and the same with every matrix moved."""
    tensors = tiny_tensors(layers=layers, dtype=torch.float32)
    write_checkpoint(base, tensors, tiny_config(num_hidden_layers=layers, torch_dtype="float32"))
    rng = np.random.default_rng(list(folder.name.encode()))
    moved = {
        name: w
        if w.ndim == 1
        else w + torch.from_numpy(change(name, tuple(w.shape)) + 1e-4 * rng.standard_normal(w.shape))
        for name, w in tensors.items()
    }
    moved = {name: w.float() for name, w in moved.items()}
    tuned = write_checkpoint(folder / "tuned", moved, tiny_config(num_hidden_layers=layers, torch_dtype="float32"))
    return measure_diff(Pair.open(base, tuned), folder / "run", context=False, nulls="off", threads=1)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """`main` and `twin` share their left subspaces, `main` and `cousin` the right ones, `other` is on its own.

    `input` shares its right subspaces with `main` as `cousin` does: as unrelated deltas on the same inputs do.
    """
    folder = tmp_path_factory.mktemp("planted")
    frames = {"main": ("a", "b"), "twin": ("a", "c"), "cousin": ("d", "b"), "other": ("e", "f"), "input": ("g", "b")}
    return {name: measured(folder / name, low_rank(*of), folder / "base") for name, of in frames.items()}


def relation(found: Atlas, a: str, b: str, side: str) -> Relation:
    return next(r for r in found.relations if (r.a, r.b, r.side) == (a, b, side))


def of(runs: dict[str, Run], *names: str, sibling: str = "") -> Atlas:
    return atlas([Member(name, "sibling" if name == sibling else "main", runs[name]) for name in names])


def test_planted_sharing_is_found_on_its_side(planted: dict[str, Run]) -> None:
    found = of(planted, "main", "twin", "other", sibling="other")
    left, right = (relation(found, "main", "twin", side) for side in ("left", "right"))
    assert left.word == SHARED
    assert left.reason is None
    assert left.overlap == pytest.approx(1, abs=0.01)
    assert left.null < 0.3
    assert left.p == 1 / 2000
    assert left.p < left.p_holm <= 0.05
    assert (left.k, left.matrices) == (K, 7 * LAYERS)
    assert right.word == NOT_SHARED  # decided, since there is a sibling
    assert right.overlap < 0.3


def test_independent_deltas_lie_at_the_null_and_claim_nothing(planted: dict[str, Run]) -> None:
    found = of(planted, "main", "other")
    left, right = (relation(found, "main", "other", side) for side in ("left", "right"))
    assert left.word == NOT_SHARED
    assert left.overlap == pytest.approx(left.nulls["isotropic"], abs=0.03)
    assert left.p > 0.05
    assert (right.word, right.p) == (UNDECIDED, None)
    assert "sibling" in right.reason


def test_shared_inputs_need_a_sibling_and_lose_to_it(planted: dict[str, Run]) -> None:
    """Right subspaces that every delta has are no sharing between two of them; without a sibling nothing is said."""
    alone = relation(of(planted, "main", "cousin"), "main", "cousin", "right")
    assert (alone.word, alone.p) == (UNDECIDED, None)
    assert alone.overlap == pytest.approx(1, abs=0.01)
    beside = relation(of(planted, "main", "cousin", "input", sibling="input"), "main", "cousin", "right")
    assert beside.word == NOT_SHARED
    assert beside.null == pytest.approx(beside.overlap, abs=0.01)
    assert beside.nulls["sibling"] > 0.9
    decided = relation(of(planted, "main", "cousin", "other", sibling="other"), "main", "cousin", "right")
    assert decided.word == SHARED


def test_one_subspace_in_all_layers_is_no_more_than_another_layer(tmp_path: Path) -> None:
    """Two deltas that write along the same directions everywhere share them, but in no layer of their own."""

    def everywhere(right: str) -> Change:
        return lambda name, shape: frame(("w", shape[0]), shape[0]) @ frame((right, name), shape[1]).T

    runs = {n: measured(tmp_path / n, everywhere(n), tmp_path / "base") for n in ("a", "b")}
    found = relation(of(runs, "a", "b"), "a", "b", "left")
    assert found.overlap == pytest.approx(1, abs=0.01)
    assert found.null == pytest.approx(1, abs=0.01)
    assert found.word != SHARED


def test_overlaps_of_all_layers_are_those_of_each_two() -> None:
    a, b = ([frame((n, i), 20, 3) for i in range(4)] for n in "ab")
    np.testing.assert_allclose(crossed(a, b), [[overlap(x, y) for y in b] for x in a], atol=1e-12)


def test_p_is_uniform_where_no_layer_is_special() -> None:
    """Also where all matrices of one input have the same overlaps: they are permuted together."""
    found = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        same = rng.beta(2, 30, (8, 8))
        tables = [_Table(same, tuple(range(8)), rng.uniform(0.5, 1.5, 8), "attention") for _ in range(3)]
        tables.append(_Table(rng.beta(2, 30, (7, 7)), tuple(range(1, 8)), rng.uniform(0.5, 1.5, 7), "o"))
        found.append(layers_p(tables, seed)[0])
    assert kstest(found, "uniform").pvalue > 0.01


def test_few_layers_are_undecided() -> None:
    """Two layers of one block have two arrangements: p cannot be below one half."""
    table = _Table(np.array([[0.9, 0.1], [0.1, 0.9]]), (0, 1), np.ones(2), "o")
    p, least = layers_p([table], 0)
    assert p == pytest.approx(0.5, abs=0.05)
    assert least == 0.5
    judged = _judged([Relation("a", "b", "left", overlap=0.9, null=0.1, p=p, least=least)])[0]
    assert (judged.word, judged.reason) == (UNDECIDED, "too few layers to permute")


@pytest.mark.parametrize(("overlap", "word"), [(0.1, NOT_SHARED), (0.14, UNDECIDED), (0.16, SHARED)])
def test_the_margin_over_the_largest_null(overlap: float, word: str) -> None:
    judged = _judged([Relation("a", "b", "left", overlap=overlap, null=0.1, p=0.0005, least=0.0005)])[0]
    assert judged.word == word


def test_holm_is_over_all_tests() -> None:
    judged = _judged([Relation("a", "b", "left", overlap=0.9, null=0.1, p=0.02, least=0.0005)] * 3)
    assert [r.p_holm for r in judged] == [pytest.approx(0.06)] * 3
    assert {r.word for r in judged} == {NOT_SHARED}


def test_rows_and_grids(planted: dict[str, Run]) -> None:
    found = of(planted, "main", "twin", "other")
    assert all(list(row) == SUMMARY.names for row in found.rows)
    pooled = [row for row in found.rows if row["group"] == "" and row["metric"] == "overlap_left"]
    assert [row["arm"] for row in pooled] == ["main × twin", "main × other", "twin × other"]
    assert pooled[0]["method"].startswith(SHARED)
    grid = found.grid("left", "overlap")
    assert [grid[i][i] for i in range(3)] == [None] * 3
    assert grid[0][1] == grid[1][0] == pooled[0]["value"]
    assert found.grid("left", "word")[0][2] == NOT_SHARED
    one = next(r for r in found.rows if r["group"] == "layers.2.mlp.up_proj" and r["metric"] == "overlap_left")
    stored = [planted[n].directions("layers.2.mlp.up_proj").left[:K].T.astype(np.float64) for n in ("main", "twin")]
    assert one["value"] == pytest.approx(overlap(*stored))


def test_another_shape_is_another_architecture(planted: dict[str, Run], tmp_path: Path) -> None:
    tensors = tiny_tensors(layers=LAYERS, hidden=48, heads=4, ff=64, dtype=torch.float32)
    sides = [
        write_checkpoint(tmp_path / n, {name: w + s for name, w in tensors.items()}, tiny_config(hidden_size=48))
        for n, s in (("x", 0.0), ("y", 0.01))
    ]
    run = measure_diff(Pair.open(*sides), tmp_path / "run", context=False, nulls="off", threads=1)
    found = of(planted | {"wide": run}, "main", "wide")
    assert [r.word for r in found.relations] == [OTHER] * 2
    assert [r.overlap for r in found.relations] == [None] * 2
    assert "shapes" in found.relations[0].reason


def test_a_base_that_is_gone_leaves_it_undecided(planted: dict[str, Run], tmp_path: Path) -> None:
    base = tmp_path / "base"
    run = measured(tmp_path / "moved", low_rank("a", "c"), base)
    assert gauge(planted["main"], run).word is None  # the same bytes elsewhere
    other = {name: w + 0.01 for name, w in tiny_tensors(layers=LAYERS, dtype=torch.float32).items()}
    write_checkpoint(base, other, None)
    run = measure_diff(Pair.open(base, tmp_path / "moved" / "tuned"), tmp_path / "new", context=False, nulls="off")
    assert gauge(planted["main"], run).cosine > 0.5  # moved, not turned
    base.rename(tmp_path / "elsewhere")
    found = of(planted | {"gone": run}, "main", "gone")
    assert found.relations[0].word == UNDECIDED
    assert "not there" in found.relations[0].reason


FAMILY = {
    "main": ("instruct", "reasoning"),
    "safety": ("instruct", "safe"),
    "sibling": ("base", "instruct-sibling"),
    "rl": ("base", "reasoning-rl"),
    "seed": ("b-instruct", "b-reasoning"),
}


def test_family(tmp_path: Path) -> None:
    """Two ways to reason share more than a sibling has; safety does not; another seed has no coordinates."""
    members = []
    for name, sides in FAMILY.items():
        pair = Pair.open(*(f"family:{side}" for side in sides), match="layers.*.self_attn.*")
        run = measure_diff(pair, tmp_path / name, context=False, nulls="off", threads=1)
        members.append(Member(name, name, run))
    found = atlas(members)
    alike = relation(found, "main", "rl", "left")
    assert alike.word == SHARED
    assert alike.overlap > alike.null + 0.1
    assert alike.base_cosine > 0.99  # neither starts where the other ends
    assert relation(found, "main", "safety", "left").word == NOT_SHARED
    for side in ("left", "right"):
        seeds = relation(found, "main", "seed", side)
        assert seeds.word == UNALIGNED
        assert abs(seeds.base_cosine) < 0.02
        assert seeds.p is None
        assert seeds.overlap == pytest.approx(seeds.nulls["isotropic"], abs=0.02)
