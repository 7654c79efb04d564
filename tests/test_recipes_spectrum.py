"""LoX, spectrum against behaviour, direct pairs: formulas against numpy, planted parts found, parents told apart."""

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edit_pairs import save_pair
from planted_pair import LAYER, save_planted
from safetensors.numpy import load_file

from deltalens.checkpoint.source import resolve
from deltalens.edit.form import Triples
from deltalens.edit.swap import named
from deltalens.errors import Refused
from deltalens.evaluate.plan import Settings
from deltalens.methods import direct_pair as direct
from deltalens.methods import lox_reasoning as lox
from deltalens.methods import spectrum_behaviour as spectrum
from deltalens.model.load import load
from deltalens.store.experiment import Experiment
from deltalens.sweep import bench, controls, pair
from deltalens.sweep.curves import Swept, sweep
from deltalens.sweep.pair import Pairing, opened, pairing
from deltalens.sweep.spectrum import Spectrum, energy, ranks, spectra
from deltalens.sweep.verdicts import LEVEL

PAIR, FURTHER = ("family:instruct", "family:reasoning"), "family:reasoning-rl"
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MATRIX = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[pytest.MonkeyPatch]:
    """One control of each kind, and few items to choose on: no recipe has a say in how many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair, "CHOSEN_ON", 20)
        patch.setattr(controls, "SEEDS", 1)
        patch.setattr(controls, "_SHIFTS", 1)
        yield patch


def full(of: Sequence[Spectrum]) -> float:
    return float(max(s.full for s in of))


def row(found: Swept, arm: str, metric: str, **more: Any) -> dict[str, Any]:
    return next(
        r
        for r in found.summary
        if (r["arm"], r["metric"]) == (arm, metric) and all(r[key] == value for key, value in more.items())
    )


def delta(source: str, base: str = PAIR[0]) -> dict[str, np.ndarray]:
    """Every matrix of a checkpoint less the base's, in float64, as numpy reads it from disk."""
    sides = [load_file(resolve(s) / "model.safetensors") for s in (source, base)]
    return {name: w.astype(np.float64) - sides[1][name] for name, w in sides[0].items() if w.ndim == 2}


def linear(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: d for name, d in found.items() if name.split(".")[-2] in KINDS}


# LoX


@pytest.fixture(scope="module")
def amplified() -> Swept:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lox, "STRENGTHS", (1.25,))
        patch.setattr(lox, "ranks", lambda of: (1.0, 16.0, full(of)))
        asked = pairing(*PAIR, Settings(n=8, max_tokens=2), (), {"further": FURTHER})
        return lox.lox_reasoning(asked, kl=False)


def test_lox_is_the_dense_formula_and_touches_every_matrix(amplified: Swept) -> None:
    model, _ = load(PAIR[1])
    before = {name: p.detach().double().numpy().copy() for name, p in named(model).items()}
    point = amplified.drawn["tuned + αΔ_6"].curve.make(1.25)
    with point.put(model):
        after = {name: p.detach().double().numpy().copy() for name, p in named(model).items()}
    d = delta(PAIR[1])[MATRIX]
    u, s, v = np.linalg.svd(d)
    added = 1.25 * (u[:, :6] * s[:6]) @ v[:6]
    name = MATRIX.removeprefix("model.").removesuffix(".weight")
    assert np.abs(after[name] - before[name] - added).max() < 1e-6
    moved = {key: float(np.linalg.norm(after[key] - before[key])) for key in after}
    assert all((moved[key] > 0) == (after[key].ndim == 2) for key in after)
    total = np.sqrt(sum(length**2 for length in moved.values()))
    assert point.arm.norm_delta == pytest.approx(total, rel=1e-4)


def test_r_align_and_r_ft_are_those_of_numpy(amplified: Swept) -> None:
    own, later = linear(delta(PAIR[1])), linear(delta(FURTHER))
    whole, after = (sum(np.sum(d**2) for d in of.values()) for of in (own, later))
    for k, arm in ((1, "base + Δ_1"), (16, "base + Δ_16"), (128, "base + Δ_full")):
        align = kept = null = 0.0
        for name, d in own.items():
            u = np.linalg.svd(d, full_matrices=False)[0][:, :k]
            align += np.sum((u.T @ d) ** 2)
            kept += np.sum((u.T @ later[name]) ** 2)
            null += np.sum(later[name] ** 2) * min(k, *d.shape) / len(d)
        want = {"r_align": align / whole, "r_ft": kept / after, "r_ft_null": null / after}
        for metric, square in want.items():
            found = row(amplified, arm, metric, group="base + Δ_k")
            assert found["value"] == pytest.approx(square**0.5, rel=1e-5), (arm, metric)
    one = {m: row(amplified, "base + Δ_1", m)["value"] for m in ("r_align", "r_ft", "r_ft_null")}
    assert one["r_align"] > one["r_ft"] > 2 * one["r_ft_null"]


