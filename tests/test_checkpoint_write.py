"""A written file is what safetensors reads, the same bytes each time, and never half there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from deltalens.checkpoint.header import read_header
from deltalens.checkpoint.write import write_safetensors
from deltalens.errors import BadInput

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.asfortranarray(np.arange(20, dtype=np.float16).reshape(4, 5)),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(3.0, np.float64),
    "raw": np.arange(4, dtype=np.uint16),
}
ENTRIES = [
    ("b", "F32", (2, 3)),
    ("a", "F16", (4, 5)),
    ("empty", "F32", (0, 4)),
    ("scalar", "F64", ()),
    ("raw", "BF16", (2, 2)),
]


def test_safetensors_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ENTRIES, lambda name: ARRAYS[name], {"deltalens": "{}", "a": "σ"})
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"a": "σ", "deltalens": "{}"}
        assert set(file.keys()) == set(ARRAYS)
        for name in ("b", "a", "empty", "scalar"):
            assert np.array_equal(file.get_tensor(name).numpy(), ARRAYS[name])
        assert file.get_tensor("raw").dtype == torch.bfloat16
    assert list(read_header(path)) == [name for name, _, _ in ENTRIES]
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_bytes_or_arrays_give_the_same_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_safetensors(one, ENTRIES, lambda name: ARRAYS[name], {"k": "v", "a": "b"})
    write_safetensors(two, ENTRIES, lambda name: np.ascontiguousarray(ARRAYS[name]).tobytes(), {"a": "b", "k": "v"})
    assert one.read_bytes() == two.read_bytes()


def test_tensors_are_asked_for_one_after_another(tmp_path: Path) -> None:
    asked: list[str] = []

    def load(name: str) -> bytes:
        asked.append(name)
        return bytes(8)

    write_safetensors(tmp_path / "x", [(n, "F32", (2,)) for n in "cab"], load, {})
    assert asked == ["c", "a", "b"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"old": torch.ones(2)}, path)
    before = path.read_bytes()

    def load(name: str) -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, [("a", "F32", (2,))], load, {})
    with pytest.raises(ValueError, match="4 bytes in place of 8"):
        write_safetensors(path, [("a", "F32", (2,))], lambda name: bytes(4), {})
    with pytest.raises(ValueError, match="two tensors"):
        write_safetensors(path, [("a", "F32", (2,))] * 2, lambda name: bytes(8), {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_directory_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot write .*no such file or directory"):
        write_safetensors(tmp_path / "gone" / "x", [], lambda name: b"", {})
