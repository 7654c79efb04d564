"""The renderings of one edit compared tensor by tensor: for a model that does not fit twice into memory in float32.

Each touched tensor is in turn the weight of a module of its own: a linear map, an embedding or a norm. Swapped,
hooked, with the adapter as read back, and as read back from a file, it must give the same output on the same input.
What this leaves open is whether the modules of the running model are those: the whole model, where it fits, shows it.
"""

import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from deltalens.checkpoint.dtypes import READABLE
from deltalens.checkpoint.embedding import tied
from deltalens.checkpoint.header import TensorInfo, read_header
from deltalens.checkpoint.pair import Row
from deltalens.checkpoint.read import Reader
from deltalens.checkpoint.write import write_safetensors
from deltalens.direction.spaces import role_kind
from deltalens.edit.adapter import Factors, read_adapter
from deltalens.edit.form import Form, Stored
from deltalens.edit.hook import Addition, added, factors, owners
from deltalens.edit.lora import Adapter, inexact, write_lora
from deltalens.edit.plan import Plan
from deltalens.edit.proof import Proof, agree, gap
from deltalens.edit.rounding import generator, rounded
from deltalens.edit.select import is_bias
from deltalens.edit.swap import as_stored, named
from deltalens.edit.tensors import affected, changes, form
from deltalens.errors import Refused
from deltalens.model.forward import forward, left_padded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Inputs = Mapping[str, Sequence[Tensor]]
"""What the modules of a tensor are given, by its canonical name: ids, or activations [tokens, width] in float32."""

_TOKENS = 8  # last ones of every prompt: enough for any weight to show, few enough to be kept for every layer
_GAUSSIAN = 32  # rows


def capture(model: "PreTrainedModel", opened: Plan, prompts: Sequence[Sequence[int]]) -> tuple[Inputs, str | None]:
    """What the module of every touched tensor is given in one pass, and why hooks cannot take the edit, if so."""
    parameters, found = named(model), dict[str, list[Tensor]]()
    handles, refused = [], None

    def keep(name: str, x: Tensor) -> None:
        last = x[:, -_TOKENS:] if x.ndim > 2 or not x.is_floating_point() else x[-_TOKENS * len(prompts) :]
        wide = last.reshape(-1, x.shape[-1]).float() if x.is_floating_point() else last.reshape(-1)
        found.setdefault(name, []).append(wide.cpu())

    for row in affected(opened):
        try:
            modules = owners(model, parameters, row)
        except Refused as problem:
            refused = refused or problem.error
            continue
        for module in modules:
            caught: Any = lambda _, args, name=row.name.name: keep(name, args[0])  # noqa: E731
            handles.append(module.register_forward_pre_hook(caught))
    try:
        ids, mask = left_padded(prompts, model.device)
        with torch.no_grad():
            forward(model, ids, mask, _TOKENS)
    finally:
        for handle in handles:
            handle.remove()
    return found, refused


def compare(opened: Plan, inputs: Inputs, said: str, refused: str | None, seed: int | None) -> Proof:
    """Run the renderings of every touched tensor on its inputs.

    A few float32 copies of one tensor at a time are in memory, and one on disk.

    Args:
        opened: The edit.
        inputs: Captured ones; where a tensor has none, seeded Gaussian ones of its width, or random ids.
        said: What the inputs are.
        refused: Why hooks cannot take the edit, if so.
        seed: Of stochastic rounding, for the rounding gap.

    Raises:
        Refused: Two renderings of a tensor disagree by more than 1e-4 of the largest output.
    """
    reasons = {"hook": refused, "lora": no_adapter(opened)}
    left_out = {rendering: reason for rendering, reason in reasons.items() if reason is not None}
    differences: dict[str, float] = {}
    rounding: dict[str, float] = {}
    effect, drawn = 0.0, 0
    for row, made in changes(opened):
        name, stored = row.name.name, opened.stored(row)
        start, edited = stored.rows(0, stored.shape[0]), made.dense()
        grid = rounded(edited, stored.info.dtype, None if seed is None else generator(name, seed))
        drawn += name not in inputs
        for x in inputs.get(name) or _drawn(opened, row):
            reference = _output(row, edited, x)
            for rendering, found in _renderings(opened, row, made, start, x, left_out).items():
                difference = agree(rendering, gap(found, reference), f"outputs of {name}")
                differences[rendering] = max(differences.get(rendering, 0.0), difference)
            effect = max(effect, gap(_output(row, start, x), reference))
            rounding[name] = max(rounding.get(name, 0.0), gap(_output(row, grid, x), reference))
    if inputs and drawn:
        said += f", Gaussian inputs for {drawn} of {len(rounding)} tensors that no hook reaches"
    return Proof("layer by layer", said, differences, left_out, rounding, None, effect)


