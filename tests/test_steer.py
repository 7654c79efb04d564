"""Steering: a planted direction and its controls, batches that change nothing, resuming, signs, units and bad input."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltalens.cli.main import main
from deltalens.cli.steer import Steer
from deltalens.direction.activations import Place, from_models
from deltalens.direction.bank import read_bank, write_bank
from deltalens.direction.direction import Direction
from deltalens.errors import BadInput, Refused
from deltalens.evaluate.behaviour import p_think
from deltalens.evaluate.plan import Settings as Asked
from deltalens.evaluate.prompts import Prompts
from deltalens.family.catalog import MODELS
from deltalens.methods.steer import Curve, Plan, Settings, choose, curves, plan
from deltalens.methods.steer_arms import Rig, controls, pushed, rigged, scan
from deltalens.methods.steer_run import Steered, steer
from deltalens.model.capture import capture_moments
from deltalens.model.load import load
from deltalens.model.select import parse_selector
from deltalens.model.sites import Site
from deltalens.store.experiment import Experiment

WIDTH, LAYER = 128, 2


def profile(path: Path, vectors: np.ndarray, **changes: Any) -> str:
    """A bank of one direction per layer, from vectors [layers, k, d]."""
    found = []
    for layer, rows in enumerate(vectors):
        name, rows = f"layers.{layer}.difference", rows.astype(np.float32)
        d = Direction(name, rows, layer, "difference", "residual", "resid_post", sign="contrast")
        found.append(replace(d, **changes))
    write_bank(path, found)
    return str(path)


@pytest.fixture
def bank(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    return profile(tmp_path / "bank.safetensors", 20 * rng.standard_normal((4, 1, WIDTH)))


def planned(bank: str, source: str = "family:instruct", n: int = 6, **settings: Any) -> Plan:
    return plan(source, Settings(bank, **settings), Asked(n=n))


def rig(asked: Plan) -> Rig:
    return rigged(asked, parse_selector(asked.settings.select, asked.test.chat.think))


def small(prompts: Prompts, n: int) -> Prompts:
    return replace(prompts, items=prompts.items[:n], ids={mode: rows[:n] for mode, rows in prompts.ids.items()})


# A planted truth: a rank-1 change of one o_proj that writes the logit of <think> on the prompts of the family.


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, list[Direction]]:
    """The planted write, and the directions that telling the two models apart gives at its layer."""
    folder = tmp_path_factory.mktemp("planted")
    asked = planned(profile(folder / "any.safetensors", np.ones((4, 1, WIDTH))))
    ids = asked.extract.ids["free"]
    base, changed = (load("family:instruct")[0] for _ in range(2))
    assert asked.test.chat.think is not None
    logit = base.lm_head.weight[asked.test.chat.think.open_ids[0]] - base.lm_head.weight.mean(0)
    write = base.model.norm.weight * logit
    site = Site("head_in", LAYER)
    x = capture_moments(base, ids, [site])[site].mean[0].float()
    with torch.no_grad():
        size = 3 * place_norm(base, ids) / write.norm()
        changed.model.layers[LAYER].self_attn.o_proj.weight += torch.outer(size * write, x / (x @ x))
    found = from_models(changed, base, ids, Place(layers=(LAYER,)), {}, 0)
    return write.detach().numpy(), found


def place_norm(model: Any, ids: list[list[int]]) -> float:
    site = Site("resid_post", LAYER)
    return float(capture_moments(model, ids, [site])[site].square.sum() ** 0.5)


@pytest.fixture(scope="module")
def steered(planted: tuple[np.ndarray, list[Direction]], tmp_path_factory: pytest.TempPathFactory) -> Steered:
    """The planted direction stored upside down, as a singular vector may be."""
    write, found = planted
    v = next(d for d in found if d.kind == "difference")
    cosine = v.vectors[0] @ write / np.linalg.norm(v.vectors[0]) / np.linalg.norm(write)
    assert cosine > 0.9
    path = tmp_path_factory.mktemp("steered") / "bank.safetensors"
    write_bank(path, [replace(v, vectors=-v.vectors, sign="arbitrary")])
    return steer(planned(str(path), n=50, alphas=(0.5, 1.0)))


def value(found: Steered, arm: str, metric: str, reference: str | None = None) -> float:
    rows = [r for r in found.summary if r["arm"] == arm and r["metric"] == metric and not r["group"]]
    return next(r["value"] for r in rows if r.get("reference") == reference and not r["task"].endswith("(select)"))


def test_a_planted_direction_moves_the_planted_behaviour_and_its_controls_do_not(steered: Steered) -> None:
    effect = value(steered, steered.point, "p_think", "baseline")
    assert effect > 0.5 and value(steered, steered.point, "think_ratio") > 0.9
    arms = {a["arm"]: a for a in steered.arms}
    random = [name for name, a in arms.items() if a["role"] == "control"]
    assert len(random) == 10
    assert max(abs(value(steered, name, "p_think", "baseline")) for name in random) <= 0.1 * effect
    claim = next(r for r in steered.summary if r["metric"] == "effect_minus_largest_control")
    assert claim["low"] > 0.45 and claim["reference"] in steered.controls
    lengths = {name: a["functional_norm"] for name, a in arms.items() if name == steered.point or name in random}
    assert len(set(lengths.values())) == 1 and all(arms[name]["control_of"] == steered.point for name in random)


def test_an_arbitrary_sign_runs_both_ways_and_names_neither(steered: Steered) -> None:
    assert (
        steered.chosen.strengths[0] < 0 and steered.point.startswith(f"layer {LAYER}, -") and len(steered.curves) == 2
    )
    mirror = steered.point.replace("-", "+")
    assert abs(value(steered, mirror, "p_think", "baseline")) < 0.1
    texts = [r["text"] for r in steered.rows if r["arm"] == mirror and r["split"] == "test"]
    assert len(texts) == 50 and set(texts) == {None}
    names = " ".join(a["arm"] for a in steered.arms)
    assert "amplif" not in names and "suppress" not in names


@pytest.mark.parametrize(("generate", "arms"), [("points", 3), ("few", 0)])
def test_fewer_arms_write_and_all_are_scored(bank: str, generate: str, arms: int) -> None:
    asked = planned(bank, n=12, generate=generate, generated=5, alphas=(0.5, 1.0), layers=(1,))
    found = steer(asked)
    test = [r for r in found.rows if r["split"] == "test"]
    wrote = {r["arm"] for r in test if r["text"] is not None}
    largest = next(r["reference"] for r in found.summary if r["metric"] == "effect_minus_largest_control")
    assert wrote == ({"baseline", found.point, largest} if arms else set())
    free = [(r["arm"], r["item"]) for r in test if r["mode"] == "free" and r["p_think"] is not None]
    assert len(free) == len(set(free)) == 12 * len({r["arm"] for r in test})
    assert len({r["item"] for r in test if r["text"] is not None}) == (5 if arms else 0)
    assert all(r["kl"] is not None for r in test if r["mode"] == "free" and r["role"] != "baseline")
    broken = next(r for r in found.summary if r["metric"] == "breaking_point")
    assert broken["method"].endswith(f"{1 if arms else 0} of 2 strengths wrote completions")


def test_without_completions_the_claim_is_still_printed(bank: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--direction", bank, "--layers", "1", "--alpha", "1", "--n", "8", "--generate", "few", "--quiet"]
    assert main(["steer", "family:instruct", *asked]) == 0
    said = capsys.readouterr().out
    assert "beside its controls" in said and "operating point: +1" in said and "largest control" in said


def test_every_arm_has_its_rows(steered: Steered) -> None:
    select = [r for r in steered.rows if r["split"] == "select"]
    test = [r for r in steered.rows if r["split"] == "test"]
    assert len(select) == (1 + 4) * 60 and all(r["text"] is None and r["p_think"] is not None for r in select)
    assert {r["role"] for r in test} == {"baseline", "edit", "control"}
    generated = {r["arm"] for r in test if r["text"] is not None}
    along = {f"layer {LAYER}, {strength:+g} v" for strength in steered.chosen.strengths}
    assert generated == {"baseline", *along, *steered.controls}
    assert sum(r["mode"] == "forced" for r in test) == 50 * len(generated)
    silent = {r["arm"] for r in test} - generated
    assert not [r for r in steered.summary if r["arm"] in silent and r["metric"] == "format_failures"]
    edits = [json.loads(a["edit"]) for a in steered.arms if a["role"] == "edit"]
    for edit in edits:
        assert edit["raw"] == pytest.approx(edit["strength"]) and edit["residual"] * edit["strength"] > 0


# Batches.


def test_strength_zero_is_the_baseline_bit_for_bit_and_a_batch_is_its_arms(bank: str) -> None:
    asked = planned(bank, alphas=(0.0, 1.0, 2.0))
    held, prompts = rig(asked), small(asked.chosen_on, 8)
    pushes = [pushed(asked, asked.directions[1], 10.0, s) for s in asked.strengths]
    texts = [[5, 7, 9]] * 8
    together = scan(held, pushes, prompts, texts)["arms"]
    thrice = replace(prompts, items=prompts.items * 3, ids={mode: rows * 3 for mode, rows in prompts.ids.items()})
    unsteered = p_think(held.model, thrice)
    assert together[0]["p_think"] == unsteered[:8] != together[1]["p_think"]
    assert together[0]["kl"] == [0.0] * 8 and min(together[1]["kl"]) > 0
    for push, found in zip(pushes, together, strict=True):
        (alone,) = scan(held, [push], prompts, texts)["arms"]
        assert np.allclose(alone["p_think"], found["p_think"], rtol=1e-4, atol=1e-9)
        assert np.allclose(alone["kl"], found["kl"], rtol=1e-3, atol=1e-6)
    assert p_think(held.model, thrice) == unsteered  # and no trace is left


def test_units_are_lengths(bank: str) -> None:
    raw = planned(bank, alphas=(2.0,))
    residual = planned(bank, alphas=(2.0,), unit="residual")
    d = raw.directions[0]
    length = float(np.linalg.norm(d.vectors))
    a, b = pushed(raw, d, 10.0, 2.0), pushed(residual, residual.directions[0], 10.0, 2.0)
    assert np.linalg.norm(a.vectors) * a.strength == pytest.approx(2 * length, rel=1e-5)
    assert np.linalg.norm(b.vectors) * b.strength == pytest.approx(20, rel=1e-5)
    assert a.arm.edit["residual"] == pytest.approx(2 * length / 10) and b.arm.edit["raw"] == pytest.approx(20 / length)
    assert (a.arm.edit["unit"], b.arm.edit["unit"]) == ("raw", "residual")
    clamped = pushed(planned(bank, unit="residual", operator="clamp"), residual.directions[0], 10.0, 2.0)
    assert clamped.strength == pytest.approx(20)


def test_clamping_and_ablating_act_on_what_is_there(tmp_path: Path) -> None:
    """Along the mean activation itself: ablating takes it out, clamping to its own height leaves it."""
    any_bank = profile(tmp_path / "any.safetensors", np.ones((4, 1, WIDTH)))
    asked = planned(any_bank)
    held, prompts = rig(asked), small(asked.chosen_on, 8)
    site = Site("resid_post", LAYER)
    mean = capture_moments(held.model, prompts.ids["free"], [site])[site].mean[0].numpy()
    other = np.random.default_rng(0).standard_normal(WIDTH)
    bank = profile(tmp_path / "mean.safetensors", np.tile(np.stack([mean, other]), (4, 1, 1)))
    before = np.array(p_think(held.model, prompts))
    changes = {}
    for operator, strength in (("ablate", 0.0), ("ablate", 1.0), ("clamp", 1.0), ("ablate_subspace", 1.0)):
        plan_of = planned(bank, operator=operator, alphas=(strength,))
        push = pushed(plan_of, plan_of.directions[LAYER], 10.0, strength)
        (found,) = scan(replace(held, plan=plan_of), [push], prompts, None)["arms"]
        changes[operator, strength] = np.abs(np.log(np.array(found["p_think"]) / before)).mean()
    assert changes["ablate", 0.0] == 0
    assert changes["ablate", 1.0] > 1 and changes["ablate_subspace", 1.0] > 1
    assert changes["clamp", 1.0] < 0.2 * changes["ablate", 1.0]


def test_a_subspace_keeps_its_vectors_and_its_controls_theirs(tmp_path: Path) -> None:
    bank = profile(tmp_path / "bank.safetensors", np.random.default_rng(3).standard_normal((4, 3, WIDTH)))
    asked = planned(bank, operator="ablate_subspace", layers=(1, 3))
    assert [d.vectors.shape for d in asked.directions] == [(3, WIDTH)] * 2 and asked.strengths == (0.25, 0.5, 0.75, 1.0)
    held = rig(asked)
    found = controls(held, asked.directions[0])
    assert {c.vectors.shape for c in found} == {(3, WIDTH)} and [c.layer for c in found[10:]] == [0, 2, 3]
    pushes = [pushed(asked, asked.directions[0], 1.0, 1.0, c) for c in found[:2]]
    scores = scan(held, pushes, small(asked.chosen_on, 4), None)["arms"]
    assert scores[0]["p_think"] != scores[1]["p_think"]
    first = planned(bank, layers=(1,))
    assert first.directions[0].vectors.shape == (1, WIDTH) and "add uses the first" in " ".join(first.notes)


def test_where_the_template_opens_the_block_closing_it_is_measured(tmp_path: Path, bank: str) -> None:
    folder = tmp_path / "opens"
    shutil.copytree(MODELS / "reasoning", folder)
    template = folder / "chat_template.jinja"
    template.write_text(
        template.read_text().replace("assistant\\n' }}{% endif %}", "assistant\\n<think>' }}{% endif %}")
    )
    asked = planned(bank, str(folder), alphas=(1.0,))
    assert asked.metric == "p_skip"
    (found,) = scan(rig(asked), [pushed(asked, asked.directions[0], 1.0, 1.0)], small(asked.chosen_on, 4), None)["arms"]
    assert all(0 <= p <= 1 for p in found["p_skip"]) and len(found["p_think"]) == 4


# Choosing.


def test_the_largest_effect_at_its_operating_point_is_chosen(bank: str) -> None:
    assert choose([Curve(0, (1.0, 2.0), (0.1, 0.5)), Curve(1, (1.0, 2.0), (-0.8, -0.1))]).layer == 1
    assert choose([Curve(0, (1.0,), (0.5,)), Curve(3, (1.0,), (0.5,))]).layer == 0
    # The second peaks higher, but its least strength within 90 % of that is weaker than all of the first.
    assert choose([Curve(0, (1.0, 2.0), (0.1, 0.98)), Curve(1, (1.0, 2.0), (0.95, 1.0))]).layer == 0
    asked = planned(bank, alphas=(1.0, -2.0, 2.0), layers=(0, 2))
    values = {(d.layer or 0, s): [s, s + 1] for d in asked.directions for s in asked.strengths}
    found = curves(asked, [0.0, 1.0], values)
    assert [(c.layer, c.strengths, c.effects) for c in found[:2]] == [
        (0, (1.0, 2.0), (1.0, 2.0)),
        (0, (-2.0,), (-2.0,)),
    ]


def test_a_bank_of_several_kinds_gives_its_differences(tmp_path: Path) -> None:
    d = Direction("layers.0.difference", np.ones((1, WIDTH), np.float32), 0, "difference", "residual", "resid_post")
    several = [
        replace(d, id=f"layers.{i}.{k}", layer=i, kind=k) for i in (0, 1) for k in ("pca", "difference", "probe")
    ]
    path = tmp_path / "bank.safetensors"
    write_bank(path, several)
    assert [x.id for x in planned(str(path)).directions] == ["layers.0.difference", "layers.1.difference"]
    assert [x.id for x in planned(f"{path}#*.probe").directions] == ["layers.0.probe", "layers.1.probe"]
    asked = planned(f"{path}#layers.1.pca")
    assert [x.id for x in asked.elsewhere[1]] == ["layers.0.pca"]
    write_bank(path, [x for x in several if x.kind != "difference"])
    with pytest.raises(BadInput, match=r"#layers\.\*\.pca"):
        planned(str(path))


# The command.


@pytest.fixture(scope="module")
def contrast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `models` contrast, reasoning less instruct."""
    path = tmp_path_factory.mktemp("contrast") / "bank.safetensors"
    asked = planned(profile(path.parent / "any.safetensors", np.ones((4, 1, WIDTH))))
    models = [load(source)[0] for source in ("family:reasoning", "family:instruct")]
    write_bank(path, from_models(models[0], models[1], asked.extract.ids["free"], Place(), {}, 0))
    return path


