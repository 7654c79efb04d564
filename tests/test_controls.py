"""Matched controls keep what they promise: lengths on real inputs, spectra, sides, seeds, and the model afterwards."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_pairs import save_pair

from deltalens.edit.edit import from_record
from deltalens.edit.form import Form
from deltalens.edit.plan import Plan, plan
from deltalens.edit.select import editable
from deltalens.edit.swap import named, swap, view_of
from deltalens.evaluate.plan import Settings
from deltalens.model.capture import capture_rows
from deltalens.model.load import load
from deltalens.model.points import Site
from deltalens.model.select import EVERYWHERE
from deltalens.sweep.bench import edited
from deltalens.sweep.controls import Change, Control, changes_of, controls, points
from deltalens.sweep.inputs import Input, functional_norm, second_moments
from deltalens.sweep.pair import Pairing, opened, pairing

BASE, TUNED, SIBLING = "family:instruct", "family:reasoning", "family:instruct-sibling"
EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "truncate": ({"operator": "truncate", "rank": 2}, "base"),
    "interpolate": ({"operator": "interpolate", "strength": 0.7}, "base"),
    "revert": ({"operator": "revert", "rank": 2, "layers": "1-2"}, "tuned"),
}
Inputs = dict[str, np.ndarray]


@cache
def pair(tuned: str = TUNED) -> Pairing:
    return pairing(BASE, tuned, Settings(n=8))


@pytest.fixture(scope="module")
def model() -> Any:
    return load(TUNED)[0]


@pytest.fixture(scope="module")
def inputs(model: Any) -> Inputs:
    asked = pair()
    rows = editable(opened(asked, EDITS["truncate"][0]).pair)
    return second_moments(model, rows, asked.prompts.ids["free"])


@dataclass(frozen=True)
class Case:
    """An edit, what it changes, its controls, and what they add; by name."""

    edit: str
    of: dict[str, Change]
    controls: dict[str, Control]
    adds: Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module", params=EDITS)
def case(request: pytest.FixtureRequest, inputs: Inputs) -> Case:
    step, side = EDITS[request.param]
    edit, sibling = opened(pair(), step), opened(pair(SIBLING), step)
    of = {c.row.name.name: c for c in changes_of(edit, side, inputs)}
    found = {c.name: c for c in controls(edit, side, inputs, sibling)}
    return Case(request.param, of, found, cache(lambda name: made(found[name], of)))


def whole(base: str, tuned: str, strength: float) -> Plan:
    step = {"operator": "interpolate", "strength": strength}
    return plan(from_record({"base": base, "tuned": tuned, "edit": [step]}))


def copied(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def dense(form: Form) -> np.ndarray:
    return np.concatenate([*form.blocks()])


def made(control: Control, of: dict[str, Change]) -> dict[str, np.ndarray]:
    """What a control adds, by name; every tensor is one that the edit changes."""
    return {row.name.name: dense(form - of[row.name.name].start) for row, form in control.made()}


def matrices(of: dict[str, Change]) -> dict[str, Change]:
    return {name: c for name, c in of.items() if len(c.row.shape) == 2}


def rooted(sigma: np.ndarray) -> np.ndarray:
    """An independent factor: of Σ + ε, as far as Σ has less than full rank."""
    return np.linalg.cholesky(sigma + 1e-13 * np.trace(sigma) * np.eye(len(sigma)))


def test_second_moments_are_those_of_the_activations_themselves(model: Any, inputs: Inputs) -> None:
    prompts = pair().prompts.ids["free"]
    caught = capture_rows(model, prompts, [Site("attn_in", 1), Site("mlp_act", 3)], EVERYWHERE)
    for name, site in (("self_attn.k_proj", Site("attn_in", 1)), ("mlp.down_proj", Site("mlp_act", 3))):
        x = caught[site].values.double().numpy()
        assert len(x) == sum(map(len, prompts))
        read = inputs[f"layers.{site.layer}.{name}"]
        np.testing.assert_allclose(read.sigma, x.T @ x / len(x), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(read.covariance, np.cov(x.T, bias=True), rtol=1e-6, atol=1e-8)
    assert inputs["layers.1.self_attn.k_proj"] is inputs["layers.1.self_attn.v_proj"]
    assert len(inputs) == 4 * 7 and all(name.endswith("_proj") for name in inputs)


@pytest.mark.parametrize(("architecture", "there"), [("gpt2", 4), ("mixtral", 4)])
def test_fused_projections_have_an_input_and_experts_have_none(architecture: str, there: int, tmp_path: Path) -> None:
    base, tuned = (str(path) for path in save_pair(tmp_path, architecture))
    edit, start = (whole(base, tuned, strength) for strength in (1.0, 0.0))
    rows = editable(edit.pair)
    loaded, _ = load(tuned)
    found = second_moments(loaded, rows, [[1, 2, 3, 4], [5, 6]])
    assert len(found) == there * len({row.name.layer for row in rows} - {None}), sorted(found)
    shapes = {row.name.name: row.shape for row in rows}
    assert all(read.sigma.shape == (shapes[name][1],) * 2 for name, read in found.items())
    before = copied(loaded)
    kinds = {control.kind: control for control in controls(edit, "base", found)}
    for point in points(edited("edit", "edit", edit, 1.0), list(kinds.values()), start):
        with point.put(loaded):
            assert any(not torch.equal(p, before[name]) for name, p in loaded.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in loaded.named_parameters())


def test_the_functional_norm_is_that_of_a_dense_root() -> None:
    rng = np.random.default_rng(0)
    left, right, x = rng.standard_normal((7, 3)), rng.standard_normal((3, 11)), rng.standard_normal((50, 11))
    sigma = x.T @ x / 50
    expected = np.linalg.norm(left @ right @ np.linalg.cholesky(sigma))
    assert functional_norm(Form.product(left, right), sigma) == pytest.approx(expected, rel=1e-12)
    rms = np.sqrt(np.mean(np.sum((x @ (left @ right).T) ** 2, axis=1)))
    assert expected == pytest.approx(rms, rel=1e-12)  # what it means: the length of what is added, root mean square


def test_stored_and_factored_changes_have_the_norm_of_a_dense_root(case: Case) -> None:
    with_sigma = [(c, c.read.sigma) for c in case.of.values() if c.read is not None]
    for c, sigma in with_sigma:
        assert c.size == pytest.approx(np.linalg.norm(dense(c.form) @ rooted(sigma)), rel=1e-6)
    assert with_sigma


def test_random_u_keeps_every_inner_product_of_columns_and_of_rows_of_a_table(case: Case) -> None:
    for seed in range(5):
        new = case.adds(f"random U {seed}")
        assert set(new) == set(case.of)
        for name, c in matrices(case.of).items():
            a, b = dense(c.form), new[name]
            if name == "embed":
                a, b = a.T, b.T
            assert np.abs(a.T @ a - b.T @ b).max() < 1e-9 * np.sum(a * a)
            assert abs(np.sum(a * b)) < 0.5 * np.sum(a * a)  # not the change itself
            if c.read is not None:
                size = functional_norm(Form.product(new[name], np.eye(len(c.read.sigma))), c.read.sigma)
                assert size == pytest.approx(c.size, rel=1e-9)
    assert ("embed" in case.of) == (case.edit == "interpolate")


def test_every_deciding_control_has_the_functional_norm_of_the_edit(case: Case) -> None:
    layers = len({c.row.name.layer for c in case.of.values()} - {None})
    shifts = {f"layer +{s}" for s in range(1, layers)}
    deciding = {name: c for name, c in case.controls.items() if c.decides}
    assert set(deciding) == {f"random {side} {seed}" for side in "UV" for seed in range(5)} | shifts | {"sibling"}
    assert set(case.controls) == {*deciding, "Haar U, V 0", "Gaussian 0"}
    roots = {name: rooted(c.read.sigma) for name, c in case.of.items() if c.read is not None}
    for name, control in deciding.items():
        sizes = {at: np.linalg.norm(new @ roots[at] if at in roots else new) for at, new in case.adds(name).items()}
        for at, size in sizes.items():
            assert size == pytest.approx(case.of[at].size, rel=1e-6), (name, at)
        known = [size for at, size in sizes.items() if at in roots]
        assert control.functional_norm == pytest.approx(np.linalg.norm(known), rel=1e-6)
        whole = np.linalg.norm([np.linalg.norm(new) for new in case.adds(name).values()])
        assert control.norm == pytest.approx(whole, rel=1e-9)


def test_random_v_keeps_the_output_side_and_lies_where_the_inputs_are(case: Case) -> None:
    energies, chance = [], []
    for seed in range(2):
        for name, new in case.adds(f"random V {seed}").items():
            c = case.of[name]
            assert c.read is not None
            values, vectors = np.linalg.eigh(c.read.covariance)
            outside = vectors[:, values < 1e-12 * values[-1]]
            assert np.linalg.norm(new @ outside) < 1e-4 * np.linalg.norm(new)
            old = np.linalg.svd(dense(c.form))
            now = np.linalg.svd(new)
            k = int(np.sum(now[1] > 1e-6 * now[1][0]))
            np.testing.assert_allclose(now[1][:k] / now[1][0], old[1][:k] / old[1][0], atol=1e-5)
            assert abs(now[0][:, 0] @ old[0][:, 0]) > 1 - 1e-4 or old[1][1] > 0.99 * old[1][0]
            energies.append(float((now[2][0] @ vectors[:, -1]) ** 2))
            chance.append(1 / len(c.read.sigma))
    assert np.mean(energies) > 10 * np.mean(chance)
    assert set(case.adds("random V 0")) == {name for name, c in case.of.items() if c.read is not None}


@pytest.mark.parametrize("edit", ["truncate", "interpolate"])
def test_fewer_inputs_than_singular_values_are_not_left_for_directions_without_input(edit: str) -> None:
    step, side = EDITS[edit]
    asked, x = opened(pair(), step), np.random.default_rng(0).standard_normal((5, 128))
    name = "layers.1.mlp.gate_proj"
    found = {c.row.name.name: c for c in changes_of(asked, side)}
    control = next(c for c in controls(asked, side, {name: Input(x.T @ x, np.zeros(128))}) if c.kind == "random V")
    new = made(control, found)
    assert set(new) == {name}
    outside = new[name] - new[name] @ np.linalg.pinv(x) @ x
    assert np.linalg.norm(outside) < 1e-6 * np.linalg.norm(new[name])
    assert np.linalg.matrix_rank(new[name]) == min(5, 2 if edit == "truncate" else 5)
    assert control.functional_norm == pytest.approx(np.linalg.norm(dense(found[name].form) @ x.T), rel=1e-9)


def test_another_layers_change_is_that_of_the_next_layer_round_the_edit(case: Case) -> None:
    layers = sorted({c.row.name.layer for c in case.of.values() if c.row.name.layer is not None})
    for s in range(1, len(layers)):
        new = case.adds(f"layer +{s}")
        for name, c in case.of.items():
            if c.row.name.layer is None:
                assert name not in new
                continue
            layer = layers[(layers.index(c.row.name.layer) + s) % len(layers)]
            other = dense(case.of[name.replace(f"layers.{c.row.name.layer}.", f"layers.{layer}.")].form)
            cosine = np.sum(new[name] * other) / (np.linalg.norm(new[name]) * np.linalg.norm(other))
            assert cosine == pytest.approx(1, abs=1e-9), (s, name)


def test_the_sibling_is_its_own_edit_rescaled(case: Case) -> None:
    step, side = EDITS[case.edit]
    others = {c.row.name.name: dense(c.form) for c in changes_of(opened(pair(SIBLING), step), side)}
    new = case.adds("sibling")
    assert set(new) == set(case.of) & set(others)
    for name in new:
        a, b = new[name], others[name]
        assert np.sum(a * b) == pytest.approx(np.linalg.norm(a) * np.linalg.norm(b), rel=1e-9)


def test_what_is_only_shown_keeps_length_and_spectrum_and_is_shorter_on_real_inputs(case: Case) -> None:
    for name, spectrum in (("Haar U, V 0", True), ("Gaussian 0", False)):
        control, own = case.controls[name], case.controls["random U 0"]
        for at, new in case.adds(name).items():
            old = dense(case.of[at].form)
            assert np.linalg.norm(new) == pytest.approx(np.linalg.norm(old), rel=1e-9)
            if at in matrices(case.of) and spectrum:
                now, was = (np.linalg.svd(x, compute_uv=False) for x in (new, old))
                np.testing.assert_allclose(now, was, atol=1e-9 * was[0])
        assert control.norm == pytest.approx(own.norm, rel=1e-9)
        assert (control.functional_norm or np.inf) < (own.functional_norm or 0.0)


def test_vectors_are_permuted_and_draws_depend_on_the_seed_alone(case: Case) -> None:
    vectors = set(case.of) - set(matrices(case.of))
    assert bool(vectors) == (case.edit == "interpolate")
    first, other = (case.adds(f"random U {seed}") for seed in (0, 1))
    for name in vectors:
        old = dense(case.of[name].form)
        np.testing.assert_allclose(np.sort(first[name], axis=0), np.sort(old, axis=0), atol=1e-12)
        assert not np.allclose(first[name], old)
    for name in ("random U 0", "random V 3", "Gaussian 0", "Haar U, V 0"):
        again = made(case.controls[name], case.of)
        assert all(np.array_equal(new, again[at]) for at, new in case.adds(name).items())
    assert all(not np.allclose(first[at], other[at]) for at in matrices(case.of))


def test_without_inputs_everything_is_matched_by_its_own_length() -> None:
    step, side = EDITS["truncate"]
    edit = opened(pair(), step)
    found = {c.row.name.name: c for c in changes_of(edit, side)}
    made_of = controls(edit, side, sibling=opened(pair(SIBLING), step))
    assert {c.kind for c in made_of} == {
        "random U",
        "sibling",
        "layer +1",
        "layer +2",
        "layer +3",
        "Haar U, V",
        "Gaussian",
    }
    for control in made_of:
        assert control.functional_norm is None
        for name, new in made(control, found).items():
            assert np.linalg.norm(new) == pytest.approx(np.linalg.norm(dense(found[name].form)), rel=1e-9)


def test_one_layer_has_no_other_layer_and_a_zero_change_no_control(inputs: Inputs) -> None:
    one = opened(pair(), {"operator": "truncate", "rank": 2, "layers": "1"})
    assert not [c for c in controls(one, "base", inputs) if c.kind.startswith("layer")]
    assert controls(opened(pair(), {"operator": "interpolate", "strength": 0.0}), "base", inputs) == []


def test_a_change_is_never_its_own_control() -> None:
    where = (("q_proj", "0-3"), ("o_proj", "1-2"))
    edit = opened(pair(), [{"operator": "truncate", "rank": 2, "kinds": [k], "layers": at} for k, at in where])
    found = {c.row.name.name: c for c in changes_of(edit, "base")}
    kinds = {c.name: {at.split(".")[-1] for at in made(c, found)} for c in controls(edit, "base")}
    assert [kinds[f"layer +{s}"] for s in (1, 2, 3)] == [{"q_proj", "o_proj"}, {"q_proj"}, {"q_proj", "o_proj"}]


def test_a_tensor_that_is_stored_twice_alike_is_no_change(tmp_path: Path) -> None:
    base, tuned = (str(path) for path in save_pair(tmp_path, "qwen2", size=0.0))
    assert changes_of(whole(base, tuned, 1.0), "base") == []


@pytest.mark.parametrize("edit", ["truncate", "revert"])
def test_points_put_a_control_on_the_start_and_leave_no_trace(model: Any, inputs: Inputs, edit: str) -> None:
    step, side = EDITS[edit]
    asked = pair()
    asked_for = opened(asked, step)
    base = opened(asked, {"operator": "interpolate", "strength": 0.0})
    found = {c.row.name.name: c for c in changes_of(asked_for, side, inputs)}
    point = edited("Δ_2", "edit", asked_for, 2.0)
    all_of_them = controls(asked_for, side, inputs)
    before = copied(model)
    stand = points(point, all_of_them, base if side == "base" else None)
    assert len({p.arm.labels["edit_hash"] for p in stand} | {point.arm.labels["edit_hash"]}) == len(stand) + 1
    start: dict[str, torch.Tensor] = before
    if side == "base":
        with swap(model, base, side="tuned"):
            start = copied(model)
    places = named(model)
    rows = {name: view_of(places, c.row).data_ptr() for name, c in found.items()}
    touched = {name for name, p in model.named_parameters() if p.data_ptr() in rows.values()}
    for control, at in zip(all_of_them, stand, strict=True):
        assert (at.arm.role, at.arm.control_of, at.strength) == ("control", "Δ_2", 2.0)
        assert at.arm.name == f"Δ_2: {control.name}" and at.arm.edit["decides"] == control.decides
        assert at.arm.norm_delta == control.norm and at.arm.functional_norm == control.functional_norm
        with at.put(model):
            now = copied(model)
            for row, form in control.made():
                place = view_of(places, row)
                assert torch.equal(place, torch.from_numpy(form.dense()).to(place))
        changed = {name for name in now if not torch.equal(now[name], start[name])}
        assert changed and changed <= touched
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_controls_of_an_arm_are_drawn_when_they_are_put_not_before(inputs: Inputs, monkeypatch: Any) -> None:
    first = controls(opened(pair(), EDITS["truncate"][0]), "base", inputs)[0]
    calls: list[int] = []
    real: Callable[..., Any] = np.linalg.qr
    monkeypatch.setattr(np.linalg, "qr", lambda *a, **k: calls.append(1) or real(*a, **k))
    stream = first.made()
    assert not calls
    next(stream)
    assert 0 < len(calls) <= 2
