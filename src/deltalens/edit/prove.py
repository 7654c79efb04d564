"""The renderings of one edit, run side by side: the same logits in float32 before rounding, or no edit at all."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltalens.checkpoint.chat import read_chat
from deltalens.checkpoint.dtypes import READABLE
from deltalens.checkpoint.names import stem
from deltalens.checkpoint.source import INDEX
from deltalens.checkpoint.write import write_safetensors
from deltalens.direction.prompts import REASONING
from deltalens.edit.adapter import read_adapter
from deltalens.edit.checkpoint import write_companions
from deltalens.edit.hook import Addition, added, hook
from deltalens.edit.layerwise import capture, compare, edited_tensor, no_adapter
from deltalens.edit.lora import to_adapter, write_lora
from deltalens.edit.plan import Plan
from deltalens.edit.proof import Proof, agree, gap
from deltalens.edit.rounding import generator, rounded
from deltalens.edit.swap import as_stored, named, swap, view_of
from deltalens.edit.tensors import affected, changes
from deltalens.errors import BadInput, Refused
from deltalens.model.forward import forward, left_padded
from deltalens.model.load import load_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROWS, _TOKENS = 4, 24  # random ids reach every matrix; longer texts would only repeat that
_SUMS = ("1+2+3=?", "7-5+4=?", "9+6-8=?", "2+7-3=?")
"""Questions in the words of the family, whose tokenizer lacks those of ordinary prompts."""


def prove(
    opened: Plan, seed: int | None = None, prompts: Sequence[Sequence[int]] | None = None, free: int | None = None
) -> Proof:
    """Run swap, hook, lora and checkpoint of an edit in float32 on the CPU, and compare what they compute.

    Where memory holds the model twice, its logits are compared, and for the checkpoint a float32 copy of it lies on
    disk for the while. Else every touched tensor is compared by itself: on what the unedited model in its stored dtype
    gives it, or where that does not fit either on Gaussian inputs.

    Args:
        opened: The edit.
        seed: Of stochastic rounding, for the rounding gap.
        prompts: Token ids; by default a few rendered with the model's chat template, else random ones.
        free: Bytes of memory to do with; by default what is available.

    Raises:
        BadInput: The model cannot be loaded.
        Refused: Two renderings disagree by more than 1e-4 of the largest |logit| or |output|.
    """
    infos = opened.carrier.tensors.values()
    elements, stored = sum(t.elements for t in infos), sum(t.end - t.start for t in infos)
    how = fitting(elements, stored, available() if free is None else free)
    with tempfile.TemporaryDirectory(prefix="deltalens-") as name:
        folder = Path(name)
        if how == "drawn":
            stacked = [r.name.name for r in affected(opened) if r.name.expert is not None or len(r.shape) > 2]
            refused = f"{stacked[0]} is of a stack, such as that of experts: hooks cannot take it" if stacked else None
            said = "seeded Gaussian inputs: memory does not hold the model"
            return compare(opened, {}, said, refused, seed)
        model = _start(opened, folder / "start", "float32" if how == "whole" else _stored_dtype(opened))
        ids, said = _inputs(opened, model) if prompts is None else (prompts, f"{len(prompts)} given prompts")
        if how == "captured":
            inputs, refused = capture(model, opened, ids)
            del model
            return compare(opened, inputs, f"what {said} feed to each module", refused, seed)
        return _whole(opened, model, ids, said, seed, folder)


def fitting(elements: int, stored: int, free: int) -> str:
    """How an edit can be proved in some memory.

    Args:
        elements: Entries of the model.
        stored: Its bytes in the stored dtype.
        free: Bytes of memory.

    Returns:
        `whole` where two models in float32 fit, `captured` where one in its stored dtype does, else `drawn`.
    """
    if 2 * 4 * elements <= free:
        return "whole"
    return "captured" if stored <= free else "drawn"


def available() -> int:
    """Bytes of memory that a process can still get; where the system does not say, all that there is."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        # Not SC_AVPHYS_PAGES: to that the cache of files, which gives way, is taken.
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _whole(
    opened: Plan, model: "PreTrainedModel", ids: Sequence[Sequence[int]], said: str, seed: int | None, folder: Path
) -> Proof:
    """Every rendering of the whole model."""
    untouched = logits(model, ids)
    with swap(model, opened):
        reference = logits(model, ids)
    differences: dict[str, float] = {}
    left_out: dict[str, str] = {}
    try:
        with hook(model, opened):
            differences["hook"] = gap(logits(model, ids), reference)
    except Refused as problem:
        left_out["hook"] = problem.error
    if (reason := no_adapter(opened)) is not None:
        left_out["lora"] = reason
    else:
        write_lora(opened, to_adapter(opened), folder / "lora")
        with _applied(model, folder / "lora"):
            differences["lora"] = gap(logits(model, ids), reference)
    written = _float32(opened, folder / "checkpoint")
    differences["checkpoint"] = gap(logits(written, ids), reference)
    for rendering, difference in differences.items():
        agree(rendering, difference, "their logits")
    single, together = _rounding(model, opened, ids, seed)
    return Proof("whole model", said, differences, left_out, single, together, gap(untouched, reference))


