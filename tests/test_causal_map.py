"""The causal map: a gradient that finite differences confirm, the planted matrix found and no other, and its edges."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from edit_pairs import save_pair
from planted_pair import LAYER, save_planted

from deltalens.checkpoint.source import resolve
from deltalens.edit.edit import from_record
from deltalens.edit.plan import plan
from deltalens.edit.swap import named, swap, view_of
from deltalens.errors import Refused
from deltalens.evaluate.plan import Settings
from deltalens.methods.causal_map import GROWN, CausalMap, causal_map, grow
from deltalens.methods.causal_rows import FLIPS, sign_flips
from deltalens.methods.cells import LEAVE_OUT, PUT_IN, Cell, Edits, cells, operations
from deltalens.methods.first_order import along, gradient, log_odds
from deltalens.model.load import load
from deltalens.model.score import opening_probs, skip_probs
from deltalens.store import engine
from deltalens.store.experiment import Experiment
from deltalens.sweep import controls
from deltalens.sweep.controls import changes_of
from deltalens.sweep.pair import Pairing, opened, pairing

FAMILY = ("family:instruct", "family:reasoning")
BUDGET = 6
PLANTED = Cell(LAYER, "o_proj", "top", 1)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """One control of each kind: the map has no say in how many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controls, "SEEDS", 1)
        yield


@pytest.fixture(scope="module")
def asked() -> Pairing:
    return pairing(*FAMILY, Settings(n=50))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("map") / "out"


@pytest.fixture(scope="module")
def planted_pair(tmp_path_factory: pytest.TempPathFactory) -> Pairing:
    return pairing(*save_planted(tmp_path_factory.mktemp("planted")), Settings(n=200, max_tokens=2))


@pytest.fixture(scope="module")
def planted(planted_pair: Pairing, out: Path) -> CausalMap:
    return causal_map(planted_pair, out, budget=BUDGET)


def row(found: CausalMap, arm: str, metric: str) -> dict:
    return next(r for r in found.summary if (r["arm"], r["metric"]) == (arm, metric))


def test_log_odds_are_those_of_the_probabilities_that_are_scored() -> None:
    model, _ = load(FAMILY[0])
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 100, size).tolist() for size in (5, 9, 9)]
    with torch.no_grad():
        for tag in ([7], [7, 11]):
            p = opening_probs(model, prompts, tag).double()
            assert torch.allclose(log_odds(model, prompts, tag), p.log() - (-p).log1p(), atol=1e-4)
            p = skip_probs(model, prompts, tag, 4).double()
            assert torch.allclose(log_odds(model, prompts, tag, 4), p.log() - (-p).log1p(), atol=1e-4)


@pytest.mark.parametrize(("layer", "kind", "band"), [(1, "o_proj", "top"), (3, "down_proj", "rest")])
def test_the_first_order_effect_is_the_slope_of_a_finite_difference(
    asked: Pairing, layer: int, kind: str, band: str
) -> None:
    """Of one matrix, in a float64 model, at both ends."""
    edits = Edits(asked)
    cell = next(c for c in cells(asked) if (c.layer, c.kind, c.band) == (layer, kind, band))
    model = load(asked.tuned)[0].double()
    changes = changes_of(edits.plan([cell], PUT_IN), "base")
    (change,) = changes
    step = torch.from_numpy(change.form.dense()).double()
    for end in (1.0, 0.0):
        with swap(model, opened(asked, {"operator": "interpolate", "strength": end}), side="tuned"):
            slope = along(gradient(model, asked.chosen_on, "p_think", batch_size=16), changes)
            place, size = view_of(named(model), change.row), 0.02  # norms are float32: a smaller step drowns
            ids, think = asked.chosen_on.ids["free"], asked.chosen_on.chat.think
            assert think is not None
            ends = []
            for sign in (1, -1):
                place += sign * size * step
                with torch.no_grad():
                    ends.append(float(log_odds(model, ids, think.open_ids).mean()))
                place -= sign * size * step
            assert slope == pytest.approx((ends[0] - ends[1]) / (2 * size), rel=1e-3, abs=5e-6)
            assert abs(slope) > 1e-4


def test_all_cells_together_are_the_other_side(asked: Pairing) -> None:
    every = cells(asked)
    assert len({c.name for c in every}) == len(every) == 58
    plans = {d: plan(from_record({"base": asked.base, "tuned": asked.tuned, "edit": operations(every, d)}))
             for d in (PUT_IN, LEAVE_OUT)}  # fmt: skip
    assert not changes_of(plans[PUT_IN], "tuned") and not changes_of(plans[LEAVE_OUT], "base")


@pytest.mark.parametrize("direction", [PUT_IN, LEAVE_OUT])
def test_the_bands_of_a_matrix_add_up_to_its_delta_and_touch_nothing_else(asked: Pairing, direction: str) -> None:
    edits, side = Edits(asked), "base" if direction == PUT_IN else "tuned"
    bands = [c for c in cells(asked) if (c.layer, c.kind) == (2, "up_proj")]
    (whole,) = changes_of(edits.plan(bands, direction), side)
    parts = [changes_of(edits.plan([c], direction), side) for c in bands]
    assert [len(p) for p in parts] == [1, 1] and {p[0].row.name.name for p in parts} == {whole.row.name.name}
    top, rest = (p[0].form.dense() for p in parts)
    plan_of = edits.plan(bands, direction)
    delta = (plan_of.of("tuned", whole.row) - plan_of.of("base", whole.row)).dense()
    sign = 1 if direction == PUT_IN else -1
    assert np.allclose(top + rest, sign * delta, atol=1e-7) and np.allclose(whole.form.dense(), sign * delta)
    assert np.linalg.matrix_rank(top, tol=1e-4) <= (bands[0].rank or 0)
    assert abs(np.vdot(top, rest)) < 1e-6 * np.linalg.norm(top) * np.linalg.norm(rest)


