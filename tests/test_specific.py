"""Other deltas in the pair's place: as long on the base's inputs, and judged by the rule."""

from typing import Any

import numpy as np
import pytest

from deltalens.edit.edit import from_record
from deltalens.edit.plan import plan
from deltalens.evaluate.plan import Settings
from deltalens.methods.specific import MAIN, _transplanted, judge, specific
from deltalens.model.load import load
from deltalens.sweep.controls import changes_of
from deltalens.sweep.inputs import second_moments
from deltalens.sweep.pair import opened, pairing

PAIR = ("family:instruct", "family:reasoning")
STEP = {"operator": "truncate", "rank": 2}


def row(low: float, high: float) -> dict[str, Any]:
    return {"value": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"sibling": [row(0.3, 0.4)], "safety": [row(0.3, 0.4)]}, "supported"),
        ({"sibling": [row(0.3, 0.4)], "safety": [row(-0.01, 0.4)]}, "undecided"),
        ({"sibling": [row(0.3, 0.4)], "safety": [row(-0.04, 0.04)]}, "contradicted"),
        ({"sibling": [row(0.3, 0.4)], "rl": [row(-0.04, 0.04)]}, "undecided"),  # another reasoning tune may do as much
        ({"sibling": [row(0.3, 0.4), row(-0.2, 0.2)], "safety": [row(0.3, 0.4)]}, "undecided"),
        ({}, "undecided"),
    ],
)
def test_specific_by_the_rule(found: dict[str, list[dict[str, Any]]], said: str) -> None:
    share = row(0.8, 0.9) | {"n": 200, "method": ""}
    assert judge(found, share).word == said
    assert judge(found, share | {"n": 199}).word == "undecided"
    assert judge(found, share | {"low": None, "method": "the sides do not differ"}).word == "undecided"


def test_another_delta_is_as_long_on_the_inputs_of_the_base() -> None:
    asked = pairing(*PAIR, Settings(n=8))
    own = opened(asked, STEP)
    model, _ = load(PAIR[0])
    read = second_moments(model, [c.row for c in changes_of(own, "base")], asked.chosen_on.ids["free"])
    changes = changes_of(own, "base", read)
    other = plan(from_record({"base": PAIR[0], "tuned": "family:safe", "edit": [STEP]}))
    theirs = {c.row.name.name: c.form for c in changes_of(other, "base")}
    made = {r.name.name: form for r, form in _transplanted(changes, other)}
    assert len(made) == 28
    for c in changes:
        name = c.row.name.name
        added = made[name].dense().astype(float) - c.start.dense()
        root = np.linalg.cholesky(read[name].sigma + 1e-12 * np.trace(read[name].sigma) * np.eye(added.shape[1]))
        assert np.linalg.norm(added @ root) == pytest.approx(c.size, rel=1e-3)
        delta = np.concatenate([*theirs[name].blocks()])
        cosine = np.sum(added * delta) / (np.linalg.norm(added) * np.linalg.norm(delta))
        assert cosine == pytest.approx(1, abs=1e-3)  # their directions, our length


def test_the_pair_itself_in_its_own_place_is_no_other_and_a_safety_tune_is() -> None:
    asked = pairing(*PAIR, Settings(n=60, max_tokens=2), others={"safe": "family:safe"})
    others = [("itself", "sibling", *PAIR), ("safe", "safety", PAIR[0], "family:safe")]
    found = specific(asked, 2, others, kl=False)
    rows = {r["arm"]: r for r in found.summary if r["metric"] == "specific"}
    assert abs(rows["Δ_k of itself"]["value"]) < 1e-5
    assert rows["Δ_k of safe"]["low"] > 0.5
    assert rows["pair"]["method"] == "undecided: 60 items, 200 are needed"
    share = next(r for r in found.drawn[MAIN].rows if r["metric"] == "fraction") | {"n": 200}
    said = judge({"sibling": [rows["Δ_k of itself"]], "safety": [rows["Δ_k of safe"]]}, share)
    assert said.text.startswith("contradicted: the sibling delta does as much")
    assert found.drawn[MAIN].point.values("p_think") == pytest.approx(
        found.drawn["Δ_k of itself"].point.values("p_think"), abs=1e-5
    )


def test_another_training_that_does_as_much_is_named() -> None:
    share = row(0.8, 0.9) | {"n": 200, "method": ""}
    said = judge({"sibling": [row(0.3, 0.4)], "safety": [row(0.3, 0.4)], "rl": [row(0.01, 0.03)]}, share)
    assert said.word == "supported" and said.why.endswith("; as much: rl +0.02 [+0.01, +0.03]")