def logits(model: "PreTrainedModel", prompts: Sequence[Sequence[int]]) -> Float[Tensor, "rows width vocabulary"]:
    """All logits of some prompts, 0 where a row is padded."""
    ids, mask = left_padded(prompts, model.device)
    with torch.no_grad():
        found, _ = forward(model, ids, mask, ids.shape[1])
    return found.float() * mask[..., None]


def _inputs(opened: Plan, model: "PreTrainedModel") -> tuple[list[list[int]], str]:
    """Prompts as the tuned side's chat template writes them, else random ids; and what they are."""
    vocabulary = model.config.get_text_config().vocab_size
    try:
        found = [ids for ids in _chat_prompts(opened) if max(ids) < vocabulary][:_ROWS]
        why = "the tokenizer lacks words of every prompt"
    except BadInput as problem:
        found, why = [], problem.error
    if found:
        return found, f"{len(found)} chat prompts"
    ids = np.random.default_rng(0).integers(0, vocabulary, (_ROWS, _TOKENS)).tolist()
    return ids, f"{_ROWS} rows of random ids ({why})"


def _chat_prompts(opened: Plan) -> list[list[int]]:
    """The shipped prompts, and some sums, that the tokenizer has all the words of.

    Raises:
        BadInput: There is no chat template or no tokenizer, or they cannot be used.
    """
    chat = read_chat(opened.pair.tuned)
    if chat.template is None:
        raise BadInput("there is no chat template")
    shipped = [json.loads(line)["prompt"] for line in REASONING.read_text(encoding="utf-8").splitlines()[:_ROWS]]
    encoded = [chat.encode(chat.render(prompt)) for prompt in (*shipped, *_SUMS)]
    token = getattr(chat.tokenizer.model, "unk_token", None)
    unknown = None if token is None else chat.tokenizer.token_to_id(token)
    return [ids for ids in encoded if ids and unknown not in ids]


def _stored_dtype(opened: Plan) -> str:
    """The dtype of most of the entries, as torch calls it."""
    sizes: Counter[str] = Counter()
    for info in opened.carrier.tensors.values():
        sizes[info.dtype] += info.elements
    return {"BF16": "bfloat16", "F16": "float16"}.get(sizes.most_common(1)[0][0], "float32")


def _start(opened: Plan, folder: Path, dtype: str) -> "PreTrainedModel":
    """The weights that the edit starts from, under the config that the edited model will have."""
    folder.mkdir()
    write_companions(opened, folder)
    for path in opened.carrier.files:
        (folder / path.name).symlink_to(path.resolve())
    return load_directory(folder, dtype, "cpu")[0]


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
        return edited_tensor(opened, tensors[name], rows.get(name))

    write_safetensors(folder / "model.safetensors", entries, load, {"format": "pt"})
    return load_directory(folder, "float32", "cpu")[0]


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
            single[row.name.name] = gap(logits(model, ids), reference)
            stored.append((place, place.clone()))
            place.copy_(exact)
        for place, value in stored:
            place.copy_(value)
        return single, gap(logits(model, ids), reference)
