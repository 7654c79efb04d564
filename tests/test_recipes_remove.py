"""Contrast and negate: nothing from nothing, dense oracles, cuts that leave nothing along Q, and nothing done twice."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from deltalens.checkpoint.source import resolve
from deltalens.direction.bank import read_bank, read_directions
from deltalens.direction.estimate import Samples
from deltalens.errors import BadInput
from deltalens.evaluate.plan import Settings
from deltalens.methods.contrast import contrast, reaching
from deltalens.methods.negate import BANK, negate, thinking_directions
from deltalens.methods.recipes import recipe
from deltalens.model.load import load
from deltalens.store.experiment import Experiment
from deltalens.sweep import activation_arms, bench
from deltalens.sweep.activation_arms import directions, read_last
from deltalens.sweep.curves import Swept
from deltalens.sweep.pair import Pairing, pairing

PAIR = ("family:instruct", "family:reasoning")
SIBLING = "family:instruct-sibling"
N = 24


def asked(base: str = PAIR[0], tuned: str = PAIR[1], sibling: str | None = SIBLING) -> Pairing:
    settings = Settings(tasks=("chain-hard", "facts"), n=N, max_tokens=3)
    found = pairing(base, tuned, settings, others={"sibling": sibling})
    name, pieces = found.asked.text
    return replace(found, asked=replace(found.asked, text=(name, pieces[:8])))


def value(found: Swept, arm: str, metric: str, task: str = "chain-hard") -> Any:
    return next(
        r["value"]
        for r in found.summary
        if (r["arm"], r["metric"], r["task"]) == (arm, metric, task) and (arm == "pair" or not r.get("reference"))
    )


def told(found: Swept, metric: str) -> str:
    return next(r["method"] for r in found.summary if r["metric"] == metric and r["arm"] == "pair")


@pytest.fixture(scope="module", autouse=True)
def few_points() -> Iterator[None]:
    """Thin grids, and one random control of each kind: tests/test_controls.py is about those."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltalens.sweep.controls.SEEDS", 1)
        patch.setattr("deltalens.sweep.pair.CHOSEN_ON", 16)
        patch.setattr("deltalens.methods.contrast.STRENGTHS", (0.5, 1.0, 1.5))
        patch.setattr("deltalens.methods.contrast.LENGTHS", (1.0, 1.5))
        patch.setattr("deltalens.methods.negate.STRENGTHS", (0.5,))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("remove")


@pytest.fixture(scope="module")
def contrasted(folder: Path) -> Swept:
    return contrast(asked(), folder / "contrast")


@pytest.fixture(scope="module")
def negated(folder: Path) -> Swept:
    return negate(asked(), folder / "negate", kl=False)


def test_the_contrast_of_a_model_with_itself_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltalens.sweep.matched.Matched.points", lambda *_: [])
    monkeypatch.setattr("deltalens.methods.contrast.activations", lambda _: [])
    monkeypatch.setattr("deltalens.methods.contrast.STRENGTHS", (0.3, 1.5))
    found = contrast(asked(sibling=PAIR[1]))
    for curve in ("base + k·w", "base − k·w"):
        one = found.drawn[curve]
        assert len(one.found) == 2 and not one.controls
        for arm in one.found:
            assert arm.probabilities["p_think"] == found.base.probabilities["p_think"]
            assert set(arm.probabilities["kl"]) == {0.0}
        assert [r["text"] for r in one.point.rows] == [r["text"] for r in found.base.rows]
    assert (value(found, "pair", "cos_anti"), value(found, "pair", "norm_asymmetry")) == (-1, 1)
    assert value(found, "pair", "drift_ratio") is None and value(found, "pair", "cos_w_tau") is None
    assert value(found, "pair", "equal_effect") is None and not any("equal" in name for name in found.drawn)