def no_adapter(opened: Plan) -> str | None:
    """Why an adapter cannot take the edit, if so."""
    rest = inexact(opened)
    return f"no adapter holds {len(rest)} of the changes exactly, such as that of {rest[0]}" if rest else None


def edited_tensor(opened: Plan, info: TensorInfo, row: Row | None) -> np.ndarray | bytes:
    """A tensor of the carrier as float32, edited where it has a row; the bytes of one that is no number."""
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


def _renderings(
    opened: Plan, row: Row, made: Form, start: np.ndarray, x: Tensor, left_out: Container[str]
) -> dict[str, Tensor]:
    """Output of one tensor's module as every rendering but swap computes it."""
    name, stored = row.name.name, opened.stored(row)
    change = made - Form.of(stored)
    found: dict[str, Tensor] = {}
    if "hook" not in left_out:
        found["hook"] = _output(row, start, x, factors(change))
    with tempfile.TemporaryDirectory(prefix="deltalens-") as folder:
        if "lora" not in left_out:
            write_lora(opened, Adapter({name: Factors(change.left, change.right)}, {name: row}, {}), folder)
            (read,) = read_adapter(folder).values()
            pair = torch.from_numpy(read.left).float(), torch.from_numpy(read.right).float()
            found["lora"] = _output(row, start, x, pair)
        info, file = opened.carrier.tensors[stored.info.name], Path(folder, "edited.safetensors")
        write_safetensors(file, [(info.name, "F32", info.shape)], lambda _: edited_tensor(opened, info, row), {})
        written = Stored(read_header(file)[info.name], row.transposed)
        found["checkpoint"] = _output(row, written.rows(0, stored.shape[0]), x)
    return found


def _output(row: Row, weight: np.ndarray, x: Tensor, change: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
    """What a module with a weight [out, in] gives, with factors of a change hooked on."""
    values = nn.Parameter(torch.from_numpy(np.ascontiguousarray(weight)), requires_grad=False)
    module: nn.Module
    if is_bias(row):
        module, x = nn.Linear(1, len(values), device="meta"), torch.zeros(1, 1)  # whatever a bias is added to
        module.weight, module.bias = nn.Parameter(torch.zeros_like(values)), nn.Parameter(values[:, 0])
    elif len(row.shape) == 1:
        module = nn.RMSNorm(len(values), eps=1e-6)
        module.weight = nn.Parameter(values[:, 0])
    elif not x.is_floating_point():
        module = nn.Embedding.from_pretrained(values)
    else:
        module = nn.Linear(values.shape[1], values.shape[0], bias=False, device="meta")
        module.weight = values
    additions = [] if change is None else [Addition(module, *change, bias=is_bias(row))]
    with torch.no_grad(), added(additions):
        return module(x)


def _drawn(opened: Plan, row: Row) -> Iterator[Tensor]:
    """Gaussian inputs of a tensor's width; of an embedding ids, and of one that is the output head too both."""
    seeded = torch.Generator().manual_seed(0)
    shape, info = opened.stored(row).shape, opened.stored(row).info
    kind = role_kind(info.name, row.name.kind)
    table = kind in ("embed", "pos_embed")
    if table:
        yield torch.randint(shape[0], (_GAUSSIAN,), generator=seeded)
    if not table or (kind == "embed" and tied(opened.carrier)):
        width = shape[0] if len(row.shape) == 1 else shape[1]
        yield torch.randn(_GAUSSIAN, width, generator=seeded)
