"""Every word of every question and claim, from experiments that are written through the store."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment_factory import result, store, summary_row
from run_factory import make_run

from deltalens.direction.compare import Comparison
from deltalens.errors import BadInput
from deltalens.evaluate.scores import Row
from deltalens.experiment.claims import Claim, claims
from deltalens.experiment.evidence import step_of
from deltalens.experiment.verdicts import QUESTIONS, Answer, verdicts, write_verdicts
from deltalens.methods.specific import MAIN
from deltalens.spectrum.reading import Leading, leading
from deltalens.store.files import write_json
from deltalens.store.run import Run
from deltalens.sweep.arms import effect_minus_largest_control
from deltalens.sweep.verdicts import LEVEL, causal, enough, fraction

ROLES = {"pair": "main", "sib": "sibling", "safe": "safety"}
N = 200


def an_exp(path: Path, roles: dict[str, str] = ROLES, missing: Sequence[tuple[str, str]] = ()) -> Path:
    """An experiment that is still running and has nothing yet."""
    pairs = [{"name": name, "base": "a", "tuned": "b", "role": role} for name, role in roles.items()]
    told = [{"step": step, "error": error, "fix": None} for step, error in missing]
    path.mkdir()
    write_json(path / "experiment.json", {"status": "running", "config": {"pairs": pairs}, "missing": told})
    return path


def a_step(exp: Path, name: str, summary: list[Row], rows: list[Row], **more: Any) -> None:
    """A finished step; every arm of the rows is listed."""
    arms = [{"arm": arm} for arm in dict.fromkeys(row["arm"] for row in rows)]
    more = {"metric": "p_think", "settings": {"tasks": ["chain"]}} | more
    store(exp / "steps" / name, "sweep", arms, summary, rows, **more)


def curve(name: str, arm: str, share: Sequence[Any], claim: Sequence[Any] | None, n: int = N) -> list[Row]:
    """What a sweep says of a curve: F and effect − largest control, each as value, low, high."""
    found = [summary_row(name, "fraction", *share, reference=arm, n=n, method="not shown to differ")]
    if claim is not None:
        found.append(summary_row(name, "effect_minus_largest_control", *claim, reference=f"{arm}: random", n=n))
    return found


def trials(arm: str, p: Sequence[float], thought: int = 0, forced: int = 0, right: int = 0, **more: Any) -> list[Row]:
    """Completions of an arm: how many items it thinks on, and is right on when forced, and when free."""
    rows = []
    for i, one in enumerate(p):
        rows.append(result(arm, f"item {i}", "free", i < right, i < thought, "x", p_think=one, **more))
        rows.append(result(arm, f"item {i}", "forced", i < forced, True, "x", **more))
    return rows


def answered(exp: Path, start: str) -> Answer:
    """The answer to the question that begins so."""
    return next(a for a in verdicts(exp) if a.question.startswith(start))


def held(exp: Path, title: str) -> Claim:
    """The claim of a title."""
    return next(c for c in claims(exp) if title in c.title)


def test_nothing_was_run(tmp_path: Path) -> None:
    exp = an_exp(tmp_path / "e", missing=[("rank", "no think format"), ("refusal", "no refusal prompts")])
    found = verdicts(exp)
    assert [a.question for a in found] == [question for question, *_ in QUESTIONS] and len(found) == 9
    assert {a.word for a in found} == {"undecided"} and not any(a.numbers for a in found)
    why = {a.question: a.why for a in found}
    assert why["causal for thinking?"] == why["necessary (left out)?"] == "no think format"
    assert why["distinct from refusal?"] == "no refusal prompts"
    assert why["low-rank above noise?"] == "step pairs/pair was not run"
    assert why["sharp transition?"] == "step transition was not run"
    assert {c.word for c in claims(exp)} == {"cannot say"}
    with pytest.raises(BadInput, match="not an experiment"):
        verdicts(tmp_path)


def test_an_unfinished_step_is_missing(tmp_path: Path) -> None:
    exp = an_exp(tmp_path / "e")
    a_step(exp, "transition", [], [])
    record = json.loads((exp / "steps/transition/experiment.json").read_text())
    (exp / "steps/transition/experiment.json").write_text(json.dumps(record | {"status": "running"}))
    assert answered(exp, "sharp").why == "step transition is unfinished"


@pytest.mark.parametrize(
    ("share", "weak", "word"),
    [
        (0.5, 0.0, "low-rank"),
        (0.4999, 0.0, "undecided"),
        (0.2001, 0.0, "undecided"),
        (0.2, 0.0, "not low-rank"),
        (0.9, 0.4999, "low-rank"),
        (0.9, 0.5, "undecided"),
        (0.1, 0.5, "undecided"),
    ],
)
def test_bounds_of_low_rank(share: float, weak: float, word: str) -> None:
    assert Leading(share, weak, 3).word == word


def test_leading_spikes_by_hand(tmp_path: Path) -> None:
    """Width 32: at most ⌈32/20⌉ = 2 directions of a matrix count, 4 where it is longer, and no more than its spikes."""
    run = make_run(tmp_path / "run", layers=1, decay=0.8, spikes=3)
    whole = inside = 0.0
    for row in run.matrices.to_pylist():
        energy = np.square(run.spectrum(row["name"]))
        whole, inside = whole + energy.sum(), inside + energy[: min(3, -(-len(energy) // 20))].sum()
    found = leading(run)
    assert found is not None and found.matrices == 8
    assert found.share == pytest.approx(inside / whole) and found.weak == 0


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"decay": 0.5}, "supported"),
        ({"decay": 0.98}, "contradicted"),
        ({"decay": 0.87}, "undecided"),
        ({"decay": 0.5, "spikes": 0}, "contradicted"),
        ({"decay": 0.5, "snr": 0.99}, "undecided"),
        ({"decay": 0.5, "snr": 1.0}, "supported"),
        ({"decay": 0.5, "snr": None, "noise_model": "none", "noise_sigma": None}, "supported"),
        ({"decay": 0.5, "norm_delta": 0.0}, "undecided"),
        ({"decay": 0.5, "spikes": None}, "undecided"),
    ],
)
def test_low_rank(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    exp = an_exp(tmp_path / "e")
    run = make_run(exp / "pairs/pair", layers=1, **changes)
    make_run(exp / "pairs/sib", layers=1, decay=0.9)
    found = answered(exp, "low-rank")
    assert found.word == word
    if found.numbers:
        counted, beside = leading(run), leading(Run.open(exp / "pairs/sib"))
        assert counted is not None and beside is not None
        assert [n.value for n in found.numbers] == [counted.share, counted.weak, beside.share]
        assert [n.arm for n in found.numbers] == ["pair", "pair", "sib"]


@pytest.mark.parametrize(
    ("share", "claim", "n", "word"),
    [
        ((0.2, 0.1, 0.3), (0.1, 0.001, 0.2), N, "supported"),
        ((0.1999, 0.1, 0.3), (0.1, 0.001, 0.2), N, "undecided"),
        ((0.9, 0.8, 1.0), (0.1, 0.0, 0.2), N, "undecided"),
        ((0.9, 0.8, 1.0), None, N, "undecided"),
        ((0.0, -0.1, 0.1), (0.1, 0.001, 0.2), N, "contradicted"),
        ((0.0, -0.1001, 0.1), (0.1, 0.001, 0.2), N, "undecided"),
        ((0.9, 0.8, 1.0), (0.1, 0.001, 0.2), N - 1, "undecided"),
        ((None, None, None), (0.1, 0.001, 0.2), N, "undecided"),
    ],
)
def test_causal(tmp_path: Path, share: Sequence[Any], claim: Sequence[Any] | None, n: int, word: str) -> None:
    exp = an_exp(tmp_path / "e")
    a_step(exp, "rank", curve("Δ_k", "Δ_4", share, claim, n), [])
    found = answered(exp, "causal")
    assert found.word == word
    assert [(n.value, n.low, n.high) for n in found.numbers] == [tuple(s) for s in (share, claim) if s is not None]
    assert {n.step for n in found.numbers} == {"rank"} and found.numbers[0].arm == "Δ_4"
    if share[0] is None:
        assert found.why == "not shown to differ"


@pytest.mark.parametrize(
    ("low", "high", "n", "word"),
    [
        (0.8, 0.9, N, "supported"),
        (0.7999, 0.9, N, "undecided"),
        (0.1, 0.4999, N, "contradicted"),
        (0.1, 0.5, N, "undecided"),
        (0.8, 0.9, N - 1, "undecided"),
    ],
)
def test_sufficient_and_necessary(tmp_path: Path, low: float, high: float, n: int, word: str) -> None:
    exp = an_exp(tmp_path / "e")
    put = curve("Δ_k", "Δ_4", (low, low, high), None, n)
    out = curve("tuned − Δ_k", "tuned − Δ_1", (1 - low, 1 - high, 1 - low), None, n)
    a_step(exp, "rank", put + out, [])
    assert answered(exp, "sufficient").word == word
    found = answered(exp, "necessary")
    if low in (0.1, 0.8):  # 1 − (1 − .7999) is .7999 only nearly, which decides nothing here
        assert found.word == word
    assert found.numbers[0].low == pytest.approx(low) and found.numbers[0].name == "1 − F"


def test_the_first_step_decides_and_the_other_is_named(tmp_path: Path) -> None:
    exp = an_exp(tmp_path / "e")
    map_rows = curve("smallest set, leave out", "cells", (0.6, 0.55, 0.65), None)
    map_rows += curve("smallest set, put in", "cells", (0.9, 0.85, 0.95), None)
    a_step(exp, "map", map_rows, [])
    assert answered(exp, "sufficient").word == "supported"  # the only step there is
    assert answered(exp, "necessary").word == "undecided"  # a set holds no more than the cells that were run
    a_step(exp, "rank", curve("tuned − Δ_k", "tuned − Δ_1", (0.05, 0.0, 0.1), None), [])
    found = answered(exp, "necessary")
    assert found.word == "supported" and "map" not in found.why
    assert [n.step for n in found.numbers] == ["rank", "map"]
    own = curve("Δ_k", "Δ_4", (0.9, 0.85, 0.95), None)
    a_step(exp, "rank", own, [])
    a_step(exp, "specific", curve(MAIN, MAIN, (0.3, 0.2, 0.4), None), [])
    found = answered(exp, "sufficient")
    assert found.word == "supported" and "but specific contradicted" in found.why


def test_the_pair_of_the_control_step_stands_in(tmp_path: Path) -> None:
    exp = an_exp(tmp_path / "e")
    a_step(exp, "specific", curve(MAIN, MAIN, (0.9, 0.85, 0.95), (0.8, 0.7, 0.9)), [])
    assert answered(exp, "causal").word == "supported"


def _steering(exp: Path, template: str) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    p = {arm: rng.uniform(low, low + 0.05, N).tolist() for arm, low in (("baseline", 0.0), ("+v", 0.5), ("c", 0.1))}
    rows = [row for arm, own in p.items() for row in trials(arm, own, role="control" if arm == "c" else "edit")]
    a_step(exp, "steer-up", [summary_row("+v", "operating_point", 1.0)], rows, template=template)
    return p


def test_steering_stands_beside_what_is_put_in(tmp_path: Path) -> None:
    exp = an_exp(tmp_path / "e")
    p = _steering(exp, "t")
    assert "not scored" in answered(exp, "causal").why
    tuned = np.random.default_rng(1).uniform(0.9, 1.0, N).tolist()
    a_step(exp, "rank", curve("Δ_k", "Δ_4", (0.0, -0.05, 0.05), None), trials("tuned", tuned), template="t")
    found = answered(exp, "causal")
    assert found.word == "contradicted" and "but steer-up supported" in found.why
    share, claim = fraction(p["baseline"], p["+v"], tuned), effect_minus_largest_control(
        p["baseline"], p["+v"], {"c": p["c"]}, LEVEL
    )  # fmt: skip
    for number, row in zip(found.numbers[1:], (share, claim), strict=True):
        assert (number.value, number.low, number.high, number.n) == tuple(row[k] for k in ("value", "low", "high", "n"))


def test_steering_under_another_template_has_no_share(tmp_path: Path) -> None:
    exp = an_exp(tmp_path / "e")
    _steering(exp, "t")
    a_step(exp, "rank", [], trials("tuned", [0.9] * N), template="other")
    found = answered(exp, "causal")
    assert found.word == "undecided" and found.numbers[0].value is None


@pytest.mark.parametrize(
    ("n", "thought", "forced", "share", "word"),
    [
        (N, 0, 200, 0.0, "supported"),
        (N - 1, 0, 199, 0.0, "undecided"),
        (N, 0, 195, 0.0, "supported"),
        (N, 0, 185, 0.0, "undecided"),
        (N, 150, 200, 0.0, "undecided"),
        (N, 0, 100, 0.0, "contradicted"),
        (N, 0, 200, None, "undecided"),
    ],
)
def test_choice(tmp_path: Path, n: int, thought: int, forced: int, share: float | None, word: str) -> None:
    exp = an_exp(tmp_path / "e")
    arm = "tuned − Δ_1"
    rows = trials("tuned", [0.9] * n, n, n) + trials(arm, [0.1] * n, thought, forced)
    a_step(exp, "rank", curve("tuned − Δ_k", arm, (share, share, share), None, n), rows)
    found = answered(exp, "choice")
    assert found.word == word
    assert [x.value for x in found.numbers] == pytest.approx([thought / n - 1, forced / n - 1])
    assert found.numbers[0].low == step_of(exp, "rank").shift("tuned", arm, "think_ratio")["low"]


def test_choice_without_completions(tmp_path: Path) -> None:
    exp = an_exp(tmp_path / "e")
    a_step(exp, "rank", curve("tuned − Δ_k", "x", (0.0, 0.0, 0.0), None), trials("tuned", [0.9] * N, N, N))
    assert answered(exp, "choice").word == "undecided"
    assert "no think ratio of tuned and x" in answered(exp, "choice").why


@pytest.mark.parametrize(
    ("sibling", "safety", "word"),
    [
        ((0.5, 0.001, 0.6), (0.4, 0.3, 0.5), "supported"),
        ((0.5, 0.0, 0.6), (0.4, 0.3, 0.5), "undecided"),
        ((0.5, 0.4, 0.6), (0.0, -0.05, 0.05), "contradicted"),
        ((0.5, 0.4, 0.6), (0.0, -0.05, 0.0501), "undecided"),
        (None, (0.4, 0.3, 0.5), "undecided"),
        (None, None, "undecided"),
    ],
)
def test_specific(tmp_path: Path, sibling: Any, safety: Any, word: str) -> None:
    exp = an_exp(tmp_path / "e")
    given = {name: row for name, row in (("sib", sibling), ("safe", safety)) if row is not None}
    rows = [summary_row(f"Δ_k of {name}", "specific", *row, reference=MAIN, n=N) for name, row in given.items()]
    rows += [summary_row("pair", "specific", None, method="supported: never read")]
    a_step(exp, "specific", rows + curve(MAIN, MAIN, (0.9, 0.8, 1.0), None), [])
    found = answered(exp, "specific")
    assert found.word == word
    assert [(n.value, n.low, n.high) for n in found.numbers[1:]] == list(given.values())
    if not given:
        assert found.why == "no sibling and no safety pair"


@pytest.mark.parametrize(("share", "n"), [((None, None, None), N), ((0.9, 0.8, 1.0), N - 1)])
def test_specific_without_a_share(tmp_path: Path, share: Sequence[Any], n: int) -> None:
    exp = an_exp(tmp_path / "e")
    rows = [summary_row(f"Δ_k of {name}", "specific", 0.5, 0.4, 0.6, n=n) for name in ("sib", "safe")]
    a_step(exp, "specific", rows + curve(MAIN, MAIN, share, None, n), [])
    assert answered(exp, "specific").word == "undecided"


def _compared(layer: int, word: str, low: float | None, high: float | None) -> dict[str, Any]:
    made = Comparison(
        a=f"layers.{layer}.difference", b="refusal", layer=layer, family="difference × difference", width=128,
        ranks=(1, 1), overlap=0.1, angles=(80.0,), nulls={"isotropic": 0.01, "permuted": 0.04}, largest="permuted",
        low=low, high=high, noise=0.0, p=0.5, p_holm=1.0, verdict=word, reason=None,
    )  # fmt: skip
    return asdict(made)


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("supported", "supported"), "supported"),
        (("supported", "undecided"), "undecided"),
        (("undecided", "contradicted"), "contradicted"),
    ],
)
def test_distinct_from_refusal(tmp_path: Path, words: tuple[str, str], word: str) -> None:
    exp = an_exp(tmp_path / "e")
    rows = [_compared(0, words[0], -0.02, 0.04), _compared(1, words[1], -0.01, 0.2)]
    rows.append(_compared(2, words[0], -0.03, 0.01 if words[0] == "supported" else 0.9))
    write_json(exp / "refusal.json", {"rows": rows})
    found = answered(exp, "distinct")
    assert found.word == word and "layer 1" in found.why  # the layer that decides, not the widest of all
    assert (found.numbers[0].low, found.numbers[0].high, found.numbers[0].n) == (-0.01, 0.2, 3)
    assert found.numbers[0].value == pytest.approx(0.06)


@pytest.mark.parametrize("word", ["supported", "contradicted", "undecided"])
def test_sharp(tmp_path: Path, word: str) -> None:
    exp = an_exp(tmp_path / "e")
    stored = {"sharpness": (0.3, 0.2, 0.4), "width_p_think": (0.5, 0.4, 0.6), "lambda50_p_think": (0.7, 0.6, 0.8)}
    stored["lambda50_think_ratio"] = (0.42, 0.41, 0.43)
    rows = [summary_row("skip MLP", "sharpness", 0.9, 0.9, 0.9, method="supported: another curve")]
    rows += [summary_row("all", m, *v, method=f"{word}: as it was: found") for m, v in stored.items()]
    a_step(exp, "transition", rows, [])
    found = answered(exp, "sharp")
    assert (found.word, found.why) == (word, "as it was: found")
    assert [(n.value, n.low, n.high) for n in found.numbers] == list(stored.values())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"zero_fraction": 0.8, "predicted_zero_fraction": 0.1, "deadzone": "sparse"}, "supported"),
        ({"zero_fraction": 0.8, "predicted_zero_fraction": 0.1, "deadzone": "inconclusive"}, "undecided"),
        ({"zero_fraction": 0.3, "predicted_zero_fraction": 0.18, "deadzone": "inconclusive"}, "contradicted"),
        ({"zero_fraction": 0.3, "predicted_zero_fraction": 0.1799, "deadzone": "inconclusive"}, "undecided"),
        ({"zero_fraction": 0.3, "predicted_zero_fraction": 0.35, "deadzone": "dense"}, "contradicted"),
        ({"zero_fraction": 0.3, "predicted_zero_fraction": 0.36, "deadzone": "dense"}, "undecided"),
        ({"predicted_zero_fraction": None, "noise_model": "none", "deadzone": None}, "undecided"),
    ],
)
def test_sparse(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    exp = an_exp(tmp_path / "e")
    make_run(exp / "pairs/pair", layers=1, full=True, **changes)
    found = answered(exp, "sparse")
    assert found.word == word
    if found.numbers:
        keys = ("zero_fraction", "predicted_zero_fraction")
        assert [n.value for n in found.numbers[:2]] == pytest.approx([changes[k] for k in keys])


def test_the_null_ensemble_overrules_the_word_of_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("run_factory.null_lines", _far_zeros)
    exp = an_exp(tmp_path / "e")
    make_run(exp / "pairs/pair", layers=1, full=True, zero_fraction=0.3, predicted_zero_fraction=0.3, deadzone="dense")
    found = answered(exp, "sparse")
    assert found.word == "undecided" and "draws" in found.why


def _far_zeros(row: Row, hostile: str | None = None) -> list[Row]:
    found = {"name": row["name"], "statistic": "zero_fraction", "null": "gaussian", "calibration": "norm", "draws": 20}
    return [found | {"observed": 0.3, "mean": 0.2, "sd": 0.001, "z": 100.0}]


def test_a_null_pair_has_no_cause(tmp_path: Path) -> None:
    """Base and tuned differ by rounding noise: whatever an edit does, nothing causal is said, either way."""
    exp = an_exp(tmp_path / "e")
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.8, N)
    tuned = base + 1e-7 * rng.standard_normal(N)
    rows, summary = [], []
    for name, arm, start in (("Δ_k", "Δ_1", base), ("tuned − Δ_k", "tuned − Δ_1", tuned), (MAIN, MAIN, base)):
        edit = start + 1e-7 * rng.standard_normal(N)
        share = fraction(base.tolist(), edit.tolist(), tuned.tolist())
        claim = effect_minus_largest_control(start.tolist(), edit.tolist(), {"c": start.tolist()}, LEVEL)
        summary += [summary_row(name, "fraction", None) | share | {"reference": arm}]
        summary += [summary_row(name, "effect_minus_largest_control", None) | claim]
        rows += trials(arm, edit.tolist(), 100, 200)
    summary += [summary_row(f"Δ_k of {name}", "specific", 0.0, -1e-7, 1e-7, n=N) for name in ("sib", "safe")]
    rows += trials("tuned", tuned.tolist(), 100, 200) + trials("base", base.tolist(), 100, 200)
    a_step(exp, "rank", summary, rows)
    a_step(exp, "specific", summary, rows)
    for start in ("causal", "sufficient", "necessary", "choice", "specific"):
        found = answered(exp, start)
        assert found.word == "undecided" and "not shown to differ" in found.why, start


def test_verdicts_json_holds_the_stored_numbers(tmp_path: Path) -> None:
    exp = an_exp(tmp_path / "e")
    a_step(exp, "rank", curve("Δ_k", "Δ_4", (0.9, 0.85, 0.95), (0.8, 0.7, 0.9)), [])
    answers, made = verdicts(exp), claims(exp)
    write_verdicts(exp, answers, made)
    told = json.loads((exp / "verdicts.json").read_text())
    assert told["level"] == LEVEL and len(told["verdicts"]) == 9 and len(told["claims"]) == len(made)
    assert set(told["claims"][0]) == {"paper", "title", "says", "here", "word", "difference"}
    stored = {row["metric"]: row for row in step_of(exp, "rank").summary}
    cause = next(v for v in told["verdicts"] if v["question"].startswith("causal"))
    for number, metric in zip(cause["numbers"], ("fraction", "effect_minus_largest_control"), strict=True):
        assert {k: number[k] for k in ("value", "low", "high", "n")} == {
            k: stored[metric][k] for k in ("value", "low", "high", "n")
        }
    assert cause["word"] == causal(stored["fraction"], stored["effect_minus_largest_control"]).word
    sufficient = next(v for v in told["verdicts"] if v["question"].startswith("sufficient"))
    assert sufficient["word"] == enough(stored["fraction"]).word


RUN_CLAIMS: list[tuple[str, dict[str, Any], str]] = [
    ("small subnetworks", {"zero_fraction": 0.7, "predicted_zero_fraction": 0.69}, "agrees"),
    ("small subnetworks", {"zero_fraction": 0.69, "predicted_zero_fraction": 0.69}, "disagrees"),
    ("small subnetworks", {"zero_fraction": 0.7, "predicted_zero_fraction": 0.69, "decay": 0.5}, "disagrees"),
    ("small subnetworks", {"zero_fraction": 0.7, "predicted_zero_fraction": None}, "cannot say"),
    ("path not taken", {}, "disagrees"),
    ("path not taken", {"principal_energy": 1e-4}, "agrees"),
    ("path not taken", {"principal_energy": None}, "cannot say"),
    ("Near-uniform scaling", {}, "cannot say"),
    ("Near-uniform scaling", {"spectral_drift": 0.2, "scaling": 1.01}, "agrees"),
    ("Near-uniform scaling", {"spectral_drift": 0.2, "scaling": 1.001}, "disagrees"),
    ("Near-uniform scaling", {"scaling": None}, "cannot say"),
    ("panacea", {}, "cannot say"),
    ("panacea", {"spectral_drift": 0.8}, "disagrees"),
    ("panacea", {"right_rotation": None}, "cannot say"),
]


@pytest.mark.parametrize(("title", "changes", "word"), RUN_CLAIMS)
def test_claims_of_weights(tmp_path: Path, title: str, changes: dict[str, Any], word: str) -> None:
    exp = an_exp(tmp_path / "e")
    make_run(exp / "pairs/pair", layers=1, full=True, **changes)
    assert held(exp, title).word == word


def test_rotation_without_draws_is_read_beside_random_signs(tmp_path: Path) -> None:
    exp = an_exp(tmp_path / "e")
    run = make_run(exp / "pairs/pair", layers=1, full=True)
    record = json.loads((run.path / "run.json").read_text())
    (run.path / "nulls.parquet").unlink()
    write_json(
        run.path / "run.json", record | {"tables": {k: v for k, v in record["tables"].items() if "null" not in k}}
    )
    found = held(exp, "panacea")
    assert found.word == "agrees" and "0.3 on the input side (null 0.2; no null draws)" in found.here


def test_a_pair_trained_by_reward_is_asked_where_there_is_one(tmp_path: Path) -> None:
    exp = an_exp(tmp_path / "e", ROLES | {"reward": "rl"})
    make_run(exp / "pairs/pair", layers=1, full=True)
    make_run(exp / "pairs/reward", layers=1, full=True, scale=2.0, principal_energy=1e-4)
    found = held(exp, "path not taken")
    assert found.word == "agrees" and found.here.startswith("reward: ")
    assert "size not matched" in found.here and "× in pair" in found.here


def test_equal_sizes_may_be_ranked(tmp_path: Path) -> None:
    exp = an_exp(tmp_path / "e", ROLES | {"reward": "rl"})
    for name in ("pair", "reward"):
        make_run(exp / f"pairs/{name}", layers=1, full=True)
    assert "size not matched" not in held(exp, "path not taken").here


@pytest.mark.parametrize(
    ("right", "n", "word"),
    [(100, 100, "agrees"), (60, 100, "disagrees"), (40, 40, "cannot say"), (98, 100, "agrees"), (90, 100, "disagrees")],
)
def test_rank_one(tmp_path: Path, right: int, n: int, word: str) -> None:
    """The base is right on none, the tuned model on all, rank 1 on `right`."""
    exp = an_exp(tmp_path / "e")
    make_run(exp / "pairs/pair", layers=1, full=True, top_energy_1=0.5)
    p = {"base": 0.0, "tuned": 1.0, "Δ_1": 0.25, "Δ_1 / √e_1": 0.75}
    hits = {"base": 0, "tuned": n, "Δ_1": 0, "Δ_1 / √e_1": right}
    rows = [row for arm, one in p.items() for row in trials(arm, [one] * n, right=hits[arm])]
    rows += [row | {"arm": "Δ_1", "task": "facts", "correct": True} for row in rows[:2]]  # another task counts nothing
    places = [("Δ_k", "Δ_1"), ("Δ_k / √e_k", "Δ_1 / √e_1")]
    a_step(exp, "rank", [summary_row(arm, "strength", 1.0, group=c) for c, arm in places], rows)
    found = held(exp, "Rank-1 dominance")
    assert found.word == word
    if n >= 50:
        assert "holds 50% of ‖Δ‖²" in found.here and "0.25 [0.25, 0.25]" in found.here
        assert "0.75 [0.75, 0.75]" in found.here and f"{right / n:.2f} [" in found.here
    assert held(exp, "trajectories").word == "cannot say" and "three are needed" in held(exp, "trajectories").here


@pytest.mark.parametrize(
    ("after", "solved", "word"), [(150, 1.0, "agrees"), (200, 1.0, "disagrees"), (196, 1.0, "cannot say"),
                                  (150, 0.19, "cannot say")]
)  # fmt: skip
def test_removal(tmp_path: Path, after: int, solved: float, word: str) -> None:
    exp = an_exp(tmp_path / "e")
    arms = {"base": N, "base − 1τ": after, "tuned": N, "tuned − Δ_1": N}
    rows = [row for arm, right in arms.items() for row in trials(arm, [0.1] * N, right=right, forced=N)]
    summary = [summary_row("base", "accuracy", solved)]
    for name, arm in (("base − ατ", "base − 1τ"), ("tuned − Δ_k", "tuned − Δ_1")):
        summary.append(summary_row(name, "operating_point", 1.0, reference=arm))
    a_step(exp, "negate", summary, rows)
    found = held(exp, "Reasoning vectors")
    assert found.word == word
    assert ("nothing to lose" if solved < 0.2 else f"chain {after / N - 1:+.2f} [") in found.here


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.4, 0.6, "agrees"), (0.39, 0.6, "cannot say"), (0.2, 0.39, "disagrees"), (0.61, 0.7, "disagrees"),
     (None, None, "cannot say")],
)  # fmt: skip
def test_where_thinking_comes_on(tmp_path: Path, low: float | None, high: float | None, word: str) -> None:
    exp = an_exp(tmp_path / "e")
    rows = [summary_row("all", m, 0.3, 0.2, 0.4) for m in ("sharpness", "width_p_think", "lambda50_p_think")]
    a_step(exp, "transition", [*rows, summary_row("all", "lambda50_think_ratio", low, low, high)], [])
    found = held(exp, "comes on")
    assert found.word == word and "J = 0.30 [0.20, 0.40]" in found.here


@pytest.mark.parametrize(
    ("mlp", "attention", "word"),
    [
        ((0.1, 0.0, 0.4999), (0.9, 0.8, 1.0), "agrees"),
        ((0.1, 0.0, 0.5), (0.9, 0.8, 1.0), "cannot say"),
        ((0.6, 0.5, 0.7), (0.9, 0.8, 1.0), "disagrees"),
        ((0.1, 0.0, 0.2), (0.3, 0.2, 0.4), "disagrees"),
        ((None, None, None), (0.9, 0.8, 1.0), "cannot say"),
    ],
)
def test_who_carries_the_switch(tmp_path: Path, mlp: Sequence[Any], attention: Sequence[Any], word: str) -> None:
    exp = an_exp(tmp_path / "e")
    given = {
        "skip MLP": mlp,
        "skip attention": attention,
        "only o_proj": (0.4, 0.3, 0.5),
        "only v_proj": (0.2, 0.1, 0.3),
    }
    a_step(exp, "transition", [summary_row(name, "fraction", *row) for name, row in given.items()], [])
    found = held(exp, "carries the switch")
    assert found.word == word and "only o_proj does most: 0.40 [0.30, 0.50]" in found.here
