"""Blocks of tensors: the right numbers, only the bytes asked for, and a file that changes is noticed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from deltalens.checkpoint.read import Reader
from deltalens.checkpoint.source import TensorInfo, open_checkpoint
from deltalens.errors import BadInput

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def read_all(info: TensorInfo) -> np.ndarray:
    with Reader(info) as tensor:
        return tensor.all()


def read_block(info: TensorInfo, start: int, stop: int, axis: int = 0) -> np.ndarray:
    with Reader(info) as tensor:
        return tensor.cols(start, stop) if axis else tensor.rows(start, stop)


def stored(folder: Path, tensor: torch.Tensor) -> TensorInfo:
    save_file({"a": torch.arange(3), "x": tensor, "z": torch.ones(5)}, folder / "m.safetensors")
    return open_checkpoint(str(folder / "m.safetensors")).tensors["x"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 9), (9, 1), (13, 17), (2, 3, 4), (0, 3), (3, 0)], ids=str)
def test_all_of_a_tensor(shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.randn(shape, dtype=torch.float64).to(dtype)
    read = read_all(stored(tmp_path, tensor))
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    assert np.array_equal(read, tensor.float().numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_pattern(dtype: torch.dtype, tmp_path: Path) -> None:
    """Subnormals, zeros of both signs, infinities and NaN included."""
    tensor = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).reshape(256, 256)
    read = read_all(stored(tmp_path, tensor))
    want = tensor.float().numpy()
    assert np.array_equal(np.isnan(read), np.isnan(want))
    number = ~np.isnan(want)
    assert np.array_equal(read.view(np.uint32)[number], want.view(np.uint32)[number])


def test_a_float64_beyond_float32_becomes_infinite_without_a_warning(tmp_path: Path) -> None:
    read = read_all(stored(tmp_path, torch.tensor([1e300, -1e300, 1.0], dtype=torch.float64)))
    assert read.tolist() == [np.inf, -np.inf, 1.0]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 22), st.integers(0, 22), st.sampled_from(DTYPES))
def test_blocks_are_slices(tmp_path: Path, rows: int, cols: int, start: int, stop: int, dtype: torch.dtype) -> None:
    tensor = torch.arange(rows * cols, dtype=torch.float32).reshape(rows, cols).to(dtype)
    info, want = stored(tmp_path, tensor), tensor.float().numpy()
    for axis, part in ((0, want[start:stop]), (1, want[:, start:stop])):
        read = read_block(info, start, stop, axis)
        assert np.array_equal(read, part)
        assert read.flags.c_contiguous


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn], ids=str)
def test_other_dtypes_are_bad_input(dtype: torch.dtype, tmp_path: Path) -> None:
    info = stored(tmp_path, torch.zeros(2, 2).to(dtype))
    with pytest.raises(BadInput, match=f"tensor 'x' .* has dtype {re.escape(info.dtype)}"):
        read_all(info)


def test_a_file_cut_after_opening_is_bad_input(tmp_path: Path) -> None:
    info = stored(tmp_path, torch.randn(100, 100))
    os.truncate(info.file, info.end - 10)
    assert read_block(info, 0, 50).shape == (50, 100)
    with pytest.raises(BadInput, match="became shorter"):
        read_all(info)
    info.file.unlink()
    with pytest.raises(BadInput, match="no such file"):
        read_all(info)


def test_a_closed_reader_reads_no_more(tmp_path: Path) -> None:
    with Reader(stored(tmp_path, torch.randn(4, 4))) as tensor:
        tensor.rows(0, 2)
    tensor.close()
    with pytest.raises(ValueError, match="closed"):
        tensor.rows(0, 2)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("method", ["rows", "cols"])
def test_a_block_costs_a_block_and_no_torch(method: str, tmp_path: Path) -> None:
    """A hundredth of a 64 MB tensor is read with a few MB, in a process that never loads torch."""
    info = stored(tmp_path, torch.zeros(4096, 8192, dtype=torch.bfloat16))
    program = f"""
import sys
from pathlib import Path
from deltalens.checkpoint.source import open_checkpoint
from deltalens.checkpoint.read import Reader
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
info = open_checkpoint(sys.argv[1]).tensors["x"]
before = peak()
with Reader(info) as tensor:
    block = tensor.{method}(10, 50)
assert block.any() == False
assert "torch" not in sys.modules
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program, str(info.file)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16_000  # kB