def test_each_curve_starts_where_it_says_and_ends_in_the_whole(amplified: Swept) -> None:
    drawn = amplified.drawn
    assert {name: one.curve.start for name, one in drawn.items()} == {
        "tuned + αΔ_6": "tuned",
        "tuned − Δ_k": "tuned",
        "base + Δ_k": "base",
    }
    for name, one in drawn.items():
        said = {r["metric"] for r in one.rows}
        assert ("necessary" in said, "sufficient" in said) == (name == "tuned − Δ_k", name == "base + Δ_k")
        assert one.controls and all(c.point.arm.control_of == one.point.name for c in one.controls)
    thinks = {f.name: np.mean(f.values("p_think")) for one in drawn.values() for f in one.found}
    assert thinks["base + Δ_1"] > 0.3 > 0.1 > thinks["tuned − Δ_1"] > thinks["tuned − Δ_full"]


# Spectrum against behaviour


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectrum, "sweep", partial(sweep, generates=False))
        patch.setattr(spectrum, "ranks", lambda of, factor=2.0: (1.0, full(of)) if factor == 2 else (full(of),))
        base, tuned = save_planted(tmp_path_factory.mktemp("planted"))
        return spectrum.spectrum_behaviour(pairing(base, tuned, Settings(n=200)), kl=False)


def test_a_planted_spike_is_found_and_the_noise_round_it_is_not(planted: Swept) -> None:
    share = {name: row(planted, name, "fraction") for name in ("spikes", "bulk", "stretched bulk")}
    assert share["spikes"]["low"] > 0.8 and share["bulk"]["high"] < 0.5 and share["stretched bulk"]["high"] < 0.5
    assert row(planted, "pair", "spikes_or_bulk")["method"].startswith("spikes: F = 1.0")
    assert row(planted, "pair", "spikes")["value"] == 1  # the noise has none
    assert row(planted, "spikes", "causal")["method"].startswith("supported")
    assert row(planted, "bulk", "causal")["method"].startswith("contradicted")


def test_only_the_kind_that_carries_it_and_groups_with_it_do(planted: Swept) -> None:
    curves = ["base + Δ_k", *(f"base + Δ_k of {name}" for name in ("attention", "mlp", *KINDS))]
    share = {name: row(planted, name, "fraction")["value"] for name in curves}
    carry = {"base + Δ_k", "base + Δ_k of attention", "base + Δ_k of o_proj"}
    assert {name for name, f in share.items() if f > 0.8} == carry
    assert all(abs(f) < 0.1 for name, f in share.items() if name not in carry)
    assert not {r["metric"] for r in planted.summary if r["arm"] == "base + Δ_k of q_proj"} & {"causal", "sufficient"}


def test_energies_are_shares_of_the_seven_kinds_and_lengths_are_theirs(planted: Swept) -> None:
    arms = {arm["arm"]: arm["norm_delta"] for arm in planted.arms}
    energy = {r["arm"]: r for r in planted.summary if r["metric"] == "energy"}
    assert energy["base + Δ_full"]["value"] == pytest.approx(1, abs=1e-9)
    kinds = [energy[f"base + Δ_full of {kind}"]["value"] for kind in KINDS]
    assert sum(kinds) == pytest.approx(1, abs=1e-9) and kinds[3] > 0.9
    assert sum(energy[f"base + {part}"]["value"] for part in ("spikes", "bulk")) == pytest.approx(1, abs=1e-9)
    assert arms["base + stretched bulk"] == pytest.approx(arms["base + Δ_full"], rel=1e-6)
    for name, found in energy.items():
        assert arms[name] == pytest.approx(found["value"] ** 0.5 * arms["base + Δ_full"], rel=1e-6)
        assert found["group"] in planted.drawn


def test_the_bulk_is_what_the_spikes_leave_of_every_matrix(planted: Swept) -> None:
    model, _ = load(planted_tuned(planted))
    points = {name: planted.drawn[name].curve.make(1.0) for name in ("spikes", "bulk", "stretched bulk")}
    strength = planted.drawn["stretched bulk"].xs[0]
    found = {}
    for name, point in points.items():
        with point.put(model):
            found[name] = {key: p.detach().double().numpy().copy() for key, p in named(model).items()}
    base = load(PAIR[0])[0]
    start = {key: p.detach().double().numpy() for key, p in named(base).items()}
    moved = {name: {key: w - start[key] for key, w in of.items()} for name, of in found.items()}
    key = f"layers.{LAYER}.self_attn.o_proj"
    assert np.linalg.matrix_rank(moved["spikes"][key], tol=1e-3) == 1
    assert np.linalg.norm(moved["bulk"][key]) < 0.1 * np.linalg.norm(moved["spikes"][key])
    assert not moved["spikes"]["layers.0.mlp.up_proj"].any() and moved["bulk"]["layers.0.mlp.up_proj"].any()
    wide, narrow = (moved[name]["layers.0.mlp.up_proj"] for name in ("stretched bulk", "bulk"))
    assert np.abs(wide - strength * narrow).max() < 1e-5 * strength
    lengths = [np.sqrt(sum(np.sum(w**2) for w in moved[n].values())) for n in points]
    norms = [point.arm.norm_delta for point in points.values()]
    assert lengths == pytest.approx(norms, rel=1e-3)


