"""An edit as data: what a file says is what is read, what is written back, and what is hashed."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from deltalens.edit.edit import OPERATORS, Edit, Energy, Operation, from_record, read_edit
from deltalens.errors import BadInput

PAIR = {"base": "family:base", "tuned": "family:reasoning"}
STEPS: list[dict[str, Any]] = [
    {"operator": "interpolate", "strength": 0.5, "layers": "50%-100%", "kinds": ["mlp", "norm"]},
    {"operator": "truncate", "rank": {"energy": 0.9}, "rest": "tuned"},
    {"operator": "revert", "rank": "spikes", "layers": "0-1,3"},
    {"operator": "negate", "strength": -2},
    {"operator": "lox", "rank": 6, "strength": 1.25, "layers": [0, 2]},
    {"operator": "contrast", "plus": "a b", "minus": 'c"d\\e', "strength": 0.1},
    {"operator": "cut", "direction": "bank.safetensors#layers.1.σ", "heads": [0, 3], "kinds": ["o_proj"]},
    {"operator": "restore", "rank": 4, "side": "left", "reference": "family:instruct", "kinds": ["up_proj"]},
    {"operator": "add", "direction": "b#x", "strength": 3.0, "site": "mlp_out"},
]


def test_a_file_reads_writes_and_hashes_the_same(tmp_path: Path) -> None:
    edit = from_record({"schema": 1, **PAIR, "edit": STEPS})
    assert [o.operator for o in edit.operations] == list(OPERATORS)
    (tmp_path / "e.toml").write_text(edit.toml, encoding="utf-8")
    again = read_edit(tmp_path / "e.toml")
    assert again == edit and from_record(edit.record) == edit
    assert again.edit_hash == edit.edit_hash
    assert edit.operations[1].rank == Energy(0.9) and edit.operations[4].layers == (0, 2)
    odd = from_record({"base": 'a\x7f"\\\n\x1b', "edit": [{"operator": "cut", "direction": "b#x"}]})
    assert from_record(tomllib.loads(odd.toml)) == odd


def test_the_hash_is_that_of_what_is_done() -> None:
    one = from_record({**PAIR, "edit": [{"operator": "revert", "rank": 2}]})
    assert one.edit_hash == Edit("family:base", (Operation("revert", 1.0, 2),), "family:reasoning").edit_hash
    changed = [{"operator": "revert", "rank": 3}], [{"operator": "revert", "rank": 2, "strength": 0.5}]
    hashes = {from_record({**PAIR, "edit": step}).edit_hash for step in changed}
    assert len(hashes | {one.edit_hash}) == 3


def test_everything_else_stays_where_the_first_operation_starts() -> None:
    homes = {"interpolate": "base", "truncate": "base", "negate": "base", "revert": "tuned", "lox": "tuned"}
    homes |= {"contrast": "tuned", "cut": "tuned", "restore": "tuned", "add": "tuned"}
    plain = [step if step["operator"] != "truncate" else {"operator": "truncate", "rank": 1} for step in STEPS]
    assert {s["operator"]: from_record({**PAIR, "edit": [s]}).home for s in plain} == homes
    assert from_record({**PAIR, "edit": [STEPS[1]]}).home == "tuned"
    assert from_record({"base": "m", "edit": [STEPS[6]]}).home == "base"


@pytest.mark.parametrize(
    ("step", "error", "fix"),
    [
        ({"operator": "trunc", "rank": 1}, "no operator is called 'trunc'", "truncate"),
        ({"operator": "revert", "rnk": 1}, "no field 'rnk'", "rank"),
        ({"operator": "revert"}, "revert needs rank", "rank = 4"),
        ({"operator": "revert", "rank": 0}, "rank 0 of revert is not possible", "full"),
        ({"operator": "revert", "rank": -1}, "rank -1", "full"),
        ({"operator": "revert", "rank": True}, "rank = True", "rank = 4"),
        ({"operator": "revert", "rank": 1.5}, "rank = 1.5", "rank = 4"),
        ({"operator": "revert", "rank": "some"}, "rank 'some'", "spikes"),
        ({"operator": "revert", "rank": {"energy": 1.5}}, "not possible", "energy"),
        ({"operator": "revert", "rank": {"energie": 0.5}}, "no field 'energie'", "energy"),
        ({"operator": "interpolate"}, "interpolate needs strength", "0.5"),
        ({"operator": "interpolate", "strength": float("nan")}, "strength of interpolate is nan", "finite"),
        ({"operator": "negate", "strength": float("inf")}, "strength of negate is inf", "finite"),
        ({"operator": "negate", "strength": "1"}, "strength = '1'", "0.5"),
        ({"operator": "negate", "rank": 2}, "negate takes no rank", "strength"),
        ({"operator": "negate", "layers": [1.5]}, "layers = ", None),
        ({"operator": "negate", "kinds": [1]}, "kinds = ", None),
        ({"operator": "negate", "kinds": []}, "kinds = ", None),
        ({"operator": "negate", "heads": []}, "heads = ", None),
        ({"operator": "truncate", "rank": 1, "rest": "there"}, "rest = 'there'", "base, tuned"),
        ({"operator": "cut"}, "cut needs direction", "BANK#id"),
        ({"operator": "contrast", "plus": "a"}, "contrast needs minus", "minus"),
        ({"operator": "restore", "kinds": ["up_proj"]}, "rank or direction", "16"),
        ({"operator": "restore", "kinds": ["up_proj"], "rank": "full"}, "takes a number", "16"),
        ({"rank": 1}, "no operator", "interpolate"),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(step: dict[str, Any], error: str, fix: str | None) -> None:
    with pytest.raises(BadInput) as caught:
        from_record({**PAIR, "edit": [step]})
    assert error in caught.value.error
    assert fix is None or fix in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({"tuned": "x", "edit": [STEPS[3]]}, "no valid base"),
        ({"base": 3, "edit": [STEPS[3]]}, "no valid base"),
        ({"base": "x", "edit": [STEPS[3]]}, "no tuned side"),
        ({"base": "x", "tuned": "y"}, "no list of operations"),
        ({"base": "x", "tuned": "y", "edit": []}, "no operation"),
        ({"base": "x", "tuned": "y", "edit": {"operator": "negate"}}, "no list of operations"),
        ({"schema": 2, **PAIR, "edit": [STEPS[3]]}, "schema 2"),
        ({**PAIR, "edits": [STEPS[3]]}, "no field 'edits'"),
    ],
)
def test_a_file_that_is_no_edit_says_why(record: dict[str, Any], error: str) -> None:
    with pytest.raises(BadInput, match=error):
        from_record(record)


def test_a_file_that_is_no_toml_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    for content in (b"base = ", b"\xff\xfe", b"a = 1\na = 2"):
        path.write_bytes(content)
        with pytest.raises(BadInput, match="is not TOML"):
            read_edit(path)
    with pytest.raises(BadInput, match="no such file"):
        read_edit(tmp_path / "gone.toml")
