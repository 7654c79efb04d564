"""Banks: exact round trips, every reference, and every mistake named with its fix."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from deltalens.direction.bank import read_bank, read_direction, read_directions, write_bank
from deltalens.direction.direction import SAMPLES, Direction
from deltalens.errors import BadInput


def direction(name: str, k: int = 1, d: int = 6, **changes: object) -> Direction:
    vectors = np.random.default_rng(len(name)).standard_normal((k, d)).astype(np.float32)
    made = Direction(name, vectors, 2, "difference", "residual", "resid_post", sign="contrast", contrast="A − B")
    return replace(made, **changes)


BANK = (
    direction("layers.1.difference"),
    direction("layers.2.difference", sigma=None, source={"n": [3, 4], "x": 0.25}, seeds=(0, 7)),
    direction("layers.2.writers", k=3, sigma=(3.0, 2.0, 1.0), kind="writers", unit="residual", contrast=None),
    direction("embed.left", d=9, layer=None, space="vocabulary", site=None),
    direction("layers.2.samples", k=5, kind=SAMPLES),
)


@pytest.fixture
def bank(tmp_path: Path) -> str:
    path = tmp_path / "bank.safetensors"
    write_bank(path, BANK)
    return str(path)


def test_round_trip_is_exact(bank: str) -> None:
    for written, found in zip(BANK, read_bank(bank), strict=True):
        assert replace(written, vectors=found.vectors) == found
        assert found.vectors.dtype == np.float32
        assert np.array_equal(written.vectors, found.vectors)


def test_format_is_the_contract(bank: str) -> None:
    with safe_open(bank, framework="np") as file:
        assert sorted(file.keys()) == ["0", "1", "2", "3", "4"]
        record = json.loads(file.metadata()["deltalens"])
    assert record["schema"] == 1
    fields = "id layer kind space site sigma unit sign contrast source seeds"
    assert all(list(entry) == fields.split() for entry in record["directions"])


def test_references(bank: str) -> None:
    assert [d.id for d in read_directions(bank)] == [d.id for d in BANK[:-1]]  # no samples unless asked for
    assert [d.id for d in read_directions(f"{bank}#*.difference")] == ["layers.1.difference", "layers.2.difference"]
    assert read_direction(f"{bank}#layers.2.writers").vectors.shape == (3, 6)
    one = read_direction(f"{bank}#layers.2.writers:1")
    assert np.array_equal(one.vectors, BANK[2].vectors[1:2])
    assert one.sigma == (2.0,)
    with pytest.raises(BadInput, match="no direction layers"):
        read_direction(f"{bank}#layers.2.samples")
    hashed = Path(bank).with_name("a#b.safetensors")
    Path(bank).rename(hashed)
    assert len(read_directions(str(hashed))) == 4
    assert read_direction(f"{hashed}#embed.left").id == "embed.left"


@pytest.mark.parametrize(
    ("reference", "error", "fix"),
    [
        ("#layers.2.diference", "no direction layers.2.diference", "nearest name is layers.2.difference"),
        ("#layers.2.writers:3", "no vector 3", "layers.2.writers:0 to layers.2.writers:2"),
        ("#layers*", "names 3 directions", "layers.1.difference"),
        ("#embed.left", "has 9 entries (vocabulary), 6 are needed", "from this model"),
    ],
)
def test_wrong_references(bank: str, reference: str, error: str, fix: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_direction(bank + reference, width=6)
    assert error in caught.value.error
    assert fix in str(caught.value.fix)


def damaged(path: Path, record: object, tensors: dict[str, np.ndarray]) -> str:
    save_file(tensors, path, metadata={"deltalens": record if isinstance(record, str) else json.dumps(record)})
    return str(path)


ENTRY = {
    **{"id": "a", "layer": 1, "kind": "pca", "space": "residual", "site": None, "sigma": None, "unit": "raw"},
    **{"sign": "contrast", "contrast": "A − B", "source": {}, "seeds": []},
}
GOOD = np.ones((1, 4), np.float32)


@pytest.mark.parametrize(
    ("record", "tensors", "error"),
    [
        ("{", {"0": GOOD}, "no valid JSON"),
        ([], {"0": GOOD}, "is not a bank"),
        ({"schema": 2, "directions": [ENTRY]}, {"0": GOOD}, "schema 2"),
        ({"schema": 1, "directions": [{"id": "a"}]}, {"0": GOOD}, "other fields"),
        ({"schema": 1, "directions": [ENTRY | {"layer": "1"}]}, {"0": GOOD}, "no valid layer"),
        ({"schema": 1, "directions": [ENTRY | {"seeds": ["x"]}]}, {"0": GOOD}, "no valid seeds"),
        ({"schema": 1, "directions": [ENTRY | {"sigma": [1.0, 2.0]}]}, {"0": GOOD}, "1 vectors and 2 sigma"),
        ({"schema": 1, "directions": [ENTRY]}, {"0": GOOD, "1": GOOD}, "other tensors"),
        ({"schema": 1, "directions": [ENTRY, ENTRY]}, {"0": GOOD, "1": GOOD}, "two directions alike"),
        ({"schema": 1, "directions": [ENTRY]}, {"0": GOOD[0]}, "not a float32 matrix"),
        ({"schema": 1, "directions": [ENTRY]}, {"0": GOOD.astype(np.float64)}, "not a float32 matrix"),
        ({"schema": 1, "directions": [ENTRY]}, {"0": GOOD * np.nan}, "NaN or Inf"),
        ({"schema": 1, "directions": [ENTRY]}, {"0": GOOD * 0}, "points nowhere"),
    ],
)
def test_bad_banks(tmp_path: Path, record: object, tensors: dict[str, np.ndarray], error: str) -> None:
    with pytest.raises(BadInput, match=error):
        read_bank(damaged(tmp_path / "bank.safetensors", record, tensors))


def test_files_that_are_no_bank(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_bank(tmp_path / "missing.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BadInput, match="truncated"):
        read_bank(tmp_path / "text")
    save_file({"0": GOOD}, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match="is not a bank"):
        read_bank(tmp_path / "model.safetensors")


def test_what_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    for bad, error in (
        ([], "no direction"),
        ([direction("a"), direction("a")], "two directions are called a"),
        ([direction("a", vectors=np.full((1, 3), np.inf, np.float32))], "NaN or Inf"),
    ):
        with pytest.raises(BadInput, match=error):
            write_bank(path, bad)
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadInput, match="cannot write"):
        write_bank(tmp_path / "missing" / "bank.safetensors", [direction("a")])


def test_a_bank_whose_parts_do_not_belong_together_is_refused(tmp_path: Path) -> None:
    made = direction("layers.1.difference", source={"samples": "layers.1.samples"})
    for first in (0, 5, "two", None):
        rows = direction("layers.1.samples", k=5, kind=SAMPLES, source={} if first == 0 else {"first": first})
        path = tmp_path / f"{first}.safetensors"
        write_bank(path, [made, rows])
        if first is None:
            assert len(read_bank(path)) == 2
            continue
        with pytest.raises(BadInput, match="are no samples of"):
            read_bank(path)
    for wrong in ({"unit": "bogus"}, {"source": {"prompts": 7}}, {"source": {"prompts": [[1]]}}):
        write_bank(tmp_path / "wrong.safetensors", [replace(made, **wrong)])
        with pytest.raises(BadInput, match="badly"):
            read_bank(tmp_path / "wrong.safetensors")