def test_diagnostics_and_weights_are_the_dense_formulas(contrasted: Swept) -> None:
    names = (*PAIR, SIBLING)
    stored = [load_file(resolve(name) / "model.safetensors") for name in names]
    base, tuned, sibling = ({k: v.astype(np.float64) for k, v in weights.items()} for weights in stored)
    tau, other = (np.concatenate([(side[k] - base[k]).ravel() for k in base]) for side in (tuned, sibling))
    w, norm = tau - other, np.linalg.norm
    assert value(contrasted, "pair", "cos_anti") == pytest.approx(-tau @ other / norm(tau) / norm(other), rel=1e-9)
    assert value(contrasted, "pair", "norm_asymmetry") == pytest.approx(norm(tau) / norm(other), rel=1e-9)
    assert value(contrasted, "pair", "drift_ratio") == pytest.approx(norm(tau + other) / norm(w), rel=1e-9)
    assert value(contrasted, "pair", "cos_w_tau") == pytest.approx(w @ tau / norm(w) / norm(tau), rel=1e-9)
    assert told(contrasted, "base_of_sibling").startswith("wrong")  # the family's sibling began at base
    norms = {arm["arm"]: arm["norm_delta"] for arm in contrasted.arms}
    assert norms["base + 1.5w"] == pytest.approx(1.5 * norm(w)) and norms["base + 0.5τ"] == pytest.approx(
        0.5 * norm(tau)
    )
    model, _ = load(PAIR[1])
    point = contrasted.drawn["base − k·w"].curve.make(0.5)
    with point.put(model):
        found = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    for name, made in found.items():
        dense = base[name] - 0.5 * (tuned[name] - sibling[name])
        assert np.abs(made - dense).max() <= 1e-6 * np.abs(dense).max()


def test_the_whole_task_vector_is_the_tuned_model(contrasted: Swept) -> None:
    arm = next(f for f in contrasted.drawn["base + k·τ"].found if f.name == "base + 1τ")
    assert arm.probabilities == contrasted.tuned.probabilities


def test_ways_of_equal_effect_have_it_and_a_ledger(contrasted: Swept) -> None:
    target = value(contrasted, "pair", "equal_effect")
    base = value(contrasted, "base", "p_think", "chain-hard (select)")
    equal = {name: one for name, one in contrasted.drawn.items() if name.endswith("at equal effect")}
    assert len(equal) == 3 and target > 0.5
    for one in equal.values():
        reached = value(contrasted, one.point.name, "p_think", "chain-hard (select)") - base
        assert target <= reached <= target + 0.05
        for metric in ("forced_accuracy", "kl"):
            assert value(contrasted, one.point.name, metric) is not None
        assert value(contrasted, one.point.name, "accuracy", "facts") is not None
        assert value(contrasted, one.point.name, "perplexity", "text") > 1


def test_both_signs_and_their_controls(contrasted: Swept) -> None:
    assert value(contrasted, "base + 1.5w", "p_think") > 0.9 > 0.01 > value(contrasted, "base − 1.5w", "p_think")
    one = contrasted.drawn["base + k·v"]
    kinds = {c.point.arm.edit["control"]: c.point.arm.edit["decides"] for c in one.controls}
    assert kinds == {"permuted": True, "isotropic": True, "wrong layer": False}
    lengths = {c.point.arm.functional_norm for c in one.controls}
    assert all(length == pytest.approx(one.point.point.arm.functional_norm, rel=1e-5) for length in lengths)
    before = value(contrasted, "base", "p_think")
    assert all(
        c.values("p_think")[0] < before + 0.2 for c in one.controls if c.point.arm.edit["control"] == "isotropic"
    )