def test_the_command_finds_thinking_in_the_family(
    contrast: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e"
    command = Steer("family:instruct", str(contrast), alpha=(1.0, 1.5), n=50, out=str(out), quiet=True)
    assert command.run() == 0
    text = capsys.readouterr().out
    for words in (
        "p_think on 60 select items",
        "KL",
        "permuted 4",
        "isotropic 4",
        "breaking point",
        "baseline",
        "<think>",
    ):
        assert words in text
    kept = Experiment.open(out)
    assert kept.record["kind"] == "steer" and [d["layer"] for d in kept.record["directions"]] == [0, 1, 2, 3]
    rows = kept.summary.to_pylist()
    point = next(r for r in rows if r["metric"] == "operating_point")
    ratio = next(r for r in rows if r["arm"] == point["arm"] and r["metric"] == "think_ratio" and not r["group"])
    assert ratio["value"] >= 0.9
    random = next(r for r in rows if r["metric"] == "effect_minus_largest_random")
    assert random["low"] > 0.5
    calm = [r for r in rows if r["arm"] == random["reference"] and r["metric"] == "think_ratio" and not r["reference"]]
    assert all(r["value"] <= 0.2 for r in calm)
    resumed(command, out, kept)


def resumed(command: Steer, out: Path, kept: Experiment) -> None:
    """An interrupted experiment goes on to the same tables."""
    whole = kept.results("steer"), kept.summary, kept.arms
    parts = sorted((out / "parts").iterdir())
    parts[0].unlink()
    parts[1].write_bytes(b"torn")
    before = {p.name: p.stat().st_mtime_ns for p in parts[2:]}
    record = json.loads((out / "experiment.json").read_text())
    (out / "experiment.json").write_text(json.dumps(record | {"status": "running"}))
    assert command.run() == 0
    again = Experiment.open(out)
    assert (again.results("steer"), again.summary, again.arms) == whole
    assert all((out / "parts" / name).stat().st_mtime_ns == when for name, when in before.items())
    with pytest.raises(Refused, match="another experiment"):
        replace(command, n=49).run()


# What cannot be steered.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alphas": (float("nan"),)}, "not finite"),
        ({"operator": "ad"}, "add, add_keep_norm"),
        ({"unit": "metres"}, "raw, residual"),
        ({"site": "residpost"}, "resid_post"),
        ({"site": "mlp_act"}, "resid_post"),
        ({"layers": (9,)}, "0, 1, 2, 3"),
    ],
)
def test_bad_settings(bank: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        planned(bank, **settings)


def test_bad_banks(bank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="no direction"):
        planned(f"{bank}#nothing")
    with pytest.raises(BadInput, match="no such file"):
        planned(str(tmp_path / "absent"))
    with pytest.raises(BadInput, match=r"64 entries.*128"):
        rig(planned(profile(tmp_path / "narrow.safetensors", np.ones((4, 1, 64)))))
    with pytest.raises(BadInput, match="layer 4"):
        rig(planned(profile(tmp_path / "deep.safetensors", np.ones((5, 1, WIDTH)))))
    with pytest.raises(BadInput, match="no layer"):
        planned(profile(tmp_path / "embed.safetensors", np.ones((1, 1, WIDTH)), layer=None))
    vectors = read_bank(bank)[0].vectors
    monkeypatch.setattr("deltalens.direction.bank._check_numbers", lambda *a: None)
    write_bank(tmp_path / "nan.safetensors", [replace(read_bank(bank)[0], vectors=vectors * np.float32("nan"))])
    monkeypatch.undo()
    with pytest.raises(BadInput, match="NaN"):
        planned(str(tmp_path / "nan.safetensors"))


def test_a_model_without_think_tags_is_no_use(bank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltalens.checkpoint.chat import read_chat

    monkeypatch.setattr("deltalens.evaluate.plan.read_chat", lambda ckpt: replace(read_chat(ckpt), think=None))
    with pytest.raises(BadInput, match="think format"):
        planned(bank)


def test_a_selector_that_meets_nothing_is_refused(bank: str) -> None:
    with pytest.raises(Refused, match="no token"):
        steer(planned(bank, alphas=(1.0,), select="think"))
    with pytest.raises(BadInput, match="selects no tokens"):
        steer(planned(bank, alphas=(1.0,), select="lst"))


def test_a_file_of_prompts_is_all_test(bank: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"id": "a", "prompt": "a=1 b=a+5 b?", "answer": "6"}) + "\n")
    asked = plan("family:instruct", Settings(bank), Asked(tasks=(f"jsonl:{file}",)))
    assert asked.chosen_on.task.name == "chain-hard" and len(asked.test.items) == 1
    assert any("chosen on chain-hard" in note for note in asked.notes)
