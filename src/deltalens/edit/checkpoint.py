"""An edited checkpoint: its shards copied, the bytes of touched tensors overwritten, everything else left identical.

The directory is built under a temporary name, its weights under names that nothing loads, and takes its own name at the
very end: a process killed at any moment leaves nothing that can be loaded by mistake. Sources are only ever read.
"""

import errno
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from deltalens.checkpoint.atomic import TEMPORARY
from deltalens.checkpoint.header import one_line, read_header
from deltalens.checkpoint.identity import identity
from deltalens.checkpoint.source import INDEX, Checkpoint, hub_id, repository
from deltalens.direction.bank import split_reference
from deltalens.edit.card import card
from deltalens.edit.edit import Edit
from deltalens.edit.form import Form, Stored
from deltalens.edit.plan import Plan
from deltalens.edit.rounding import Gap, generator, rounded, to_bytes
from deltalens.edit.tensors import affected, changes
from deltalens.errors import BadInput, Refused
from deltalens.store.engine import Progress

SCHEMA = 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PART = ".part"  # nothing loads a file of this name
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".h5", ".msgpack", ".onnx")
_OF_TENSORS = ("dtype", "torch_dtype", "tie_word_embeddings", "vocab_size")
"""Settings that describe how tensors are stored: they follow the weights, all others the tuned side."""


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """An edited checkpoint.

    Attributes:
        path: Its directory.
        gaps: What rounding to the stored dtype made of every change, by canonical name.
    """

    path: Path
    gaps: Mapping[str, Gap]


