"""Read blocks of one tensor as float32, never more of it than was asked for.

`safe_open(..., backend="pread").get_slice(name)[a:b]` of safetensors 0.8 reads the whole tensor, then
slices (measured: 224 MB read and held for a block of 4 MB, by rows as by columns), and its mmap counts every page
that it touched in the process's peak. So the validated offsets of our own header are read with `preadv`, straight
into the array that is handed out.
"""

import os

import numpy as np

from deltalens.checkpoint.dtypes import READABLE
from deltalens.checkpoint.header import TensorInfo, unreadable
from deltalens.errors import BadInput

BLOCK_BYTES = 2**24
"""Bytes of one block as float32: as fast as 64 MB, and several blocks live at once."""

HELD_ENTRIES = 2**27
"""Up to here (512 MB) a difference is held as one float32 array; a larger one is read again for every pass."""

_STORED = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_MOST = 2**30  # one preadv moves less than 2 GiB


class Reader:
    """An open tensor: `with Reader(info) as tensor: tensor.rows(0, 128)`. Safe to share between threads.

    Every method returns a new C-contiguous float32 array in the stored orientation; float64 is rounded.

    Raises:
        BadInput: The dtype is not BF16, F16, F32 or F64, or the file is not what its header was read from.
    """

    def __init__(self, info: TensorInfo) -> None:
        if info.dtype not in READABLE:
            raise BadInput(f"tensor {info.name!r} in {info.file} has dtype {info.dtype}, which is not read")
        self.info = info
        self._stored = np.dtype(_STORED[info.dtype])
        try:
            self._fd: int | None = os.open(info.file, os.O_RDONLY)
        except OSError as problem:
            raise unreadable(info.file, problem) from None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a closed reader reads no more."""
        fd, self._fd = getattr(self, "_fd", None), None
        if fd is not None:
            os.close(fd)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of a matrix, or of any tensor along its first dimension: one contiguous read."""
        first, *rest = self.info.shape
        start, stop, _ = slice(start, stop).indices(first)
        raw = np.empty((max(0, stop - start), *rest), self._stored)
        width = self._stored.itemsize * (self.info.elements // first if first else 0)
        self._fill(raw, self.info.start + start * width)
        return _float32(raw, self.info.dtype)

    def cols(self, start: int, stop: int) -> np.ndarray:
        """Columns [start, stop) of a matrix: one small read for each row, exactly the bytes of the block."""
        rows, cols = self.info.shape
        start, stop, _ = slice(start, stop).indices(cols)
        if (start, stop) == (0, cols):
            return self.rows(0, rows)
        raw = np.empty((rows, max(0, stop - start)), self._stored)
        if raw.size:
            offset = self.info.start + start * self._stored.itemsize
            for row in raw:
                self._fill(row, offset)
                offset += cols * self._stored.itemsize
        return _float32(raw, self.info.dtype)

    def all(self) -> np.ndarray:
        """The whole tensor."""
        raw = np.empty(self.info.shape, self._stored)
        self._fill(raw, self.info.start)
        return _float32(raw, self.info.dtype)

    def _fill(self, raw: np.ndarray, offset: int) -> None:
        """Read the bytes at `offset` of the file into a contiguous array."""
        if self._fd is None:
            raise ValueError("the reader is closed")
        left = raw.reshape(-1).view(np.uint8).data
        while len(left):
            try:
                count = os.preadv(self._fd, [left[:_MOST]], offset)
            except OSError as problem:
                raise unreadable(self.info.file, problem) from None
            if count == 0:
                fix = "leave the checkpoint alone while it is measured"
                raise BadInput(f"{self.info.file} became shorter than its header says", fix)
            left, offset = left[count:], offset + count


def read_matrix(info: TensorInfo, block_bytes: int = BLOCK_BYTES) -> np.ndarray:
    """A whole 2-D tensor as float32 in its stored orientation, read in blocks that bound the upcast's temporaries.

    Args:
        info: The tensor.
        block_bytes: Bytes of a block as float32.
    """
    whole = np.empty(info.shape, np.float32)
    step = max(1, block_bytes // (4 * max(1, info.shape[1])))
    with Reader(info) as reader:
        for start in range(0, info.shape[0], step):
            whole[start : start + step] = reader.rows(start, start + step)
    return whole


def _float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Stored numbers as float32: exact from 16 bits, which is where a difference must be taken."""
    if dtype == "F32":
        return raw
    if dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        wide = np.empty(raw.shape, np.uint32)
        np.left_shift(raw, 16, out=wide, dtype=np.uint32)
        return wide.view(np.float32)
    with np.errstate(all="ignore"):  # an overflow becomes Inf and is refused where the values are judged
        return raw.astype(np.float32)