def planted_tuned(found: Swept) -> str:
    return found.drawn["spikes"].point.point.arm.edit["tuned"]


def share(value: float, spread: float = 0.01, n: int = 200) -> dict[str, Any]:
    return {"value": value, "low": value - spread, "high": value + spread, "n": n, "method": "", "p": None}


@pytest.mark.parametrize(
    ("spikes", "bulk", "stretched", "word"),
    [
        (0.95, 0.1, 0.2, "spikes"),
        (0.1, 0.95, 0.95, "bulk"),
        (0.1, 0.95, None, "bulk"),
        (0.95, 0.9, 0.9, "both"),
        (0.95, 0.1, 0.9, "undecided"),  # the bulk is only short
        (0.95, 0.1, 0.6, "undecided"),
        (0.95, 0.6, 0.6, "undecided"),
        (0.3, 0.3, 0.3, "undecided"),  # neither alone
        (0.95, 0.1, None, "spikes"),
    ],
)
def test_words_follow_from_the_intervals(spikes: float, bulk: float, stretched: float | None, word: str) -> None:
    shares = {"spikes": share(spikes), "bulk": share(bulk)}
    if stretched is not None:
        shares["stretched bulk"] = share(stretched)
    assert spectrum.spikes_or_bulk(shares).word == word


def test_few_items_decide_nothing() -> None:
    found = spectrum.spikes_or_bulk({"spikes": share(0.95, n=199), "bulk": share(0.0, n=199)})
    assert found.word == "undecided" and "199 items" in found.why and LEVEL > 0.99


def test_fused_projections_go_in_together(tmp_path: Path) -> None:
    asked = local_pairing(save_pair(tmp_path, "gpt_neox"))
    kept: dict[Any, Any] = {}
    of = spectra(asked, kept)
    chosen = spectrum.selections(of)
    assert list(chosen) == ["attention", "mlp", "q_proj+k_proj+v_proj", "o_proj", "up_proj", "down_proj"]
    assert chosen["attention"] == KINDS[:4] and chosen["mlp"] == ("up_proj", "down_proj")
    for kinds in chosen.values():
        assert opened(asked, {"operator": "truncate", "rank": 1, "kinds": list(kinds)}, kept).steps


def test_spectra_are_those_of_numpy_and_keep_the_vectors_that_are_swept() -> None:
    own, asked = linear(delta(PAIR[1])), pairing(*PAIR, Settings(n=4))
    every: dict[Any, Triples] = {}
    few: dict[Any, Triples] = {}
    of, short = spectra(asked, every), spectra(asked, few, 8)
    assert len(of) == len(own) == 28 and {s.full for s in of} == {64, 128}
    assert {t.left.shape[1] for t in every.values()} == {33, 65} and {t.left.shape[1] for t in few.values()} == {9}
    assert ranks(of) == (1, 2, 4, 8, 16, 32, 64, 128) and ranks(short, most=8) == (1, 2, 4, 8, 128)
    sigma = [np.linalg.svd(d, compute_uv=False) for d in own.values()]
    for k in (1.0, 8.0, 64.0, 128.0):
        assert energy(of, k) == pytest.approx(sum(np.sum(s[: int(k)] ** 2) for s in sigma), rel=1e-6)
        assert k == 64 or energy(short, k) == pytest.approx(energy(of, k), rel=1e-9)


# Direct pairs


