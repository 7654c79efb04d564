"""Read and validate the header of a safetensors file: 8 bytes of length, then JSON. No weight is read."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from deltalens.checkpoint.dtypes import DTYPES
from deltalens.errors import BadInput

MAX_JSON_BYTES = 100_000_000  # the format's own cap on a header
CORRUPT = "download or save the file again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one stored tensor lies.

    Args:
        name: The stored name.
        dtype: The safetensors dtype name.
        shape: The stored shape.
        file: The file that holds it.
        start: First byte, counted from the start of the file.
        end: One past the last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of entries."""
        return prod(self.shape)


def read_json(path: Path) -> Any:
    """The parsed content of a JSON file; whatever is wrong with it is bad input naming the file."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise BadInput(f"{path} is not a regular file")
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
    except OSError as problem:
        raise unreadable(path, problem) from None
    if len(text) > MAX_JSON_BYTES:
        raise BadInput(f"{path} is larger than {MAX_JSON_BYTES // 10**6} MB, which no JSON file of a model is")
    return parse_json(text, path)


def parse_json(text: bytes, path: Path) -> Any:
    """JSON from bytes; a repeated key, a bad encoding and a nesting bomb are bad input."""
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_no_repeats)
    except RecursionError:
        raise BadInput(f"the JSON in {path} is nested too deeply", CORRUPT) from None
    except ValueError as problem:  # also UnicodeDecodeError, and integers of thousands of digits
        raise BadInput(f"{path} holds no valid JSON ({one_line(problem)})", CORRUPT) from None


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice")
    return found


def one_line(problem: Exception) -> str:
    """A foreign error's message, short and on one line."""
    return " ".join(str(problem).split())[:200] or type(problem).__name__


def unreadable(path: Path, problem: OSError) -> BadInput:
    """The refusal for a file that the system would not let us read."""
    return BadInput(f"cannot read {path}: {(problem.strerror or one_line(problem)).lower()}")


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of one safetensors file, by stored name in file order.

    Args:
        path: The file; it may be a symbolic link, as in the hub's cache.

    Raises:
        BadInput: The file is empty, truncated, or its header contradicts itself or the file's size.
    """
    try:
        if not path.is_file():
            raise BadInput(f"{path}: {'is not a regular file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise BadInput(f"{path} is {'empty' if size == 0 else 'truncated'} ({size} bytes)", CORRUPT)
            length = int.from_bytes(prefix, "little")
            if length > size - 8:
                raise BadInput(f"{path}: header longer than the file ({length} of {size} bytes)", CORRUPT)
            if length > MAX_JSON_BYTES:
                raise BadInput(f"{path}: header of {length} bytes, above the format's 100 MB", CORRUPT)
            text = file.read(length)
    except OSError as problem:
        raise unreadable(path, problem) from None
    if len(text) < length:
        raise BadInput(f"{path} ends inside its header", CORRUPT)
    header = parse_json(text, path)
    if not isinstance(header, dict):
        raise BadInput(f"the header of {path} is a JSON {json_type(header)}, not an object", CORRUPT)
    if not isinstance(header.pop("__metadata__", {}), dict | None):
        raise BadInput(f"the metadata in {path} is not an object", CORRUPT)
    infos = [tensor_info(name, entry, path, 8 + length) for name, entry in header.items()]
    infos.sort(key=lambda info: (info.start, info.end))
    _check_layout(path, infos, 8 + length, size)
    return {info.name: info for info in infos}


def tensor_info(name: str, entry: Any, path: Path, data: int) -> TensorInfo:
    """One header entry, validated by itself; `data` is where the weights begin in the file."""
    where = f"tensor {name!r} in {path}"
    if any("\ud800" <= c <= "\udfff" for c in name):
        raise BadInput(f"{where} has a name that is not Unicode text", CORRUPT)
    if not isinstance(entry, dict):
        raise BadInput(f"{where} is described by a JSON {json_type(entry)}, not an object", CORRUPT)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise BadInput(f"{where} has no dtype", CORRUPT)
    if not _sizes(shape) or len(shape) > 64 or prod(max(n, 1) for n in shape) >= 2**63:  # numpy's own limits
        raise BadInput(f"{where} has no valid shape", CORRUPT)
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadInput(f"{where} has invalid data_offsets", CORRUPT)
    start, end = offsets
    if dtype in DTYPES and prod(shape) * DTYPES[dtype].bits != 8 * (end - start):
        raise BadInput(f"{where}: {end - start} bytes do not hold shape {shape} of {dtype}", CORRUPT)
    return TensorInfo(name, dtype, tuple(shape), path, data + start, data + end)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_layout(path: Path, infos: list[TensorInfo], data: int, size: int) -> None:
    """The format wants tensors back to back, from the end of the header to the end of the file."""
    end = data
    for info in infos:
        if info.end > size:
            raise BadInput(f"{path} is truncated: tensor {info.name!r} ends {info.end - size} bytes beyond it", CORRUPT)
        if info.start < end:
            raise BadInput(f"{path}: tensor {info.name!r} overlaps another", CORRUPT)
        if info.start > end:
            raise BadInput(f"{path}: {info.start - end} bytes before tensor {info.name!r} are no tensor's", CORRUPT)
        end = info.end
    if end < size:
        raise BadInput(f"{path}: the last {size - end} bytes are no tensor's", CORRUPT)


def json_type(value: Any) -> str:
    """What JSON calls the type of a parsed value."""
    kinds = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")