def test_a_steered_arm_holds_the_vector_at_the_last_prompt_token(contrasted: Swept) -> None:
    point = contrasted.drawn["base + k·v"].curve.make(1.5)
    layer, ids = point.arm.edit["layer"], asked().chosen_on.ids["free"][:5]
    with bench.bench(asked(), {"recipe": "test"}, None, None, None) as at:
        base, tuned = bench.ends(at.pairing)
        rows, pushed = read_last(at, base, ids), read_last(at, point, ids)
        extract = activation_arms.extract(at.pairing, at.pairing.prompts.task)
        assert extract is not None
        means = [read_last(at, side, extract.ids["free"])[layer].astype(np.float64).mean(0) for side in (tuned, base)]
    moved = pushed[layer] - rows[layer]
    assert moved == pytest.approx(np.tile(1.5 * (means[0] - means[1]), (5, 1)), abs=1e-4 * float(np.abs(moved).max()))
    assert all(np.array_equal(pushed[i], rows[i]) for i in range(layer))


@pytest.mark.parametrize("least", [0.13, 0.5, 0.51, 1.37])
def test_the_least_strength_that_reaches_is_found_to_a_64th_of_a_step(least: float) -> None:
    def effect(x: float) -> float:
        return float(x >= least) + 0.01 * x

    xs = (0.25, 0.5, 1.0, 1.5)
    found = reaching({x: effect(x) for x in xs}, 0.9, effect)
    assert least <= found <= least + 0.5 / 64


def test_the_sibling_is_needed() -> None:
    with pytest.raises(BadInput, match="--sibling"):
        recipe("contrast", {"sibling": None})


def test_nothing_is_left_along_a_cut_and_all_else_is_as_it_was(negated: Swept, folder: Path) -> None:
    model, _ = load(PAIR[1])
    before = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    bank = {d.id: d for d in read_bank(folder / "negate" / BANK)}
    for layer in (2, "all"):
        point = negated.drawn[f"cut v of {'all layers' if layer == 'all' else f'layer {layer}'}"].point.point
        q = bank[f"layers.{layer}.difference"].basis
        assert q.shape[1] == (4 if layer == "all" else 1)
        with point.put(model):
            for name, p in model.named_parameters():
                now = p.detach().double().numpy()
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    assert np.abs(q.T @ now).max() < 1e-6 * np.linalg.norm(now, 2)
                    assert np.abs(now - (before[name] - q @ (q.T @ before[name]))).max() < 1e-5
                else:
                    assert np.array_equal(now, before[name])
        assert all(np.array_equal(p.detach().double().numpy(), before[name]) for name, p in model.named_parameters())


def test_cuts_of_isotropic_directions_leave_thinking_and_the_cause_shows(negated: Swept) -> None:
    tuned = value(negated, "tuned", "p_think")
    for name, one in negated.drawn.items():
        isotropic = [c for c in one.controls if c.point.arm.edit["control"] == "isotropic"]
        assert len(isotropic) == (5 if name.startswith("cut") else 0)
        for c in isotropic:
            assert np.mean(c.values("p_think")) > 0.9 * tuned
        assert all(c.point.arm.edit["decides"] for c in one.controls) or not name.startswith("cut")
    assert value(negated, "tuned − Δ_1", "p_think") < 0.1 * tuned  # reverting removes it
    assert value(negated, "tuned without v of layer 0", "p_think") > 0.9 * tuned  # cutting need not
    assert value(negated, "tuned without v of layer 2", "p_think") < 0.2 * tuned
    assert "tuned − Δ_k: undecided" in told(negated, "cuts_that_remove_thinking")  # of 24 items


def test_every_way_answers_the_other_tasks(negated: Swept) -> None:
    cuts = [f"cut v of {which}" for which in (*(f"layer {i}" for i in range(4)), "all layers")]
    assert list(negated.drawn) == ["base − ατ", "tuned − Δ_k", "tuned − αΔ_4", *cuts]
    for one in negated.drawn.values():
        assert value(negated, one.point.name, "accuracy", "facts") is not None
        assert value(negated, one.point.name, "perplexity", "text") > 1
        assert value(negated, one.point.name, "forced_accuracy") is not None