def local_pairing(pair: tuple[Path, Path], parent: Path | None = None, n: int = 20) -> Pairing:
    for path in (*pair, *([parent] if parent else [])):
        shutil.copyfile(resolve("family:base") / "chat_template.jinja", path / "chat_template.jinja")
    others = {"parent": None if parent is None else str(parent)}
    return pairing(str(pair[0]), str(pair[1]), Settings(n=n), others=others)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A parent, its child, and a child of the parent that went four times as far."""
    folder = tmp_path_factory.mktemp("three")
    base, tuned = save_pair(folder, "qwen2", seed=1)
    return base, tuned, save_pair(folder / "other", "qwen2", size=0.2, seed=2)[1]


def test_a_pair_of_two_directories_is_swept_without_a_completion(three: tuple[Path, Path, Path]) -> None:
    base, tuned, other = three
    found = direct.direct_pair(local_pairing((base, tuned), other))
    assert not found.tuned.rows and not {r["metric"] for r in found.summary} & {"kl", "think_ratio", "choice"}
    assert [one.xs for one in found.drawn.values()] == [(1, 2, 4, 8, 16, 32)] * 2
    assert {r["task"] for r in found.summary} == {"chain-hard", "chain-hard (select)"}
    assert row(found, "base + Δ_k", "sufficient")["method"].startswith("undecided")  # of 20 items
    weights = {str(path): load_file(path / "model.safetensors") for path in three}
    length = {
        name: np.sqrt(sum(np.sum((of[key] - w) ** 2) for key, w in weights[str(tuned)].items()))
        for name, of in weights.items()
    }
    whole = np.sqrt(sum(np.sum(w**2) for w in weights[str(tuned)].values()))
    for path in (base, other):
        distance = row(found, "pair", "relative_distance", reference=str(path))["value"]
        assert distance == pytest.approx(length[str(path)] / whole, rel=1e-5)
    said = row(found, "pair", "parent")
    assert said["reference"] == str(base) and said["method"].startswith("supported")
    assert said["value"] == pytest.approx(length[str(other)] / length[str(base)], rel=1e-5)
    assert abs(row(found, "pair", "along_base_to_parent")["value"]) < 0.1
    model, _ = load(str(tuned))
    with found.drawn["tuned − Δ_k"].curve.make(32.0).put(model):  # the whole: bit by bit the base's
        held = named(model)["layers.1.mlp.up_proj"].detach().numpy()
        assert np.array_equal(held, weights[str(base)]["model.layers.1.mlp.up_proj.weight"])


def judged(asked: Pairing) -> dict[str, dict[str, Any]]:
    """What is said about the parent, by metric; no model is loaded."""
    with bench.bench(asked, {"recipe": "direct-pair"}, None, None, None, kl=False) as at:
        return {r["metric"]: r for r in direct.parent(at)}


def test_a_base_that_is_not_the_parent_is_said_to_be_none(three: tuple[Path, Path, Path]) -> None:
    base, tuned, other = three
    said = judged(local_pairing((other, tuned), base))
    assert said["parent"]["reference"] == str(base) and said["parent"]["method"].startswith("contradicted")
    assert f"{base} is nearer" in said["parent"]["method"] and "as BASE" in said["parent"]["method"]
    assert said["along_base_to_parent"]["value"] == pytest.approx(1, abs=0.1)
    assert "parent" not in judged(local_pairing((other, tuned)))


def test_distances_that_are_alike_do_not_overrule_names() -> None:
    """The wrong one is the nearer: training undid half of what `instruct` had learned."""
    said = judged(pairing(*PAIR, Settings(n=4), others={"parent": "family:base"}))
    assert said["parentage"]["method"].startswith("right")
    assert said["parent"]["reference"] == "family:base" and said["parent"]["value"] < 1.2
    assert said["parent"]["method"].startswith("undecided") and said["along_base_to_parent"]["value"] > 0.5


def test_a_killed_run_goes_on_where_it_stopped(
    three: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "MOST", 1)
    asked, out = local_pairing(three[:2], three[2]), tmp_path / "out"
    fresh = direct.direct_pair(asked)
    told: list[str] = []

    def stop(progress: Any) -> None:
        told.append(progress.name)
        if len(told) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        direct.direct_pair(asked, out, stop)
    first, asks = list(told), bench.p_think
    counted: list[int] = []
    monkeypatch.setattr(bench, "p_think", lambda *a: counted.append(1) or asks(*a))
    resumed = direct.direct_pair(asked, out, lambda progress: told.append(progress.name))
    arms = sum(len(one.found) + len(one.controls) for one in resumed.drawn.values())
    points = sum(len(one.found) for one in resumed.drawn.values())
    of_arms = [name for name in told if not name.endswith(": controls")]  # sizes of controls are a part, and no pass
    assert first[0] == "parent" and len(counted) == len(of_arms) - 5 == (2 + arms) + (2 + points) - 4
    assert resumed.summary == fresh.summary and resumed.rows == fresh.rows
    monkeypatch.setattr(bench, "p_think", None)
    again = direct.direct_pair(asked, out, lambda _: pytest.fail("a finished part was done again"))
    assert again.summary == resumed.summary and Experiment.open(out).summary.num_rows == len(again.summary)


def test_models_that_do_not_differ_are_refused(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    asked = local_pairing((three[0], Path(shutil.copytree(three[0], tmp_path / "copy"))))
    for recipe in (direct.direct_pair, spectrum.spectrum_behaviour, lox.lox_reasoning):
        with pytest.raises(Refused, match="do not differ"):
            recipe(asked)
