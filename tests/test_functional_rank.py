"""Functional rank: the family end to end, a planted pair of rank 1, and controls that keep what they promise."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edit_pairs import save_pair
from planted_pair import save_planted

from deltalens.checkpoint.source import resolve
from deltalens.cli.sweep import Sweep
from deltalens.cli.sweep_tables import show_rank
from deltalens.edit.plan import Plan
from deltalens.edit.swap import named, swap, view_of
from deltalens.edit.tensors import changes
from deltalens.errors import Refused
from deltalens.evaluate.plan import Settings
from deltalens.methods import functional_rank as recipe
from deltalens.methods.functional_rank import OUT, PUT, WIDE, FunctionalRank, _bottom, functional_rank
from deltalens.model.load import load
from deltalens.store.experiment import Experiment
from deltalens.sweep import controls, pair
from deltalens.sweep.bench import edited
from deltalens.sweep.pair import Pairing, opened, pairing
from deltalens.sweep.spectrum import ranks, spectra

PAIR = ("family:instruct", "family:reasoning")


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """The least and the full rank alone, one control of each kind, fewer items to choose on: all take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "ranks", lambda of: (1.0, ranks(of)[-1]))
        patch.setattr(pair, "CHOSEN_ON", 30)
        patch.setattr(controls, "SEEDS", 1)
        patch.setattr(controls, "_SHIFTS", 1)
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rank") / "out"


@pytest.fixture(scope="module")
def asked() -> Pairing:
    return pairing(*PAIR, Settings(n=50))


@pytest.fixture(scope="module")
def family(asked: Pairing, out: Path) -> FunctionalRank:
    return functional_rank(asked, out, kl=False)


def row(found: FunctionalRank, arm: str, metric: str) -> dict[str, Any]:
    here = [r for r in found.summary if (r["arm"], r["metric"], r.get("group")) == (arm, metric, "")]
    return next(r for r in here if arm in (PUT, WIDE, OUT) or not r.get("reference"))


def value(found: FunctionalRank, arm: str, metric: str) -> float:
    return row(found, arm, metric)["value"]


def test_one_direction_per_matrix_restores_the_family_and_its_removal_takes_thinking_away(
    family: FunctionalRank,
) -> None:
    assert value(family, "base", "accuracy") < 0.3 < 0.8 < value(family, "Δ_1", "accuracy")
    assert value(family, "Δ_1", "think_ratio") > 0.8 and value(family, "tuned − Δ_1", "think_ratio") < 0.1
    assert value(family, PUT, "functional_rank_accuracy") == 1
    assert family.inside[1] == (False, True)
    assert row(family, PUT, "operating_point")["reference"] == f"Δ_{family.point}"
    for curve in (PUT, WIDE, OUT):
        assert value(family, curve, "effect_minus_largest_control") > 0.5
    p = [value(family, f"Δ_{k}", "p_think") for k in family.energies]
    assert p == sorted(p) and p[-1] < value(family, "tuned", "p_think")  # embeddings, norms and head hold the rest
    assert value(family, f"Δ_{family.point}: random U 0", "p_think") < 0.1


def test_a_stretched_change_is_as_long_as_the_whole(family: FunctionalRank, out: Path) -> None:
    norms = {arm["arm"]: arm["norm_delta"] for arm in family.arms}
    energies = list(family.energies.values())
    assert energies == sorted(energies) and energies[-1] == 1
    for k, energy in family.energies.items():
        assert norms[f"Δ_{k}"] == norms[f"tuned − Δ_{k}"] == pytest.approx(energy**0.5 * norms["Δ_full"])
        if k != "full":
            assert norms[f"Δ_{k} / √e_{k}"] == pytest.approx(norms["Δ_full"])
    assert Experiment.open(out).arms.num_rows == len(family.arms)
    assert Experiment.open(out).results("rank").num_rows == len(family.rows)


def test_every_arm_stands_on_its_curve(family: FunctionalRank) -> None:
    places = {name: [] for name in (PUT, WIDE, OUT)}
    for r in family.summary:
        if r["metric"] == "strength":
            places[r["group"]].append((r["value"], r["arm"]))
    assert [x for x, _ in places[PUT]] == [x for x, _ in places[OUT]] == [0.0, 1.0, 128.0]
    assert [x for x, _ in places[WIDE]] == [0.0, 1.0]
    assert places[PUT][0][1] == places[WIDE][0][1] == "base" and places[OUT][0][1] == "tuned"
    assert places[PUT][-1][1] == "Δ_full"


