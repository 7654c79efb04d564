"""Curves over a pair: verdicts by their rules, the planted cause found, grids read, and nothing done twice."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edit_pairs import save_bank
from planted_pair import save_planted

from deltalens.cli.main import main
from deltalens.edit.edit import from_record
from deltalens.errors import BadInput
from deltalens.evaluate.plan import Settings
from deltalens.methods.grid import edits, read_grid
from deltalens.methods.grid_run import grid
from deltalens.store.experiment import Experiment
from deltalens.sweep import bench
from deltalens.sweep.curves import GAP, Swept, between
from deltalens.sweep.pair import pairing
from deltalens.sweep.verdicts import causal, choice, enough, fraction, left_out

N = 200
RNG = np.random.default_rng(0)


def around(mean: float, spread: float = 0.02, n: int = N) -> list[float]:
    return (mean + spread * RNG.standard_normal(n)).tolist()


def test_f_is_the_share_of_the_difference_and_its_interval_holds_it() -> None:
    base, tuned = around(0.1), around(0.9)
    found = fraction(base, around(0.5), tuned)
    assert found["value"] == pytest.approx(0.5, abs=0.01)
    assert found["low"] < 0.5 < found["high"] and found["high"] - found["low"] < 0.05
    rest = left_out(found)
    assert (rest["low"], rest["value"], rest["high"]) == pytest.approx(
        (1 - found["high"], 1 - found["value"], 1 - found["low"])
    )
    assert fraction(base, tuned, tuned)["value"] == pytest.approx(1) and fraction(base, base, tuned)["value"] == 0
    falling = fraction(tuned, around(0.5), base)  # a measure that falls, as p_skip does
    assert falling["low"] < 0.5 < falling["high"]


def test_f_is_undefined_where_the_pair_does_not_differ() -> None:
    found = fraction(around(0.5), around(0.9), around(0.5))
    assert found["value"] is None and found["low"] is None
    assert enough(found).word == causal(found, None).word == "undecided"


def test_a_tiny_probability_that_moves_evenly_is_no_difference() -> None:
    base, tuned = around(1e-6, 1e-8), around(5e-6, 1e-8)
    found = fraction(base, around(-9e-6, 1e-8), tuned)  # else F = −2.5 with a narrow interval
    assert found["value"] is None and "less than 0.05" in found["method"]
    assert fraction(around(0.1, 1e-3), around(0.12, 1e-3), around(0.16, 1e-3))["low"] > 0.2


def claimed(low: float, high: float, n: int = N) -> dict[str, Any]:
    return {"n": n, "value": (low + high) / 2, "low": low, "high": high, "method": ""}


@pytest.mark.parametrize(
    ("share", "claim", "said"),
    [
        (claimed(0.5, 0.6), claimed(0.1, 0.2), "supported"),
        (claimed(0.5, 0.6), claimed(-0.1, 0.2), "undecided"),
        (claimed(0.1, 0.2), claimed(0.1, 0.2), "undecided"),  # F below .2
        (claimed(-0.05, 0.09), claimed(0.01, 0.02), "contradicted"),
        (claimed(-0.05, 0.11), claimed(0.01, 0.02), "undecided"),
        (claimed(0.5, 0.6), None, "undecided"),
        (claimed(0.5, 0.6, n=199), claimed(0.1, 0.2), "undecided"),
    ],
)
def test_causal_by_the_rule(share: dict[str, Any], claim: dict[str, Any] | None, said: str) -> None:
    assert causal(share, claim).word == said


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.81, 0.9, "supported"),
        (0.79, 0.99, "undecided"),
        (0.1, 0.49, "contradicted"),
        (0.1, 0.51, "undecided"),
        (-2.0, -1.0, "contradicted"),
    ],
)
def test_sufficient_and_necessary_by_the_rule(low: float, high: float, said: str) -> None:
    assert enough(claimed(low, high)).word == said


def test_choice_or_skill_by_the_rule() -> None:
    fell, kept, lost = claimed(-0.9, -0.6), claimed(-0.05, 0.02), claimed(-0.6, -0.35)
    assert choice(fell, kept).word == "supported"
    assert choice(fell, lost).word == "contradicted"
    assert choice(claimed(-0.9, -0.4), kept).word == "undecided"
    assert choice(fell, claimed(-0.2, 0.0)).word == "undecided"


def test_thinking_that_rises_is_not_said_to_fall() -> None:
    assert choice(claimed(0.9, 1.1), claimed(-0.05, 0.02)).why.startswith("thinking does not fall: +1.00, forced")
    assert choice(claimed(-0.9, -0.7), claimed(0.01, 0.03)).why == (
        "thinking falls by 0.80, forced accuracy does not fall: +0.02"
    )


def test_points_are_added_where_the_measure_jumps_until_it_is_known() -> None:
    effects = {0.0: 0.0, 1.0: 1.0, 2.0: 1.05}
    assert between(effects) == [0.5]
    step = {x: float(x >= 1.3) for x in (0.0, 1.0, 2.0)}
    while new := between(step):
        step |= {x: float(x >= 1.3) for x in new}
    xs = sorted(step)
    jumps = [(a, b) for a, b in pairwise(xs) if abs(step[a] - step[b]) > GAP]
    assert len(jumps) == 1 and jumps[0][0] < 1.3 <= jumps[0][1] and jumps[0][1] - jumps[0][0] <= 2 / 32
    assert len(step) < 12


RECORD = {"base": "family:instruct", "tuned": "family:reasoning", "edit": [{"operator": "truncate", "rank": 1}]}


def test_a_grid_is_every_combination_and_the_number_runs_along_the_curve() -> None:
    varied = read_grid(["rank = [1, 4]", 'layers = ["0-1", "2-3"]', 'kinds = [["mlp"], ["attention"]]'], RECORD)
    curves = edits(from_record(RECORD), varied)
    assert [c.xs for c in curves] == [(1.0, 4.0)] * 4 and len({c.name for c in curves}) == 4
    made = curves[0].made(4.0).operations[0]
    assert (made.rank, made.layers, made.kinds) == (4, "0-1", ("mlp",))
    two = RECORD | {"edit": [*RECORD["edit"], {"operator": "revert", "rank": 1}]}
    found = edits(from_record(two), read_grid(["2.strength = [0, 0.5]"], two))
    assert found[0].xs == (0.5,) and found[0].made(0.5).operations[1].strength == 0.5
    assert found[0].made(0.5).operations[0].strength == 1.0


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "nothing to sweep"),
        (["rank = 4"], "cannot vary 'rank'"),
        (["rnak = [4]"], "cannot vary 'rnak'"),
        (["rank ="], "not TOML"),
        (["3.rank = [1]"], "operation 3"),
        (["rank = []"], "cannot vary"),
        (['"²".rank = [1]'], "operation ²"),
    ],
)
def test_a_grid_that_says_nothing_is_refused(lines: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        read_grid(lines, RECORD)


@pytest.mark.parametrize("given", [5, [{"rank": [1]}]])
def test_a_grid_of_the_file_is_a_table(given: Any) -> None:
    with pytest.raises(BadInput, match="no table"):
        read_grid([], RECORD | {"grid": given})


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["rank = [0, 1]"], "rank 0"),
        (["rank = [1.5]"], "rank = 1.5"),
        (["strength = [0]"], "only varied over 0"),
        (['layers = ["9-"]'], "layers"),
        (["layers = [1979-05-27]"], "layers"),
        ([f"strength = [1{'0' * 400}]"], "strength of truncate is inf"),
        ([f"rank = [1{'0' * 400}]"], "rank = inf"),
        (["strength = [1]", "--sibling", "family:reasoning"], "--sibling family:reasoning has the weights of a side"),
    ],
)
def test_values_that_no_edit_can_take_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], says: str
) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(from_record(RECORD).toml)
    assert main(["sweep", str(spec), "--grid", *lines, "--n", "4"]) == 2
    said = capsys.readouterr().err
    assert "error:" in said and says in said and "Traceback" not in said


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curves") / "out"


KINDS = (["o_proj"], ["down_proj"])


@pytest.fixture(scope="module")
def planted(out: Path) -> Swept:
    base, tuned = save_planted(out.parent)
    record = {"base": base, "tuned": tuned, "edit": [{"operator": "truncate", "rank": 1}]}
    varied = read_grid([f"kinds = {json.dumps(KINDS)}"], record)
    asked = pairing(base, tuned, Settings(n=N, max_tokens=2))
    return grid(asked, from_record(record), varied, out=out)


def claim(found: Swept, curve: str, metric: str) -> dict[str, Any]:
    return next(row for row in found.drawn[curve].rows if row["metric"] == metric)


def test_the_planted_cause_is_found_and_nothing_else(planted: Swept) -> None:
    there, *elsewhere = planted.drawn
    assert claim(planted, there, "causal")["method"].startswith("supported")
    assert claim(planted, there, "sufficient")["method"].startswith("supported")
    assert claim(planted, there, "effect_minus_largest_control")["low"] > 0.3
    for curve in elsewhere:
        assert claim(planted, curve, "causal")["method"].startswith("contradicted")
        assert claim(planted, curve, "sufficient")["method"].startswith("contradicted")


def test_the_tables_say_where_every_arm_stands(planted: Swept, out: Path) -> None:
    stored = Experiment.open(out)
    summary, arms = stored.summary.to_pylist(), {a["arm"]: a for a in stored.arms.to_pylist()}
    places = [r for r in summary if r["metric"] == "strength"]
    assert {r["group"] for r in places} == set(planted.drawn) and {r["arm"] for r in places} <= set(arms)
    kl = {r["arm"]: r["value"] for r in summary if r["metric"] == "kl" and not r["group"]}
    assert kl["base"] == 0 and kl["tuned"] > 0
    controls = [a for a in arms.values() if a["role"] == "control"]
    kinds = {json.loads(a["edit"])["control"] for a in controls}
    assert {"random U", "random V", "Haar U, V", "Gaussian"} <= kinds
    shown = {a["arm"] for a in controls if not json.loads(a["edit"])["decides"]}
    largest = {r["reference"] for r in summary if r["metric"] == "effect_minus_largest_control"}
    assert shown and largest and not shown & largest
    referenced = [r for r in summary if r["reference"] == "base" and r["metric"] == "p_think"]
    assert {r["arm"] for r in referenced} == set(arms) - {"base"}


def test_a_finished_sweep_is_read_back_and_scored_by_nobody(
    planted: Swept, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "p_think", lambda *_: pytest.fail("scored again"))
    monkeypatch.setattr(bench, "completions", lambda *_: pytest.fail("generated again"))
    record = Experiment.open(out).record
    varied = read_grid([f"kinds = {json.dumps(KINDS)}"], record["edit"])
    asked = pairing(*(m["source"] for m in record["models"]), Settings(n=N, max_tokens=2))
    again = grid(asked, from_record(record["edit"]), varied, out=out)
    assert again.summary == planted.summary


def test_both_ends_of_a_curve_are_the_two_sides() -> None:
    record = RECORD | {"edit": [{"operator": "interpolate", "strength": 1.0}]}
    asked = pairing("family:instruct", "family:reasoning", Settings(n=60, max_tokens=2))
    found = grid(asked, from_record(record), read_grid(["strength = [0.5, 1]"], record), adaptive=True, kl=False)
    (one,) = found.drawn.values()
    assert one.xs[-1] == 1 and len(one.xs) > 2  # refined
    assert one.found[-1].values("p_think") == found.tuned.values("p_think")
    assert "kl" not in one.found[0].probabilities


def told(planted: Swept, **changed: Any) -> Swept:
    """Both kinds taken out of the planted pair."""
    record = {"base": planted_pair(planted)[0], "tuned": planted_pair(planted)[1]}
    record |= {"edit": [{"operator": "revert", "rank": 1}]}
    warm = changed.pop("temperature", None)
    asked = pairing(record["base"], record["tuned"], Settings(n=N, max_tokens=2, temperature=warm))
    varied = read_grid([f"kinds = {json.dumps(KINDS[:1])}"], record)
    return grid(replace(asked, **changed), from_record(record), varied, kl=False)


def planted_pair(planted: Swept) -> list[str]:
    edit = json.loads(next(a["edit"] for a in planted.arms if a["arm"] == "base"))
    return [edit["base"], edit["tuned"]]


def wrote(found: Swept) -> dict[str, set[str]]:
    """Items that an arm completed, by arm."""
    arms: dict[str, set[str]] = {}
    for row in found.rows:
        if row["text"] is not None:
            arms.setdefault(row["arm"], set()).add(row["item"])
    return arms


def test_a_choice_is_told_of_greedy_completions_only(planted: Swept) -> None:
    warm, few = told(planted, temperature=0.6), told(planted, generate="few")
    for found, why in ((warm, "decoded at temperature 0.6, not greedily"), (few, 'no completions: generate = "few"')):
        (curve,) = found.drawn
        assert claim(found, curve, "choice")["method"] == f"undecided: {why}"
        assert claim(found, curve, "necessary")["method"].startswith("supported")  # rests on p_think
    assert len(wrote(warm)) == 4 and not wrote(few)


def test_completions_of_the_first_items_leave_every_probability(planted: Swept) -> None:
    found = told(planted, generated=60)
    (curve,) = found.drawn
    items = [item.id for item in found.base.prompts.items]
    assert wrote(found).keys() == {"base", "tuned", found.drawn[curve].point.name, found.drawn[curve].controls[0].name}
    assert all(done == set(items[:60]) for done in wrote(found).values())
    for arm in wrote(found):
        free = [r for r in found.rows if r["arm"] == arm and r["mode"] == "free"]
        assert len(free) == N and all(r["p_think"] is not None for r in free)
    assert claim(found, curve, "choice")["method"] == "undecided: 60 items, 200 are needed"
    assert claim(found, curve, "necessary")["n"] == N


def test_a_pair_that_is_no_family_member_is_decoded_greedily_unless_asked_otherwise(planted: Swept) -> None:
    base, tuned = planted_pair(planted)
    assert pairing(base, tuned, Settings(n=2)).asked.temperature == 0.0
    assert pairing(base, tuned, Settings(n=2, temperature=0.6)).asked.temperature == 0.6


def test_strengths_that_differ_late_are_two_arms_and_one_strength_is_refined_too() -> None:
    record = RECORD | {"edit": [{"operator": "interpolate", "strength": 1.0}]}
    asked = pairing("family:instruct", "family:reasoning", Settings(n=2, max_tokens=2))
    near = grid(asked, from_record(record), read_grid(["strength = [0.5000001, 0.5000002]"], record), kl=False)
    places = [row["arm"] for row in near.summary if row["metric"] == "strength"]
    assert sorted(places) == ["base", "interpolate: 0.5000001", "interpolate: 0.5000002"]
    varied = read_grid(["strength = [1]"], record)
    (one,) = grid(asked, from_record(record), varied, adaptive=True, kl=False).drawn.values()
    assert len(one.xs) > 1


def test_a_bank_lies_beside_the_edit_file_and_another_in_its_place_is_another_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "cut.toml"
    sides = 'base = "family:instruct"\ntuned = "family:reasoning"\n'
    spec.write_text(f'{sides}[[edit]]\noperator = "cut"\nkinds = ["o_proj"]\ndirection = "bank#d"\n')
    command = ["sweep", str(spec), "--grid", "strength = [1]", "--n", "2", "--max-tokens", "2", "--no-kl", "--quiet"]
    command += ["--out", str(tmp_path / "out")]
    save_bank(tmp_path / "bank", width=128)
    assert main(command) == main(command) == 0
    save_bank(tmp_path / "bank", vectors=2, width=128)
    assert main(command) == 3 and "reads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("strength", "code", "says"),
    [("1e60", 3, "beyond float32"), ("1e38", 2, "truncate: 1e+38: the model gives NaN")],
)
def test_an_arm_that_went_too_far_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], strength: str, code: int, says: str
) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(from_record(RECORD).toml)
    assert main(["sweep", str(spec), "--grid", f"strength = [{strength}]", "--n", "2", "--no-kl"]) == code
    assert says in capsys.readouterr().err
