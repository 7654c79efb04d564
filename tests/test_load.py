"""Loading: what is computed in which dtype and where, and every directory that must not load."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltalens.errors import BadInput
from deltalens.model.load import load, load_directory


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A copy of a family member, to be damaged."""
    from deltalens.checkpoint.source import resolve

    return Path(shutil.copytree(resolve("family:instruct"), tmp_path / "model"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_auto_is_float32_on_the_cpu_and_half_precision_is_upcast_exactly() -> None:
    model, tokenizer = load("family:instruct", device="cpu")
    half, _ = load("family:instruct", "float16", "cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    for (name, a), b in zip(model.named_parameters(), half.parameters(), strict=True):
        assert torch.equal(a, b.float()), name
    assert not model.training and model.device.type == "cpu"
    assert tokenizer.decode(tokenizer("<think>")["input_ids"]) == "<think>"


def test_auto_takes_cuda_and_the_stored_dtype_where_there_is_one(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    moves: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, place: moves.append(place) or self)
    edit_json(saved / "config.json", dtype="float16")
    assert load(str(saved))[0].dtype == torch.float16
    assert load(str(saved), "float32", "cuda")[0].dtype == torch.float32
    load(str(saved), device="cpu")
    load_directory(saved)
    assert moves == ["cuda", "cuda", "cpu", "cpu"]


@pytest.mark.parametrize("device", ["mps", "tpu", "cuda"])
def test_a_device_that_is_unknown_or_absent_is_refused_before_anything_is_read(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match=f"device '?{device}") as caught:
        load("no/such/model", device=device)
    assert caught.value.fix == "--device cpu"


def test_an_unknown_dtype_is_refused(saved: Path) -> None:
    with pytest.raises(BadInput, match="dtype 'int8' is not one of auto, float32, float16, bfloat16"):
        load(str(saved), "int8")


def remote_code(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="mystery", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("raise SystemExit('remote code ran')")


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def only_a_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()


NAME = "model.layers.1.mlp.up_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "remote code": (remote_code, "needs Python code of its own, which is never run"),
    "unknown architecture": (lambda d: edit_json(d / "config.json", model_type="mystery"), "model type `mystery`"),
    "pickle": (only_a_pickle, "pickle checkpoints are never loaded"),
    "gguf": (only_a_gguf, "holds only GGUF"),
    "tensor missing": (lambda d: edit_weights(d, lambda w: w.pop(NAME)), f"lacks 1 of the tensors .*: {NAME}"),
    "tensor of another shape": (
        lambda d: edit_weights(d, lambda w: w.update({NAME: w[NAME][:9]})),
        f"lacks 1 .*{NAME}",
    ),
    "no tokenizer": (no_tokenizer, "holds no tokenizer"),
    "damaged tokenizer": (lambda d: (d / "tokenizer.json").write_text("{"), "does not load as a causal"),
    "foreign tokenizer": (lambda d: (d / "tokenizer.json").write_text("{}"), "does not load as a causal"),
    "no config": (lambda d: (d / "config.json").unlink(), "does not load as a causal"),
    "config of another type": (lambda d: edit_json(d / "config.json", hidden_size="x"), "does not load as a causal"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_a_whole_model_is_refused(damage: str, saved: Path) -> None:
    change, message = DAMAGE[damage]
    change(saved)
    with pytest.raises(BadInput, match=message) as caught:
        load(str(saved))
    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_directory(saved: Path) -> None:
    with pytest.raises(BadInput, match="is not a directory") as caught:
        load(str(saved / "model.safetensors"))
    assert "config.json" in str(caught.value.fix)


@pytest.mark.parametrize("member", ["b-instruct", "reasoning"])
def test_the_tokenizer_is_that_of_the_files(member: str) -> None:
    # transformers puts its own tokenizer in the place of the plain one of a Qwen2, and loses words of a small one.
    _, tokenizer = load(f"family:{member}")
    text = "a=6 b=a-5 c=b+2 c?"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and len(ids) == 7
