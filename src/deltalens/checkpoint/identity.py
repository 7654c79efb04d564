"""What makes a checkpoint that checkpoint: its commit, or its shards' headers and bytes, never its place."""

import hashlib
import os
from pathlib import Path
from typing import Any

from deltalens.checkpoint.header import unreadable
from deltalens.checkpoint.source import Checkpoint

_SAMPLES = 64
_SAMPLE_BYTES = 4096
_CHUNK = 2**24
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What beside the weights decides what a model does."""


def identity(ckpt: Checkpoint, verify: bool = False) -> dict[str, Any]:
    """A JSON-ready identity, the same wherever the files lie.

    Args:
        ckpt: The checkpoint.
        verify: Hash every byte as well, key `sha256` of each file.

    Returns:
        `{"commit": …}` for a hub repository, else `{"files": [{name, size, header_sha256, sample_sha256}]}`.
    """
    found: dict[str, Any] = {} if ckpt.revision is None else {"commit": ckpt.revision}
    if ckpt.revision is None or verify:
        found["files"] = [_file(path, verify) for path in ckpt.files]
    return found


def behaviour_identity(ckpt: Checkpoint) -> dict[str, Any]:
    """`identity` and the SHA-256 of the files that decide what its weights do: config, tokenizer and template."""
    files = {name: path for name in _SETTINGS if (path := ckpt.file(name)) is not None}
    try:
        hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    except OSError as problem:
        raise unreadable(ckpt.path, problem) from None
    return identity(ckpt) | {"settings": hashes}


def mtimes(ckpt: Checkpoint) -> dict[str, int]:
    """Modification time in nanoseconds by file name: it guards against a change during one run, no more."""
    try:
        return {path.name: path.stat().st_mtime_ns for path in ckpt.files}
    except OSError as problem:
        raise unreadable(ckpt.path, problem) from None


def _file(path: Path, verify: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            header = hashlib.sha256(file.read(min(length, size))).hexdigest()
            sample = hashlib.sha256()
            for i in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                sample.update(file.read(_SAMPLE_BYTES))
            found = {
                "name": path.name,
                "size": size,
                "header_sha256": header,
                "sample_sha256": sample.hexdigest(),
            }
            if verify:
                file.seek(0)
                whole = hashlib.sha256()
                while chunk := file.read(_CHUNK):
                    whole.update(chunk)
                found["sha256"] = whole.hexdigest()
    except OSError as problem:
        raise unreadable(path, problem) from None
    return found