def test_a_planted_rank_1_change_is_found_and_its_controls_do_nothing(tmp_path: Path) -> None:
    base, tuned = save_planted(tmp_path)
    found = functional_rank(pairing(base, tuned, Settings(n=50, max_tokens=2)), kl=False)
    before, after = value(found, "base", "p_think"), value(found, "tuned", "p_think")
    assert before < 0.1 < 0.6 < after
    assert value(found, PUT, "functional_rank_p_think") == 1 and found.point == 1
    assert value(found, "tuned − Δ_1", "p_think") == pytest.approx(before, abs=0.02)
    assert value(found, "Δ_1: bottom", "p_think") < before + 0.1
    assert value(found, PUT, "effect_minus_largest_control") > 0.3
    assert value(found, PUT, "fraction") == pytest.approx(1, abs=0.02)
    assert value(found, OUT, "fraction") == pytest.approx(0, abs=0.02)
    for curve, ask in ((PUT, "causal"), (PUT, "sufficient"), (OUT, "causal"), (OUT, "necessary")):
        assert row(found, curve, ask)["method"] == "undecided: 50 items, 200 are needed"


@pytest.mark.slow
def test_of_200_items_the_family_gives_verdicts() -> None:
    found = functional_rank(pairing(*PAIR, Settings(n=200)), kl=False)
    for curve, asks in ((PUT, ("causal", "sufficient")), (OUT, ("causal", "necessary", "choice"))):
        for ask in asks:
            assert row(found, curve, ask)["method"].startswith("supported"), (curve, ask)


def test_a_change_that_changes_nothing_has_rank_0_and_few_items_have_no_interval(tmp_path: Path) -> None:
    base, tuned = (str(path) for path in save_pair(tmp_path, "qwen2", size=1e-5))  # no pair of the family
    for path in (base, tuned):
        shutil.copyfile(resolve("family:base") / "chat_template.jinja", Path(path) / "chat_template.jinja")
    found = functional_rank(pairing(base, tuned, Settings(n=50, max_tokens=2)), kl=False)
    assert found.least == 0 and value(found, "Δ_k", "functional_rank") == 0
    few = functional_rank(pairing(base, tuned, Settings(n=5, max_tokens=2)), kl=False)
    assert few.least is None and value(few, "Δ_k", "functional_rank") is None


def weights(model: object, plan: Plan) -> dict[str, np.ndarray]:
    places = named(model)  # ty: ignore[invalid-argument-type]
    return {row.name.name: view_of(places, row).double().numpy().copy() for row, _ in changes(plan)}


def test_the_bottom_is_as_long_as_the_top_and_shares_nothing_with_it(asked: Pairing) -> None:
    k = 4
    top = opened(asked, {"operator": "truncate", "rank": k})
    base = opened(asked, {"operator": "interpolate", "strength": 0.0})
    model, _ = load(PAIR[1])
    before = weights(model, top)
    with swap(model, base, "tuned"):
        start = weights(model, top)
    with swap(model, top, "tuned"):
        edit = {name: w - start[name] for name, w in weights(model, top).items()}
    bottom = _bottom(asked, spectra(asked, {}), edited("top", "edit", top, float(k)))
    with bottom.put(model):
        found = {name: w - start[name] for name, w in weights(model, top).items()}
    assert bottom.arm.norm_delta == pytest.approx(sum(np.sum(e**2) for e in edit.values()) ** 0.5, rel=1e-5)
    for name, made in found.items():
        size = np.linalg.norm(edit[name])
        assert np.linalg.norm(made) == pytest.approx(size, rel=1e-5)
        assert np.abs(edit[name] @ made.T).max() < 1e-4 * size**2 and np.abs(edit[name].T @ made).max() < 1e-4 * size**2
    after = weights(model, top)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_models_that_do_not_differ_are_refused() -> None:
    with pytest.raises(Refused, match="do not differ"):
        functional_rank(pairing(str(resolve(PAIR[0])), PAIR[0], Settings(n=4)))


def test_it_resumes_and_what_is_printed(
    asked: Pairing, family: FunctionalRank, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Sweep(PAIR, "rank", n=50, kl=False, out=str(out), quiet=True, json=True).run() == 0
    assert json.loads(capsys.readouterr().out) == family.summary
    show_rank(asked, family)
    said = capsys.readouterr().out
    assert "functional rank by accuracy: 1 " in said and "functional rank by p_think: none" in said
    assert f"{family.energies[1] ** -0.5:.3f}" in said and "1/√e_k" in said
