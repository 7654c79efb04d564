"""Functional rank: the family end to end, a planted pair of rank 1, and controls that keep what they promise."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from edit_pairs import save_pair
from planted_pair import save_planted

from deltalens.checkpoint.source import resolve
from deltalens.cli.sweep import Sweep
from deltalens.edit.plan import Plan
from deltalens.edit.swap import named, swap, view_of
from deltalens.errors import Refused
from deltalens.evaluate.plan import Settings
from deltalens.methods.functional_rank import FunctionalRank, _controls, _deltas, _step, functional_rank
from deltalens.methods.pair import opened, pairing
from deltalens.model.load import load
from deltalens.store.experiment import Experiment

PAIR = ("family:instruct", "family:reasoning")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rank") / "out"


@pytest.fixture(scope="module")
def family(out: Path) -> FunctionalRank:
    return functional_rank(pairing(*PAIR, Settings(n=50), "rank"), out)


def value(found: FunctionalRank, arm: str, metric: str) -> float:
    return next(
        r["value"]
        for r in found.summary
        if (r["arm"], r["metric"]) == (arm, metric)
        and not r["group"]
        and (not r.get("reference") or "effect" in metric)
    )


def test_one_direction_per_matrix_restores_the_family_and_its_removal_takes_thinking_away(
    family: FunctionalRank,
) -> None:
    assert value(family, "base", "accuracy") < 0.3 < 0.8 < value(family, "Δ_1", "accuracy")
    assert value(family, "Δ_1", "think_ratio") > 0.8 and value(family, "tuned − Δ_1", "think_ratio") < 0.1
    assert value(family, "Δ_k", "functional_rank_accuracy") == 1
    assert family.inside[1] == (False, True)
    assert value(family, f"Δ_{family.point}", "effect_minus_largest_control") > 0.5
    p = [value(family, f"Δ_{k}", "p_think") for k in family.energies]
    assert p == sorted(p) and p[-1] < value(family, "tuned", "p_think")  # embeddings, norms and head hold the rest
    for seed in range(5):
        assert value(family, f"random U {seed}", "p_think") < 0.1


def test_a_stretched_change_is_as_long_as_the_whole(family: FunctionalRank, out: Path) -> None:
    norms = {arm["arm"]: arm["norm_delta"] for arm in family.arms}
    energies = list(family.energies.values())
    assert energies == sorted(energies) and energies[-1] == 1
    for k, energy in family.energies.items():
        assert norms[f"Δ_{k}"] == pytest.approx(energy**0.5 * norms["Δ_full"])
        if k != "full":
            assert norms[f"Δ_{k} / √e_{k}"] == pytest.approx(norms["Δ_full"])
    assert Experiment.open(out).arms.num_rows == len(family.arms)
    assert Experiment.open(out).results("rank").num_rows == len(family.rows)


def test_a_planted_rank_1_change_is_found_and_its_controls_do_nothing(tmp_path: Path) -> None:
    base, tuned = save_planted(tmp_path)
    found = functional_rank(pairing(base, tuned, Settings(n=50, max_tokens=2), "rank"))
    before, after = value(found, "base", "p_think"), value(found, "tuned", "p_think")
    assert before < 0.1 < 0.6 < after
    assert value(found, "Δ_k", "functional_rank_p_think") == 1 and found.point == 1
    assert value(found, "tuned − Δ_1", "p_think") == pytest.approx(before, abs=0.02)
    assert value(found, "bottom 1", "p_think") < before + 0.1
    assert value(found, "Δ_1", "effect_minus_largest_control") > 0.3


def test_a_change_that_changes_nothing_has_rank_0_and_few_items_have_no_interval(tmp_path: Path) -> None:
    base, tuned = (str(path) for path in save_pair(tmp_path, "qwen2", size=1e-5))  # no pair of the family
    for path in (base, tuned):
        shutil.copyfile(resolve("family:base") / "chat_template.jinja", Path(path) / "chat_template.jinja")
    found = functional_rank(pairing(base, tuned, Settings(n=50, max_tokens=2), "rank"))
    assert found.least == 0 and value(found, "Δ_k", "functional_rank") == 0
    few = functional_rank(pairing(base, tuned, Settings(n=5, max_tokens=2), "rank"))
    assert few.least is None and value(few, "Δ_k", "functional_rank") is None


def weights(model: object, plan: Plan) -> dict[str, np.ndarray]:
    places = named(model)  # ty: ignore[invalid-argument-type]
    rows = {d.row.name.name: d.row for d in _deltas(plan)}
    return {name: view_of(places, row).double().numpy().copy() for name, row in rows.items()}


def test_controls_keep_the_inputs_and_the_lengths() -> None:
    asked, k = pairing(*PAIR, Settings(n=4), "rank"), 4
    whole = opened(asked, _step("truncate", {"energy": 1.0}))
    base = opened(asked, {"operator": "interpolate", "strength": 0.0})
    model, _ = load(PAIR[1])
    before = weights(model, whole)
    with swap(model, base, "tuned"):
        start = weights(model, whole)
    with swap(model, opened(asked, _step("truncate", k)), "tuned"):
        edit = {name: w - start[name] for name, w in weights(model, whole).items()}
    random, *_, bottom = _controls(asked, base, _deltas(whole), k)
    for point in (random, bottom):
        with point.put(model):
            found = {name: w - start[name] for name, w in weights(model, whole).items()}
        for name, made in found.items():
            size = np.linalg.norm(edit[name])
            assert np.linalg.norm(made) == pytest.approx(size, rel=1e-5)
            assert abs(np.sum(made * edit[name])) < 0.35 * size**2  # not the change itself
            if point is random:  # ‖ΔΣ^½‖ is the same for every Σ
                assert np.abs(made.T @ made - edit[name].T @ edit[name]).max() < 1e-5 * size**2
            else:
                assert np.abs(edit[name] @ made.T).max() < 1e-4 * size**2
    after = weights(model, whole)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_models_that_do_not_differ_are_refused(tmp_path: Path) -> None:
    base, _ = save_planted(tmp_path)
    with pytest.raises(Refused, match="do not differ"):
        functional_rank(pairing(base, "family:instruct", Settings(n=4), "rank"))


def test_what_is_printed(family: FunctionalRank, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Sweep(*PAIR, "rank", n=50, out=str(out), quiet=True).run() == 0
    said = capsys.readouterr().out
    assert Sweep(*PAIR, "rank", n=50, out=str(out), quiet=True, json=True).run() == 0
    assert json.loads(capsys.readouterr().out) == family.summary
    assert "functional rank by accuracy: 1 " in said and "functional rank by p_think: none" in said
    assert f"{family.energies[1] ** -0.5:.3f}" in said and "1/√e_k" in said