def write_checkpoint(
    opened: Plan,
    out: str | Path,
    *,
    seed: int | None = None,
    share: float | None = None,
    command: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> Written:
    """Write the edited model as a checkpoint that any tool loads.

    Shards, index, dtypes, tying and untouched bytes are those of the side that the edit starts from; the tokenizer,
    template and config are the tuned side's. `reproduce/` holds what is needed to make it again, from any directory.

    Args:
        opened: The edit.
        out: A new or empty directory.
        seed: Of stochastic rounding; None rounds to nearest.
        share: Share of ‖Δ‖² touched, for the card.
        command: The command line to record.
        progress: Called after every tensor.

    Raises:
        BadInput: The system refused to write: no room, no right.
        Refused: `out` is a source, lies in one, or is not empty; or an edited tensor is not finite in its dtype.
    """
    out = Path(out).absolute()
    check_target(opened, out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder, lock = _claim(out)
    except OSError as problem:
        raise _unwritable(out, problem) from problem
    try:
        gaps = _write_weights(opened, folder, seed, progress)
        write_companions(opened, folder)
        _write_reproduce(opened, folder, gaps, seed, share, command)
        (folder / "README.md").write_text(card(opened, out.name, gaps, seed, share, command), encoding="utf-8")
        _settle(folder)
        for part in folder.glob(f"*{_PART}"):
            part.rename(part.with_name(part.name.removesuffix(_PART)))
        mask = os.umask(0)
        os.umask(mask)
        folder.chmod(0o777 & ~mask)
        folder.rename(out)  # an empty directory of that name is replaced
        _sync(out)
        _sync(out.parent)
    except OSError as problem:
        raise _unwritable(out, problem) from problem
    except UnicodeEncodeError as problem:  # files of names in another encoding can be read, but not recorded
        raise BadInput(
            f"cannot write {out}: the name of a model, a bank or --out is not UTF-8", "rename it"
        ) from problem
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
    return Written(out, gaps)


def _claim(out: Path) -> tuple[Path, int]:
    """An empty folder beside the target, and the descriptor whose lock makes it ours; what a killed run left is gone.

    Raises:
        Refused: Another process is writing the same target.
    """
    folder = out.parent / f"{TEMPORARY}{out.name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not folder.exists() or os.fstat(lock).st_ino != folder.stat().st_ino:  # its owner has just finished
            raise BlockingIOError
    except BlockingIOError as problem:
        os.close(lock)
        raise Refused(f"another process is writing {out}", "wait for it, or --out NEW") from problem
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    return folder, lock


def check_target(opened: Plan, out: Path) -> None:
    """Refuses a directory that is not new or empty, or that a source lies in or around.

    Raises:
        Refused: Naming what is in the way.
    """
    sources = {opened.pair.base.path, opened.pair.tuned.path}
    named = [opened.edit.tuned, *(name for name in opened.models if name not in ("base", "tuned"))]
    sources |= {Path(name) for name in named if name is not None and Path(name).exists()}
    for path in (source.resolve() for source in sources):
        folder = path if path.is_dir() else path.parent
        if out.resolve() == folder or folder in out.resolve().parents or out.resolve() in folder.parents:
            raise Refused(f"{out} would overwrite or enter the source {path}", "--out NEW")
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out} is not an empty directory", "--out NEW")


def _write_weights(
    opened: Plan, folder: Path, seed: int | None, progress: Callable[[Progress], None] | None
) -> dict[str, Gap]:
    """Copies every shard under a name that nothing loads, and overwrites the touched tensors in the copies."""
    for path in opened.carrier.files:
        shutil.copyfile(path, folder / (path.name + _PART))
    sizes = {row.name.name: opened.stored(row).info.end - opened.stored(row).info.start for row in affected(opened)}
    total, began = sum(sizes.values()), perf_counter()
    gaps: dict[str, Gap] = {}
    for row, form in changes(opened):
        name, stored = row.name.name, opened.stored(row)
        chance = None if seed is None else generator(name, seed)
        with (folder / (stored.info.file.name + _PART)).open("r+b") as file:
            gaps[name] = write_tensor(file.fileno(), stored, form, chance)
        if progress is not None:
            done = sum(sizes[written] for written in gaps)
            left = (perf_counter() - began) * (total - done) / max(done, 1)
            progress(Progress(name, len(gaps), len(sizes), done, total, left))
    for path in opened.carrier.files:
        copy = folder / (path.name + _PART)
        before, after = read_header(path), read_header(copy)
        spans = [[(t.name, t.dtype, t.shape, t.start, t.end) for t in header.values()] for header in (before, after)]
        if spans[0] != spans[1] or copy.stat().st_size != path.stat().st_size:
            raise Refused(f"{path} changed while it was copied", "leave the checkpoint alone and repeat")
    return gaps


def write_tensor(fd: int, stored: Stored, form: Form, chance: np.random.Generator | None) -> Gap:
    """Overwrites one tensor in an open copy of its shard, in blocks of rows.

    Raises:
        Refused: A value is NaN or beyond the dtype's range.
    """
    gap, info = Gap(), stored.info
    row, width = 0, info.elements // max(1, stored.shape[0]) * ((info.end - info.start) // max(1, info.elements))
    held: list[np.ndarray] = []  # what is stored turned is written whole
    for block in form.blocks():
        wanted = block.astype(np.float32)
        with np.errstate(all="ignore"):
            values = rounded(wanted, info.dtype, chance)
        if not np.isfinite(values).all():
            raise Refused(
                f"{info.name} would hold NaN or values beyond {info.dtype}", "a smaller strength, or fewer tensors"
            )
        before = stored.rows(row, row + len(block)).astype(np.float64)
        gap.add(before, block, values.astype(np.float64))
        if stored.transposed:
            held.append(values)
        else:
            _write_at(fd, to_bytes(values, info.dtype), info.start + row * width)
        row += len(block)
    if held:
        _write_at(fd, to_bytes(np.concatenate(held).T, info.dtype), info.start)
    return gap


def _write_at(fd: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while len(left):
        count = os.pwrite(fd, left, offset)
        left, offset = left[count:], offset + count


def write_companions(opened: Plan, folder: Path) -> None:
    """The small files: tokenizer, template, generation settings and config of the tuned side; the shards' index.

    Args:
        opened: The edit.
        folder: An existing directory.
    """
    carrier, voice = opened.carrier, opened.pair.tuned
    home = carrier.path if carrier.path.is_dir() else None
    if home is not None and (home / INDEX).is_file():
        shutil.copyfile(home / INDEX, folder / INDEX)
    spoken = voice.path if voice.path.is_dir() else None
    for path in sorted(spoken.iterdir()) if spoken is not None else []:
        skipped = path.name.endswith((*_WEIGHTS, ".index.json")) or path.name.startswith((".", "adapter_"))
        if path.is_file() and not skipped and path.name not in ("README.md", "config.json"):
            shutil.copyfile(path, folder / path.name)
    if voice.config:
        text = json.dumps(_config(carrier, voice), indent=2, ensure_ascii=False) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")


def _config(carrier: Checkpoint, voice: Checkpoint) -> dict[str, Any]:
    """The tuned side's config, except for what describes how the tensors are stored."""
    config = dict(voice.config)
    for source, target in ((carrier.config, config), *_inner(carrier.config, config)):
        for key in _OF_TENSORS:
            if key in source:
                target[key] = source[key]
            elif key in target and source:
                del target[key]
    return config


def _inner(source: dict[str, Any], target: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    if not isinstance(source.get("text_config"), dict) or not isinstance(target.get("text_config"), dict):
        return []
    target["text_config"] = dict(target["text_config"])
    return [(source["text_config"], target["text_config"])]


def _write_reproduce(
    opened: Plan, folder: Path, gaps: Mapping[str, Gap], seed: int | None, share: float | None, command: str
) -> None:
    """The edit, the banks it names, what its sources were, and what rounding did."""
    inner = folder / "reproduce"
    inner.mkdir()
    banks = sorted({split_reference(reference)[0] for reference in opened.directions})
    copies = {bank: f"bank-{i}-{Path(bank).name}" for i, bank in enumerate(banks)}
    for bank, name in copies.items():
        shutil.copyfile(bank, inner / name)
    (inner / "edit.toml").write_text(_from_anywhere(opened, copies).toml, encoding="utf-8")
    record = {
        "schema": SCHEMA,
        "command": command,
        "deltalens": version("deltalens"),
        "edit": opened.edit.record,
        "edit_hash": opened.edit.edit_hash,
        "starts_from": opened.edit.home,
        "sources": {
            side: {"source": ckpt.source, "identity": identity(ckpt)}
            for side, ckpt in (("base", opened.pair.base), ("tuned", opened.pair.tuned))
        },
        "banks": copies,
        "share_of_delta": share,
        "stochastic_rounding": seed,
        "environment": {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()},
        "rounding": {name: {"strength": gap.strength, "cosine": gap.cosine} for name, gap in gaps.items()},
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (inner / "record.json").write_text(text, encoding="utf-8")


def _from_anywhere(opened: Plan, copies: Mapping[str, str]) -> Edit:
    """The edit with its models by absolute path or commit, and its banks by the names of their copies beside it."""

    def model(source: str, side: str) -> str:
        if source.startswith("family:"):
            return source
        if not hub_id(source):
            return str(Path(source).expanduser().absolute())
        place = next(iter(opened.models[side].tensors.values())).file.parent  # …/snapshots/COMMIT
        return f"{repository(source)}@{place.name}" if place.parent.name == "snapshots" else source

    def other(source: str | None) -> str | None:
        return source if source in (None, "base", "tuned") else model(source, source)

    def bank(reference: str | None) -> str | None:
        if reference is None:
            return None
        path, wanted = split_reference(reference)
        return copies[path] if wanted is None else f"{copies[path]}#{wanted}"

    edit = opened.edit
    operations = tuple(
        replace(o, direction=bank(o.direction), **{f: other(getattr(o, f)) for f in ("plus", "minus", "reference")})
        for o in edit.operations
    )
    return Edit(model(edit.base, "base"), operations, None if edit.tuned is None else model(edit.tuned, "tuned"))


def _settle(folder: Path) -> None:
    """Everything on disk before anything has its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync(folder)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(out: Path, problem: OSError) -> BadInput:
    fix = "make room, then repeat" if problem.errno in _FULL else "--out a directory you may write"
    return BadInput(f"cannot write {out}: {(problem.strerror or one_line(problem)).lower()}", fix)