def test_the_planted_matrix_matters_and_no_other(planted: CausalMap) -> None:
    ran = [t for t in planted.cells if t.effect is not None]
    assert {(t.cell, t.direction) for t in ran if t.matters} == {(PLANTED, PUT_IN), (PLANTED, LEAVE_OUT)}
    assert all(t.matters is False for t in ran if t.cell != PLANTED)
    assert planted.sets == {PUT_IN: (PLANTED,), LEAVE_OUT: (PLANTED,)}
    for direction, verdict in ((PUT_IN, "sufficient"), (LEAVE_OUT, "necessary")):
        for curve in (f"largest cell, {direction}", f"smallest set, {direction}"):
            for ask in ("causal", verdict):
                found = row(planted, curve, ask)
                assert found["reference"] == f"{direction} {PLANTED.name}" and found["method"].startswith("supported")
    assert row(planted, "leave out", "spearman")["n"] + row(planted, "put in", "spearman")["n"] == BUDGET


def test_what_the_budget_leaves_out_is_listed_and_marked(planted: CausalMap, out: Path) -> None:
    waiting = [t for t in planted.cells if t.effect is None]
    assert len(planted.cells) == 112 and len(waiting) == 112 - BUDGET
    least = min(abs(t.first_order) for t in planted.cells if t.effect is not None)
    assert all(t.matters is None and abs(t.first_order) <= least for t in waiting)
    marked = [r for r in planted.summary if r["metric"] == "first_order" and "not run" in r["method"]]
    assert [r["arm"] for r in marked] == [t.name for t in waiting]
    arms = {r["arm"]: json.loads(r["edit"] or "{}") for r in Experiment.open(out).arms.to_pylist()}
    assert all(arms[t.name]["cell"] == t.cell.record and arms[t.name]["direction"] == t.direction for t in waiting)
    assert not {r["arm"] for r in planted.rows} & {t.name for t in waiting}


def test_every_cell_that_ran_has_its_test_and_a_control_of_its_length(planted: CausalMap, out: Path) -> None:
    arms = {r["arm"]: r for r in Experiment.open(out).arms.to_pylist()}
    for t in planted.cells:
        if t.effect is None:
            continue
        start = "base" if t.direction == PUT_IN else "tuned"
        (test,) = [r for r in planted.summary if r["arm"] == t.name and r["metric"] == "p_think"
                   and r.get("reference") == start and "select" not in r["task"]]  # fmt: skip
        assert test["value"] == pytest.approx(t.effect) and test["low"] <= t.effect <= test["high"]
        assert (test["p"], test["p_holm"]) == (t.p, t.p_holm) and 0 < test["p"] <= test["p_holm"]
        control = arms[f"{t.name}: random U 0"]
        assert control["control_of"] == t.name and control["norm_delta"] == pytest.approx(t.norm)
    kinds = {name.rpartition(": ")[2] for name in arms if name.startswith(f"{PUT_IN} {PLANTED.name}: ")}
    assert kinds == {"random U 0", "random V 0", "Haar U, V 0", "Gaussian 0"}  # a winner's are those of every sweep


def test_a_map_resumes_with_nothing_to_do_and_says_the_same(
    planted: CausalMap, planted_pair: Pairing, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a finished map has no task left")

    monkeypatch.setattr(engine, "write_part", never)
    again = causal_map(planted_pair, out, budget=BUDGET)
    assert again.cells == planted.cells and again.summary == planted.summary and again.rows == planted.rows


def test_identical_sides_have_no_cells(tmp_path: Path) -> None:
    copy = shutil.copytree(resolve(FAMILY[0]), tmp_path / "copy")
    same = pairing(FAMILY[0], str(copy), Settings(n=50))
    with pytest.raises(Refused, match="do not differ in any tensor"):
        causal_map(same, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fused_and_stacked_matrices_are_cells_of_their_own(tmp_path: Path) -> None:
    base, tuned = map(str, save_pair(tmp_path, "gpt2"))
    asked = pairing(*FAMILY, Settings(n=50))
    every = cells(Pairing(base, tuned, asked.asked, "p_think", asked.chosen_on, (), ()))
    assert {"q_proj+k_proj+v_proj", "embeddings", "norms and biases"} <= {c.kind for c in every}


@pytest.mark.parametrize("least", [1, 2, 3, 7, 8, 9, 30, 57, 58])
def test_the_smallest_set_is_found_in_few_tries(least: int) -> None:
    tried, found = grow(58, lambda k: k >= least)
    assert found == least and len(tried) <= GROWN and len(set(tried)) == len(tried)
    assert grow(58, lambda k: False)[1] is None


def test_sign_flips_are_exact_and_uniform_where_nothing_happens() -> None:
    rng = np.random.default_rng(1)
    p = sign_flips(rng.standard_normal((400, 60)) * rng.lognormal(size=(400, 1)))
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09 and abs(np.mean(p) - 0.5) < 0.05
    assert sign_flips(np.full((1, 60), 0.01)) == [1 / (max(FLIPS, 100) + 1)]
    assert sign_flips(np.zeros((1, 60))) == [1.0]
