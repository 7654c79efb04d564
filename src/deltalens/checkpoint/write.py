"""Write a safetensors file tensor by tensor, header first, so that it may be larger than memory."""

import json
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import numpy as np

from deltalens.checkpoint.atomic import atomic
from deltalens.checkpoint.dtypes import DTYPES

Entry = tuple[str, str, tuple[int, ...]]
_ALIGN = 8  # the format's own: numpy and torch then map the data without a copy


def write_safetensors(
    path: Path, entries: Sequence[Entry], load: Callable[[str], bytes | np.ndarray], metadata: dict[str, str]
) -> None:
    """Write tensors to a safetensors file that appears under its name only when it is complete.

    The bytes depend on the arguments alone.

    Args:
        path: The file; its directory must exist.
        entries: Name, safetensors dtype and shape of each tensor, in file order.
        load: Gives one tensor by name when its turn comes: raw little-endian bytes, or an array that holds just
            those (it is not converted).
        metadata: The free text of the header.

    Raises:
        ValueError: `load` gave another number of bytes than the entry promises: a mistake of the caller.
        BadInput: The system refused to write.
    """
    header, sizes = _header(entries, metadata)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for (name, _, _), size in zip(entries, sizes, strict=True):
            data = load(name)
            raw = data if isinstance(data, bytes) else np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
            if len(raw) != size:
                raise ValueError(f"{name}: {len(raw)} bytes in place of {size}")
            file.write(raw)


def _header(entries: Sequence[Entry], metadata: dict[str, str]) -> tuple[bytes, list[int]]:
    """The length prefix and padded JSON, and the size of each tensor in bytes."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    sizes, end = [], 0
    for name, dtype, shape in entries:
        if name in header:
            raise ValueError(f"two tensors called {name}")
        size = prod(shape) * DTYPES[dtype].bits // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        sizes.append(size)
        end += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGN)
    return len(text).to_bytes(8, "little") + text, sizes
