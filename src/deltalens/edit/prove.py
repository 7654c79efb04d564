"""The renderings of one edit, run side by side: the same logits in float32 before rounding, or no edit at all."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltalens.checkpoint.dtypes import READABLE
from deltalens.checkpoint.header import TensorInfo
from deltalens.checkpoint.names import stem
from deltalens.checkpoint.pair import Row
from deltalens.checkpoint.read import Reader
from deltalens.checkpoint.source import INDEX
from deltalens.checkpoint.write import write_safetensors
from deltalens.edit.adapter import read_adapter
from deltalens.edit.checkpoint import write_companions
from deltalens.edit.hook import Addition, added, hook
from deltalens.edit.lora import inexact, to_adapter, write_lora
from deltalens.edit.plan import Plan
from deltalens.edit.rounding import generator, rounded
from deltalens.edit.swap import as_stored, named, swap, view_of
from deltalens.edit.tensors import affected, changes, form
from deltalens.errors import Refused
from deltalens.model.forward import forward, left_padded
from deltalens.model.load import load_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-4
"""Largest difference of two renderings, in units of the largest |logit|."""

_ROWS, _TOKENS = 4, 24  # random ids reach every matrix; longer texts would only repeat that


@dataclass(frozen=True, slots=True)
class Proof:
    """What was compared with the edit swapped into the loaded model.

    Attributes:
        differences: Largest |difference| of logits over the largest |logit|, by rendering.
        left_out: Renderings that cannot take the edit, with the reason.
        rounding: The same measure for each tensor rounded to its stored dtype alone, by canonical name.
        rounded: The same for all of them together: the written checkpoint.
        effect: The same for the model without the edit: how much there was to agree on.
    """

    differences: Mapping[str, float]
    left_out: Mapping[str, str]
    rounding: Mapping[str, float]
    rounded: float
    effect: float


def prove(opened: Plan, seed: int | None = None, prompts: Sequence[Sequence[int]] | None = None) -> Proof:
    """Run swap, hook, lora and checkpoint of an edit in float32 on the CPU, and compare their logits.

    The whole model is loaded, and for the checkpoint a float32 copy of it lies on disk for the while.

    Args:
        opened: The edit.
        seed: Of stochastic rounding, for the rounding gap.
        prompts: Token ids; by default random ones.

    Raises:
        BadInput: The model cannot be loaded.
        Refused: Two renderings disagree by more than 1e-4 of the largest |logit|.
    """
    with tempfile.TemporaryDirectory(prefix="deltalens-") as name:
        folder = Path(name)
        model = _start(opened, folder / "start")
        ids = _random_ids(model) if prompts is None else prompts
        untouched = logits(model, ids)
        with swap(model, opened):
            reference = logits(model, ids)
        differences: dict[str, float] = {}
        left_out: dict[str, str] = {}
        try:
            with hook(model, opened):
                differences["hook"] = _gap(logits(model, ids), reference)
        except Refused as problem:
            left_out["hook"] = problem.error
        if rest := inexact(opened):
            left_out["lora"] = f"no adapter holds {len(rest)} of the changes exactly, such as that of {rest[0]}"
        else:
            write_lora(opened, to_adapter(opened), folder / "lora")
            with _applied(model, folder / "lora"):
                differences["lora"] = _gap(logits(model, ids), reference)
        written = _float32(opened, folder / "checkpoint")
        differences["checkpoint"] = _gap(logits(written, ids), reference)
        for rendering, difference in differences.items():
            if not difference <= TOLERANCE:
                raise Refused(
                    f"{rendering} and swap disagree: their logits differ by {difference:.1e} of the largest, "
                    f"above {TOLERANCE:.0e}",
                    "report this edit: nothing was written",
                )
        single, together = _rounding(model, opened, ids, seed)
    return Proof(differences, left_out, single, together, _gap(untouched, reference))


def logits(model: "PreTrainedModel", prompts: Sequence[Sequence[int]]) -> Float[Tensor, "rows width vocabulary"]:
    """All logits of some prompts, 0 where a row is padded."""
    ids, mask = left_padded(prompts, model.device)
    with torch.no_grad():
        found, _ = forward(model, ids, mask, ids.shape[1])
    return found.float() * mask[..., None]


def _gap(found: Tensor, reference: Tensor) -> float:
    return float((found - reference).abs().max() / reference.abs().max())


def _random_ids(model: "PreTrainedModel") -> list[list[int]]:
    generator = np.random.default_rng(0)
    return generator.integers(0, model.config.get_text_config().vocab_size, (_ROWS, _TOKENS)).tolist()


def _start(opened: Plan, folder: Path) -> "PreTrainedModel":
    """The weights that the edit starts from, under the config that the edited model will have."""
    folder.mkdir()
    write_companions(opened, folder)
    for path in opened.carrier.files:
        (folder / path.name).symlink_to(path.resolve())
    return load_directory(folder, "float32", "cpu")[0]


def _applied(model: "PreTrainedModel", folder: Path) -> AbstractContextManager[None]:
    """The adapter as read back from its files, on the modules that it names."""
    modules = {stem(name): module for name, module in model.named_modules()}
    return added(
        [
            Addition(modules[name], torch.from_numpy(f.left).float(), torch.from_numpy(f.right).float())
            for name, f in read_adapter(str(folder)).items()
        ]
    )


def _float32(opened: Plan, folder: Path) -> "PreTrainedModel":
    """The edited checkpoint as it would be written, but in float32, read back by transformers."""
    folder.mkdir()
    write_companions(opened, folder)
    (folder / INDEX).unlink(missing_ok=True)
    rows = {opened.stored(row).info.name: row for row in affected(opened)}
    tensors = opened.carrier.tensors
    entries = [(t.name, "F32" if t.dtype in READABLE else t.dtype, t.shape) for t in tensors.values()]

    def load(name: str) -> np.ndarray | bytes:
        return _whole(opened, tensors[name], rows.get(name))

    write_safetensors(folder / "model.safetensors", entries, load, {"format": "pt"})
    return load_directory(folder, "float32", "cpu")[0]


def _whole(opened: Plan, info: TensorInfo, row: Row | None) -> np.ndarray | bytes:
    if info.dtype not in READABLE:
        with info.file.open("rb") as file:
            file.seek(info.start)
            return file.read(info.end - info.start)
    with Reader(info) as reader:
        whole = reader.all()
    if row is not None:
        edited = as_stored(row, form(opened, row).dense()).numpy()
        whole[: len(edited)] = edited  # of a vocabulary the rows that both sides have
    return whole


def _rounding(
    model: "PreTrainedModel", opened: Plan, ids: Sequence[Sequence[int]], seed: int | None
) -> tuple[dict[str, float], float]:
    """What rounding one edited tensor, and what rounding all of them, moves the logits by."""
    single: dict[str, float] = {}
    with swap(model, opened):
        reference, parameters = logits(model, ids), named(model)
        stored: list[tuple[Tensor, Tensor]] = []
        for row, made in changes(opened):
            place, info = view_of(parameters, row), opened.stored(row).info
            exact, chance = place.clone(), None if seed is None else generator(row.name.name, seed)
            place.copy_(as_stored(row, rounded(made.dense(), info.dtype, chance)))
            single[row.name.name] = _gap(logits(model, ids), reference)
            stored.append((place, place.clone()))
            place.copy_(exact)
        for place, value in stored:
            place.copy_(value)
        return single, _gap(logits(model, ids), reference)