def test_what_was_cut_is_said_and_does_not_hang_on_the_price(negated: Swept) -> None:
    assert told(negated, "cut_direction") == "thinks − answers at once, tuned"
    with bench.bench(replace(asked(), prices=False), {"recipe": "test"}, None, None, None) as at:
        found = {a.direction.layer: a.direction for a in thinking_directions(at)}
    for layer, d in found.items():
        one = next(e for e in negated.drawn[f"cut v of layer {layer}"].point.point.arm.edit["edit"])
        assert one["direction"].endswith(d.id)
        assert d.contrast == told(negated, "cut_direction")


def test_of_many_cuts_the_foremost_alone_writes_where_points_do(folder: Path, negated: Swept) -> None:
    found = negate(replace(asked(), generate="points", prices=False), kl=False)
    assert found.drawn.keys() == negated.drawn.keys()
    moved = {
        name: abs(value(found, one.point.name, "p_think", "chain-hard (select)") - before)
        for name, one in found.drawn.items()
        if name.startswith("cut v of layer") and (before := value(found, "tuned", "p_think", "chain-hard (select)"))
    }
    foremost = max(moved, key=lambda name: moved[name])
    for name in moved:
        point = found.drawn[name].point
        said = next(r["method"] for r in found.drawn[name].rows if r["metric"] == "choice")
        assert bool(point.rows) == (name == foremost)
        why = f"undecided: no completions: of cuts of one layer only the foremost, {foremost}, writes them"
        assert said == (f"undecided: {N} items, 200 are needed" if name == foremost else why)
    assert not any(r["task"] == "facts" for r in found.rows)


def test_the_bank_and_the_records_of_arms_belong_together(negated: Swept, folder: Path) -> None:
    named = [d.id for d in read_directions(str(folder / "negate" / BANK))]
    assert named == [*(f"layers.{i}.difference" for i in range(4)), "layers.all.difference"]
    edits = {arm["arm"]: json.loads(arm["edit"] or "{}") for arm in negated.arms}
    one = edits["tuned without v of layer 1"]
    assert one["edit"][0] | {"direction": f"{BANK}#layers.1.difference"} == one["edit"][0]
    digests = [edits[name]["vectors"] for name in edits if name.startswith("tuned without v of layer 1")]
    assert len(digests) == 11 and len(set(digests)) == 11
    assert Experiment.open(folder / "negate").results("negate").num_rows == len(negated.rows)


def test_finished_recipes_are_read_back_and_nothing_is_done_again(
    folder: Path, contrasted: Swept, negated: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = [(bench, "p_think"), (bench, "completions"), (bench, "p_think_and_kl"), (activation_arms, "read")]
    for module, work in works:
        monkeypatch.setattr(module, work, lambda *_: pytest.fail("done again"))
    assert contrast(asked(), folder / "contrast").summary == contrasted.summary
    assert negate(asked(), folder / "negate", kl=False).summary == negated.summary


def test_a_model_that_never_thinks_has_a_direction_from_its_base() -> None:
    with bench.bench(asked("family:base", PAIR[0]), {"recipe": "test"}, None, None, None) as at:
        assert {a.direction.contrast for a in thinking_directions(at)} == {"tuned − base"}
    with bench.bench(asked(), {"recipe": "test"}, None, None, None) as at:
        found = thinking_directions(at)
        assert {a.direction.contrast for a in found} == {"thinks − answers at once, tuned"}
        assert all(a.samples[0].first == 60 and len(a.samples[0].rows) == 84 for a in found)  # chains, facts


def test_a_direction_is_the_difference_of_means_and_a_silent_layer_has_none() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((9, 8)).astype(np.float32) for _ in range(2))
    (one,) = directions({0: a, 1: a}, {0: b, 1: a}, True, "a − b")
    means = [rows.mean(0, dtype=np.float64) for rows in (a, b)]
    assert one.direction.vectors[0] == pytest.approx(means[0] - means[1], rel=1e-5)
    labelled = directions({0: a}, {0: a + 1}, True, "a − b", {0: a})[0].samples[0]
    assert isinstance(labelled, Samples) and labelled.first == 4 and np.array_equal(labelled.rows, a)
