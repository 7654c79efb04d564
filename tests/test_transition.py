"""Transitions: planted curves of known λ50, width and sharpness, and the sweep from base to tuned end to end."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edit_pairs import save_pair
from planted_pair import save_planted

import deltalens.methods.transition as recipe
from deltalens.checkpoint.names import LINEAR
from deltalens.checkpoint.pair import Pair
from deltalens.cli.sweep import Sweep
from deltalens.cli.sweep_tables import show_transition
from deltalens.errors import BadInput, Refused
from deltalens.evaluate.behaviour import p_think
from deltalens.evaluate.plan import Settings
from deltalens.methods.transition import (
    CURVES,
    FULL,
    LEGEND,
    REST,
    SKIP_ATTENTION,
    SKIP_MLP,
    Transition,
    arm_name,
    parts,
    transition,
)
from deltalens.model.load import load
from deltalens.store.experiment import Experiment
from deltalens.sweep import bench
from deltalens.sweep.pair import Pairing, pairing
from deltalens.sweep.transition import CLIP, POINTS, lambda_at, log_odds, sharpness, verdict, width

LAMBDAS = np.linspace(0, 1, POINTS).tolist()
PROMPTS = 80


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def shifts(spread: float = 0.5) -> np.ndarray:
    """An offset in log-odds of every prompt, symmetrical about 0."""
    return spread * np.random.default_rng(0).permutation(np.linspace(-2, 2, PROMPTS))


def logistic(slope: float, centre: float = 0.6) -> np.ndarray:
    return sigmoid(slope * (np.array(LAMBDAS)[:, None] - centre) + shifts())


def ramp(start: float, stop: float, height: float = 5.0) -> np.ndarray:
    """Flat at −height, straight from `start` to `stop`, flat at +height, in log-odds."""
    return sigmoid(np.interp(LAMBDAS, [start, stop], [-height, height])[:, None] + shifts())


def said(p: np.ndarray) -> str:
    return verdict(LAMBDAS, p, sharpness(LAMBDAS, p)).word


@pytest.mark.parametrize("slope", [1.0, 4.0, 12.0, 30.0])
def test_a_logistic_is_smooth_at_any_slope(slope: float) -> None:
    p = logistic(slope)
    found = sharpness(LAMBDAS, p)
    if p.min() > CLIP and p.max() < 1 - CLIP:  # inside the clip a straight line has exactly its share
        assert found["value"] == pytest.approx(0.2, abs=1e-9)
    assert said(p) == "contradicted"


def test_the_place_and_width_of_a_logistic_are_recovered() -> None:
    for slope, centre in ((12.0, 0.6), (20.0, 0.37)):
        p = sigmoid(slope * (np.array(LAMBDAS)[:, None] - centre) + 0 * shifts())
        assert lambda_at(LAMBDAS, p)["value"] == pytest.approx(centre, abs=1e-9)
        assert width(LAMBDAS, p)["value"] == pytest.approx(2 * np.log(9) / slope, abs=1e-9)
        spread = lambda_at(LAMBDAS, logistic(slope, centre))
        assert spread["low"] < centre < spread["high"] and spread["high"] - spread["low"] < 0.05


@pytest.mark.parametrize(("start", "stop"), [(0.4, 0.55), (0.7, 0.8), (0.5, 0.7)])
def test_a_flat_ramp_flat_curve_is_sharp(start: float, stop: float) -> None:
    p = ramp(start, stop)
    found = sharpness(LAMBDAS, p)
    assert found["value"] == pytest.approx(1.0) and said(p) == "supported"
    plain = sigmoid(np.interp(LAMBDAS, [start, stop], [-5, 5])[:, None] + np.zeros(60))
    assert lambda_at(LAMBDAS, plain)["value"] == pytest.approx((start + stop) / 2, abs=1e-9)
    assert width(LAMBDAS, plain)["value"] == pytest.approx(2 * np.log(9) * (stop - start) / 10, abs=1e-9)


def test_a_wide_ramp_is_undecided_and_has_its_share() -> None:
    p = ramp(0.3, 0.7)
    assert sharpness(LAMBDAS, p)["value"] == pytest.approx(0.5) and said(p) == "undecided"


def test_the_window_may_begin_between_points() -> None:
    lambdas = np.linspace(0, 1, 23).tolist()  # whose points lie .0455 apart: no two are .2 apart
    p = sigmoid(np.interp(lambdas, [0, lambdas[9], lambdas[9] + 0.2, 1], [-5, -4, 4, 5])[:, None] + np.zeros(60))
    knots = np.interp([lambdas[9], lambdas[9] + 0.2], lambdas, log_odds(p[:, 0]))
    assert sharpness(lambdas, p)["value"] == pytest.approx((knots[1] - knots[0]) / 10, abs=1e-6)


def test_what_clipping_hides_is_not_called_sharp() -> None:
    steep = logistic(200.0)
    assert sharpness(LAMBDAS, steep)["value"] > 0.6 and said(steep) == "undecided"


def test_a_falling_measure_is_read_from_its_other_side() -> None:
    p = ramp(0.4, 0.55)
    for statistic in (sharpness, lambda_at, width):
        up, down = statistic(LAMBDAS, p), statistic(LAMBDAS, 1 - p)
        assert down["value"] == pytest.approx(up["value"]) and down["low"] == pytest.approx(up["low"])


def test_nothing_is_said_of_a_curve_that_does_not_move_or_has_few_points_or_prompts() -> None:
    rng = np.random.default_rng(0)
    flat = sigmoid(rng.standard_normal((POINTS, PROMPTS)))
    assert sharpness(LAMBDAS, flat)["value"] is None and said(flat) == "undecided"
    p = ramp(0.4, 0.55)
    assert "points" in verdict(LAMBDAS[::2], p[::2], sharpness(LAMBDAS[::2], p[::2])).why
    few = sharpness(LAMBDAS, p[:, :20])
    assert few["low"] is None and verdict(LAMBDAS, p[:, :20], few).word == "undecided"
    assert lambda_at(LAMBDAS, 0.4 * p)["value"] is None and width(LAMBDAS, 0.5 + p / 2)["value"] is None


def test_a_think_ratio_passes_one_half_between_its_points() -> None:
    thought = np.zeros((3, 60))
    thought[1, :15] = thought[2] = 1  # 0, ¼, 1
    found = lambda_at([0.0, 0.4, 1.0], thought, odds=False)
    assert found["value"] == pytest.approx(0.4 + 0.6 / 3) and found["low"] <= 0.4 and found["high"] >= 1.0


def test_points_outside_the_unit_interval_do_not_count() -> None:
    wide = [-0.1, *LAMBDAS, 1.1]
    p = np.vstack([np.full(PROMPTS, 0.9), ramp(0.4, 0.55), np.full(PROMPTS, 0.1)])
    assert sharpness(wide, p)["value"] == pytest.approx(1.0)


# The family, and a pair in which one attention matrix carries everything.

PAIR = ("family:instruct", "family:reasoning")
ASKED = Settings(n=50, temperature=0.0)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transition") / "out"


@pytest.fixture(scope="module")
def asked() -> Pairing:
    return pairing(*PAIR, ASKED)


SOME = ("only layers 1-3",)
"""Parts of the family that are swept: all of them take a minute, and a planted pair has them too."""


def swept(asked: Pairing, **how: Any) -> Transition:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "parts", lambda pair: {name: parts(pair)[name] for name in SOME})
        return transition(asked, **how)


@pytest.fixture(scope="module")
def family(asked: Pairing, out: Path) -> Transition:
    return swept(asked, out=out)


def value(found: Transition, arm: str, metric: str) -> float:
    return next(
        r["value"]
        for r in found.summary
        if (r["arm"], r["metric"]) == (arm, metric) and not r["group"] and not r.get("reference")
    )


def test_the_family_turns_on_greedily_long_before_its_probability_does(family: Transition) -> None:
    greedy, smooth = (value(family, FULL, f"lambda50_{name}") for name in ("think_ratio", "p_think"))
    assert greedy is not None and 0.35 < greedy < 0.6
    assert smooth is not None and 0.6 < smooth < 0.75
    assert family.curves[0].verdict.word == "contradicted"  # smooth in log-odds
    assert value(family, "λ = 0", "think_ratio") == 0 and value(family, "λ = 1", "think_ratio") == 1
    assert value(family, "λ = 0", "accuracy") < 0.3 and value(family, "λ = 1", "accuracy") > 0.9
    for skipped in (SKIP_MLP, SKIP_ATTENTION):
        assert value(family, f"λ = 1, {skipped}", "p_think") < 0.6


def test_its_ends_are_the_models_themselves(asked: Pairing, family: Transition) -> None:
    prompts = asked.prompts
    for source, at in zip(PAIR, (0, -1), strict=True):
        assert family.curves[0].p[at].tolist() == p_think(load(source)[0], prompts)
    assert all(curve.p[0].tolist() == family.curves[0].p[0].tolist() for curve in family.curves)


def test_completions_are_made_where_something_happens(family: Transition) -> None:
    assert len(family.generated) == 7 and {0.0, 1.0} <= set(family.generated)  # both ends, and 20 steps halved
    at = value(family, FULL, "lambda50_think_ratio")
    low, high = (one for one in family.generated if abs(one - at) < 0.05)
    thinks = [value(family, arm_name(FULL, one), "think_ratio") for one in (low, high)]
    assert high - low == pytest.approx(0.05) and thinks[0] < 0.5 <= thinks[1]


@pytest.mark.parametrize(
    ("changed", "why", "written"),
    [
        ({"generate": "few"}, 'no completions: generate = "few"', 0),
        ({"temperature": 0.6}, "decoded at temperature 0.6, not greedily", 4),
    ],
)
def test_without_greedy_completions_their_threshold_is_not_told(
    planted: Pairing, changed: dict[str, Any], why: str, written: int
) -> None:
    warm = changed.pop("temperature", 0.0)
    asked = replace(planted, asked=replace(planted.asked, temperature=warm), **changed)
    found = swept(asked, points=3, beyond=0.5, kl=False)
    row = next(r for r in found.summary if r["metric"] == "lambda50_think_ratio")
    assert (row["value"], row["method"]) == (None, why)
    arms = {r["arm"] for r in found.rows if r["text"] is not None}
    assert len(arms) >= written if written else not arms
    assert bool(found.generated) == bool(written)
    assert next(r for r in found.summary if r["metric"] == "lambda50_p_think")["value"] is not None


def test_it_is_stored_and_resumes_without_a_model(
    asked: Pairing, family: Transition, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Experiment.open(out)
    assert stored.record["recipe"] == "transition" and stored.results("transition").num_rows == len(family.rows)
    assert (
        stored.summary.num_rows == len(family.summary)
        and stored.arms.num_rows == len(family.arms) == 21 + (2 + len(SOME)) * 20
    )
    norms = stored.arms.column("norm_delta").to_pylist()
    assert norms[10] == pytest.approx(norms[20] / 2) and norms[0] == 0
    killed = min((out / "parts").iterdir())
    killed.unlink()
    loads = []
    monkeypatch.setattr(bench, "load", lambda *how: loads.append(how) or load(*how))
    again = swept(asked, out=out)
    assert 1 <= len(loads) <= 2 and again.summary == family.summary and again.rows == family.rows
    assert killed.is_file()
    with pytest.raises(Refused, match="another experiment"):
        swept(asked, points=22, out=out)


def test_parts_of_the_family_s_change_do_less_alone_than_together(family: Transition) -> None:
    assert [curve.name for curve in family.parts] == [*SOME]
    shares = {r["arm"]: r for r in family.summary if r["metric"] == "fraction"}
    assert set(shares) == {SKIP_MLP, SKIP_ATTENTION, *SOME}
    assert all(r["low"] <= r["value"] <= r["high"] < 0.6 for r in shares.values())
    assert shares["only layers 1-3"]["value"] > 0.1
    assert shares["only layers 1-3"]["reference"] == "λ = 1, only layers 1-3"
    assert value(family, "λ = 0.5", "kl") > 0 == value(family, "λ = 0", "kl")
    assert not any(r["metric"] == "kl" for r in family.summary if ", " in r["arm"])  # KL is not taken of parts


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Pairing:
    return pairing(*save_planted(tmp_path_factory.mktemp("planted")), Settings(n=50, max_tokens=2, temperature=0.0))


@pytest.fixture(scope="module")
def carried(planted: Pairing) -> Transition:
    return transition(planted, points=3, kl=False)


def test_the_layers_and_the_kind_that_carry_a_planted_change_are_found(carried: Transition) -> None:
    start = float(carried.curves[0].p[0].mean())
    ends = {curve.name: float(curve.p[-1].mean()) for curve in (*carried.curves, *carried.parts)}
    bands = ["only layer 0", "only layers 1-2", "only layer 3", "only layers 1-3"]
    assert [*ends] == [FULL, SKIP_MLP, SKIP_ATTENTION, *bands, *(f"only {kind}" for kind in LINEAR), REST]
    assert start < 0.1 and ends[FULL] > 0.6
    moves = {FULL, SKIP_MLP, "only layers 1-2", "only layers 1-3", "only o_proj"}  # its layer is 2
    for name, end in ends.items():
        assert end == pytest.approx(ends[FULL] if name in moves else start, abs=0.05), name
    for curve in carried.parts:
        assert curve.fraction is not None
        assert curve.fraction["value"] == pytest.approx(float(curve.name in moves), abs=0.05), curve.name


def test_beyond_the_ends_the_line_goes_on_and_nothing_that_is_said_changes(
    planted: Pairing, carried: Transition
) -> None:
    found = swept(planted, points=3, beyond=0.5, kl=False)
    same = [curve for curve in (*carried.curves, *carried.parts) if curve.name in (*CURVES, *SOME)]
    for one, other in zip((*found.curves, *found.parts), same, strict=True):
        assert (one.summary, one.verdict, one.fraction) == (other.summary, other.verdict, other.fraction)
        assert one.lambdas == (0, 0.5, 1)
    assert found.beyond == [-0.5, 1.5] and {-0.5, 1.5} < set(found.generated)
    assert not {-0.5, 1.5} & set(carried.generated)
    p = np.array([value(found, arm_name(FULL, at), "p_think") for at in (-0.5, 0.0, 0.5, 1.0, 1.5)])
    assert (np.diff(log_odds(p)) > 0.5).all()
    norms = {arm["arm"]: arm["norm_delta"] for arm in found.arms}
    assert norms["λ = -0.5"] == pytest.approx(norms["λ = 0.5"]) and norms["λ = 1.5"] == pytest.approx(
        1.5 * norms["λ = 1"]
    )
    places = [(r["group"], r["value"]) for r in found.summary if r["metric"] == "strength"]
    assert [x for name, x in places if name == FULL] == [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert all(
        [x for name, x in places if name == c.name] == [0.0, 0.5, 1.0] for c in (*found.curves[1:], *found.parts)
    )


def test_projections_that_are_stored_together_move_together(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, "gpt2")
    bands = ["only layer 0", "only layer 1", "only layer 2", "only layers 1-2"]
    kinds = ["only q_proj, k_proj, v_proj", "only o_proj", "only up_proj", "only down_proj"]
    assert list(parts(Pair.open(base, tuned))) == [*bands, *kinds, REST]


def test_a_mistake_is_found_without_torch() -> None:
    code = (
        "import sys\nfrom deltalens.cli.sweep import Sweep\n"
        "try:\n    Sweep(('family:instruct', 'family:reasoning'), 'rank', task=('nothing',)).run()\n"
        "except Exception as problem:\n    print(problem, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("nothing: no such task") and said.endswith("False\n")


def test_bad_input_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(BadInput, match="needs 21"):
        Sweep(PAIR, "transition", points=20).run()
    with pytest.raises(BadInput, match="those of a transition"):
        Sweep(PAIR, "rank", points=21).run()
    with pytest.raises(BadInput, match="no such task"):
        Sweep(PAIR, "transition", task=("nothing",)).run()
    with pytest.raises(BadInput, match="named twice"):
        Sweep((PAIR[0], PAIR[0]), "transition").run()
    with pytest.raises(BadInput, match="--out is empty"):
        Sweep(PAIR, "transition", out="").run()


def test_what_is_printed(asked: Pairing, family: Transition, capsys: pytest.CaptureFixture[str]) -> None:
    show_transition(asked, family)
    said = capsys.readouterr().out
    assert "λ50 of the greedy think ratio" in said and "contradicted: smooth in log-odds" in said
    assert f"{value(family, FULL, 'lambda50_p_think'):.3f} [" in said
    assert max(map(len, LEGEND.splitlines())) <= 120
