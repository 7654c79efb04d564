"""Opening checkpoints: every layout that must work, every bad input that must be one line and no traceback."""

import contextlib
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import tiny_config, tiny_tensors, write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from deltalens.checkpoint import source as source_module
from deltalens.checkpoint.quantised import quantisation
from deltalens.checkpoint.source import hub_id, open_checkpoint, resolve
from deltalens.errors import BadInput

INDEX = "model.safetensors.index.json"


def raw_file(path: Path, header: Any, data: bytes = b"") -> Path:
    """A safetensors file with any header at all: an object for JSON, or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", tiny_tensors(), tiny_config())


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "sharded", tiny_tensors(), tiny_config(), shards=3)


def shapes(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (info.dtype, info.shape) for name, info in open_checkpoint(str(path)).tensors.items()}


def test_sharded_is_the_single_file(model: Path, sharded: Path) -> None:
    assert shapes(sharded) == shapes(model)
    opened = open_checkpoint(str(sharded))
    assert [file.name for file in opened.files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert opened.config["model_type"] == "qwen3"
    assert opened.revision is None


def test_offsets_point_at_the_bytes(model: Path) -> None:
    tensors = tiny_tensors()
    for name, info in open_checkpoint(str(model)).tensors.items():
        stored = info.file.read_bytes()[info.start : info.end]
        assert stored == tensors[name].view(torch.uint8).numpy().tobytes()
        assert info.elements == tensors[name].numel()


def test_one_file_takes_the_config_beside_it(model: Path, tmp_path: Path) -> None:
    assert open_checkpoint(str(model / "model.safetensors")).config["model_type"] == "qwen3"
    bare = tmp_path / "bare.safetensors"
    save_file({"a": torch.zeros(2, 2)}, bare)
    assert open_checkpoint(str(bare)).config == {}


def test_links_of_the_hub_cache_are_followed(sharded: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "hub" / "snapshots" / ("a" * 40), tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(sharded.iterdir())):
        (blobs / str(i)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(i))
    assert shapes(snapshot) == shapes(sharded)


def test_numbered_shards_work_without_an_index(sharded: Path, model: Path) -> None:
    (sharded / INDEX).unlink()
    assert shapes(sharded) == shapes(model)
    save_file({"model.embed_tokens.weight": torch.zeros(2, 2)}, sharded / "consolidated.safetensors")
    assert shapes(sharded) == shapes(model)
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(BadInput, match="2 of 3 shards"):
        open_checkpoint(str(sharded))


def test_the_index_rules_over_other_files(sharded: Path, model: Path) -> None:
    save_file({"stray": torch.zeros(2, 2)}, sharded / "consolidated.safetensors")
    save_file({"stray": torch.zeros(2, 2)}, sharded / "model.safetensors")
    assert shapes(sharded) == shapes(model)


def test_model_safetensors_rules_without_an_index(model: Path) -> None:
    before = shapes(model)
    save_file({"stray": torch.zeros(2, 2)}, model / "other.safetensors")
    assert shapes(model) == before


def test_disjoint_files_of_any_name_are_one_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(2, 2)}, tmp_path / "two.safetensors")
    assert set(shapes(tmp_path)) == {"a", "b"}
    save_file({"b": torch.zeros(2, 2)}, tmp_path / "three.safetensors")
    with pytest.raises(BadInput, match=r"lies in both three.safetensors and two.safetensors"):
        open_checkpoint(str(tmp_path))


def test_an_unknown_dtype_is_listed(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "a.safetensors", {"x": tensor("F3_NEW", [5], [0, 7])}, b"1234567")
    assert open_checkpoint(str(path)).tensors["x"].dtype == "F3_NEW"


def test_empty_and_scalar_tensors_are_listed(tmp_path: Path) -> None:
    header = {"s": tensor("F32", [], [0, 4]), "e": tensor("F32", [0, 3], [4, 4])}
    opened = open_checkpoint(str(raw_file(tmp_path / "a.safetensors", header, b"1234")))
    assert [opened.tensors[name].elements for name in "se"] == [1, 0]


HEADERS: dict[str, tuple[Any, bytes, str]] = {
    "list": ([], b"", "JSON array, not an object"),
    "string": ("x", b"", "JSON string, not an object"),
    "no JSON": (b"{", b"", "no valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "no valid JSON"),
    "nested": (b"[" * 200_000, b"", "nested too deeply"),
    "nested in a key": (b'{"a":' * 200_000, b"", "nested too deeply"),
    "huge integer": (b'{"a":{"shape":[' + b"9" * 10_000 + b"]}}", b"", "no valid JSON"),
    "repeated": (b'{"a":{},"a":{}}', b"", "occurs twice"),
    "surrogate": (b'{"\\ud800":{}}', b"", "not Unicode"),
    "entry list": ({"a": []}, b"", "'a' in .* JSON array"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"", "no dtype"),
    "dtype number": ({"a": tensor(dtype=3)}, b"", "no dtype"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, b"", "no valid shape"),
    "negative": ({"a": tensor(shape=[-2])}, b"", "no valid shape"),
    "boolean": ({"a": tensor(shape=[True])}, b"", "no valid shape"),
    "float": ({"a": tensor(shape=[2.0])}, b"", "no valid shape"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, b"", "data_offsets"),
    "three offsets": ({"a": tensor(offsets=[0, 4, 8])}, b"", "data_offsets"),
    "backwards": ({"a": tensor(offsets=[8, 0])}, b"12345678", "data_offsets"),
    "wrong size": ({"a": tensor(offsets=[0, 4])}, b"1234", "4 bytes do not hold"),
    "overflow": ({"a": tensor(shape=[2**62, 2**62])}, b"12345678", "no valid shape"),
    "too many dimensions": ({"a": tensor(shape=[1] * 65)}, b"12345678", "no valid shape"),
    "empty but vast": ({"a": tensor(shape=[2**62, 2, 0], offsets=[0, 0])}, b"", "no valid shape"),
    "truncated": ({"a": tensor()}, b"1234", "truncated: tensor 'a' ends 4 bytes beyond"),
    "overlap": ({"a": tensor(), "b": tensor(offsets=[4, 12])}, b"1" * 12, "overlaps"),
    "hole": ({"a": tensor(), "b": tensor(offsets=[9, 17])}, b"1" * 17, "1 bytes before"),
    "tail": ({"a": tensor()}, b"1" * 9, "last 1 bytes"),
    "metadata": ({"__metadata__": 3}, b"", "metadata"),
    "no tensor": ({}, b"", "holds no tensor"),
}


@pytest.mark.parametrize("header", HEADERS, ids=str)
def test_a_bad_header_is_bad_input(header: str, tmp_path: Path) -> None:
    content, data, message = HEADERS[header]
    path = raw_file(tmp_path / "bad.safetensors", content, data)
    with pytest.raises(BadInput, match=message) as raised:
        open_checkpoint(str(path))
    assert "bad.safetensors" in raised.value.error
    assert "\n" not in raised.value.error


BYTES = {
    "empty": (b"", "is empty"),
    "short": (b"1234", "truncated"),
    "longer than the file": (struct.pack("<Q", 1000) + b"{}", "header longer than the file"),
    "longest": (b"\xff" * 8 + b"{}", "header longer than the file"),
    "zero": (struct.pack("<Q", 0), "no valid JSON"),
}


@pytest.mark.parametrize("content", BYTES)
def test_bad_bytes_are_bad_input(content: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(BYTES[content][0])
    for named in (path, tmp_path):
        with pytest.raises(BadInput, match=BYTES[content][1]):
            open_checkpoint(str(named))


def test_a_header_above_the_formats_cap_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)  # sparse
    with pytest.raises(BadInput, match="above the format's 100 MB"):
        open_checkpoint(str(path))


def test_a_truncated_download_is_bad_input(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match="truncated"):
        open_checkpoint(str(model))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_give_bad_input_and_nothing_else(tmp_path: Path, content: bytes, prefixed: bool) -> None:
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + content if prefixed else content)
    with pytest.raises(BadInput):
        open_checkpoint(str(path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "U8", "??"]) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
    },
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=3), st.binary(max_size=40))
def test_arbitrary_headers_open_or_give_bad_input(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    path = raw_file(tmp_path / "fuzz.safetensors", header, data)
    try:
        opened = open_checkpoint(str(path))
    except BadInput:
        return
    size = path.stat().st_size
    assert all(0 <= info.start <= info.end <= size for info in opened.tensors.values())


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(JSON)
def test_arbitrary_indices_and_configs_open_or_give_bad_input(tmp_path: Path, content: Any) -> None:
    save_file({"a": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    for file in (INDEX, "config.json"):
        (tmp_path / file).write_text(json.dumps(content))
        with contextlib.suppress(BadInput):
            quantisation(open_checkpoint(str(tmp_path)))
        (tmp_path / file).unlink()


INDICES: dict[str, tuple[Any, str]] = {
    "list": ([], "JSON array, not an object"),
    "no map": ({"metadata": {}}, "no weight_map"),
    "map list": ({"weight_map": []}, "no weight_map"),
    "shard number": ({"weight_map": {"a": 3}}, "JSON number as the shard"),
    "shard list": ({"weight_map": {"a": ["x"]}}, "JSON array as the shard"),
    "missing": ({"weight_map": {"a": "gone.safetensors"}}, "missing shard: gone.safetensors"),
    "parent": ({"weight_map": {"a": "../other/model.safetensors"}}, "outside its directory"),
    "deep parent": ({"weight_map": {"a": "x/../../model.safetensors"}}, "outside its directory"),
    "absolute": ({"weight_map": {"a": "/etc/model.safetensors"}}, "outside its directory"),
    "backslashes": ({"weight_map": {"a": "..\\model.safetensors"}}, "outside its directory"),
    "drive": ({"weight_map": {"a": "C:\\model.safetensors"}}, "outside its directory"),
    "zero byte": ({"weight_map": {"a": "a\0.safetensors"}}, "outside its directory"),
    "empty name": ({"weight_map": {"a": ""}}, "outside its directory"),
    "pickle": ({"weight_map": {"a": "pytorch_model.bin"}}, "not a safetensors file"),
    "absent tensor": ({"weight_map": {"nowhere": "model.safetensors"}}, "'nowhere' in model.safetensors"),
    "no tensor": ({"weight_map": {}}, "no tensor"),
}


@pytest.mark.parametrize("index", INDICES)
def test_a_bad_index_is_bad_input(index: str, model: Path) -> None:
    content, message = INDICES[index]
    (model / INDEX).write_text(json.dumps(content))
    with pytest.raises(BadInput, match=message):
        open_checkpoint(str(model))


@pytest.mark.parametrize("content", ["{", "[1", "\ufeff{}", "[" * 100_000], ids=["cut", "list", "mark", "nested"])
@pytest.mark.parametrize("file", [INDEX, "config.json"])
def test_broken_json_is_bad_input_naming_the_file(file: str, content: str, model: Path) -> None:
    (model / file).write_text(content)
    with pytest.raises(BadInput, match=file):
        open_checkpoint(str(model))


def test_a_tensor_in_two_shards_is_bad_input(sharded: Path) -> None:
    name = next(iter(open_checkpoint(str(sharded)).tensors))
    save_file({name: torch.zeros(2, 2)}, sharded / "extra.safetensors")
    index = json.loads((sharded / INDEX).read_text())
    save_file({"extra": torch.zeros(2, 2), name: torch.zeros(2, 2)}, sharded / "extra.safetensors")
    index["weight_map"]["extra"] = "extra.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(BadInput, match="lies in both"):
        open_checkpoint(str(sharded))


@pytest.mark.parametrize("content", ["[]", "3", '"x"', "null"])
def test_a_config_of_the_wrong_type_is_bad_input(content: str, model: Path) -> None:
    (model / "config.json").write_text(content)
    with pytest.raises(BadInput, match=r"config.json is a JSON .* not an object"):
        open_checkpoint(str(model))


@pytest.mark.parametrize("shards", [1, 3])
def test_a_directory_in_place_of_a_shard_is_bad_input(shards: int, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", tiny_tensors(), tiny_config(), shards)
    first = sorted(folder.glob("*.safetensors"))[0]
    first.unlink()
    first.mkdir()
    with pytest.raises(BadInput, match=r"regular file|missing shard"):
        open_checkpoint(str(folder))


def test_a_pipe_is_bad_input_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match="not a regular file"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("forbidden", ["", "model.safetensors", "config.json"])
def test_a_forbidden_file_is_bad_input(forbidden: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the calls themselves: a test that runs as root is forbidden nothing."""
    real_open, real_iterdir = Path.open, Path.iterdir

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **kwargs)

    def refuse_listing(path: Path) -> Any:
        if not forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return real_iterdir(path)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "iterdir", refuse_listing)
    with pytest.raises(BadInput, match="permission denied"):
        open_checkpoint(str(model))


def lone(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(b"x")
        return folder

    return make


REFUSED: dict[str, tuple[Callable[[Path], Path | str], str, str]] = {
    "pickle .bin": (lone("pytorch_model.bin"), "pickle checkpoints are never loaded", "convert to safetensors"),
    "pickle .pt": (lone("model.pt"), "pickle checkpoints are never loaded", "convert to safetensors"),
    "pickle .pth": (lone("consolidated.00.pth"), "pickle checkpoints are never loaded", "safetensors"),
    "pickle .ckpt": (lone("last.ckpt"), "pickle checkpoints are never loaded", "safetensors"),
    "pickle file": (lambda f: lone("a.bin")(f) / "a.bin", "pickle checkpoints are never loaded", "safetensors"),
    "no weights": (lone("config.txt"), "not a checkpoint", "directory"),
    "empty directory": (lambda f: f, "not a checkpoint", "directory"),
    "gguf": (lambda f: lone("a.gguf")(f) / "a.gguf", "GGUF", "Hugging Face"),
    "gguf directory": (lone("a.gguf"), "GGUF", "original"),
    "text file": (lambda f: lone("a.txt")(f) / "a.txt", "not a safetensors file", "directory"),
    "index file": (lambda f: lone(INDEX)(f) / INDEX, "is an index", "name its directory"),
    "adapter": (lone("adapter_model.safetensors"), "PEFT adapter", "merge it"),
    "adapter file": (lambda f: lone("adapter_model.safetensors")(f) / "adapter_model.safetensors", "PEFT", "merge"),
    "adapter config": (lone("adapter_config.json"), "PEFT adapter", "merge it"),
    "missing": (lambda f: f / "nothing", "nothing: no such file or directory", "name a directory"),
    "misspelt": (lambda f: lone("model-b")(f) / "model-a", "no such file or directory", "did you mean .*model-b"),
    "relative": (lambda f: "./nothing", "no such file or directory", "name a directory"),
    "home": (lambda f: "~/no/such/place", "no such file or directory", "name a directory"),
    "no user": (lambda f: "~nobody-of-this-name/x", "no such file or directory", ""),
    "deep": (lambda f: "no/such/place", "no such file or directory", "name a directory"),
    "suffix": (lambda f: "nothing.safetensors", "no such file or directory", "name a directory"),
    "empty": (lambda f: "", "no such file or directory", "name a directory"),
    "zero byte": (lambda f: "a\0b", "no such file or directory", ""),
    "too long": (lambda f: "/" + "a" * 5000, "file name too long", ""),
    "family": (lambda f: "family:nobody", "no member 'nobody'", "there are"),
    "family escape": (lambda f: "family:../../checkpoint", "no member", "there are"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_checkpoint_is_said_in_one_line(kind: str, tmp_path: Path) -> None:
    make, error, fix = REFUSED[kind]
    with pytest.raises(BadInput, match=error) as raised:
        open_checkpoint(str(make(tmp_path)))
    assert raised.value.exit_code == 2
    assert re.search(fix, raised.value.fix or "")


def test_family_names_resolve_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "_FAMILY", tmp_path)
    write_checkpoint(tmp_path / "reasoning", tiny_tensors(), tiny_config())
    assert resolve("family:reasoning") == tmp_path / "reasoning"
    assert open_checkpoint("family:reasoning").tensors
    with pytest.raises(BadInput) as raised:
        open_checkpoint("family:reasonnig")
    assert raised.value.fix is not None
    assert "did you mean family:reasoning?" in raised.value.fix


def test_hub_ids_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    hubs = ["owner/name", "owner/name@main", "owner/name@refs/pr/3", "gpt2", "Qwen/Qwen2.5-1.5B@" + "a" * 40]
    assert all(map(hub_id, hubs))
    paths = ["runs", "runs/missing", "./owner/name", "/owner/name", "~/x", "a/b/c", "x.safetensors", "family:base"]
    assert not any(map(hub_id, paths))


QUANTISED: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], str]] = {
    "gptq": ({"quantization_config": {"quant_method": "gptq"}}, {}, "gptq"),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, {}, "fp8"),
    "inner config": ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, {}, "awq"),
    "bnb without method": ({"quantization_config": {"load_in_4bit": True}}, {}, "bitsandbytes"),
    "mlx config": ({"quantization": {"bits": 4, "group_size": 64}}, {}, "mlx 4-bit"),
    "mlx keys": (
        {},
        {"a.weight": torch.zeros(2, 2, dtype=torch.uint32), "a.scales": torch.zeros(2), "a.biases": torch.zeros(2)},
        "mlx",
    ),
    "fp8 scales": ({}, {"a.weight_scale_inv": torch.zeros(2)}, "fp8"),
    "qweight": ({}, {"a.qweight": torch.zeros(2, dtype=torch.int32)}, "gptq or awq"),
    "nf4": ({}, {"a.weight.quant_state.bitsandbytes__nf4": torch.zeros(2)}, "nf4"),
    "mxfp4": ({}, {"a_blocks": torch.zeros(2, dtype=torch.uint8), "a_scales": torch.zeros(2)}, "mxfp4"),
    "raw fp8": ({}, {"a.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}, "raw F8_E4M3"),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantisation_is_named(kind: str, tmp_path: Path) -> None:
    config, tensors, method = QUANTISED[kind]
    write_checkpoint(tmp_path, {"b.weight": torch.zeros(2, 2)} | tensors, config)
    found = quantisation(open_checkpoint(str(tmp_path)))
    assert found is not None
    assert method in found


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": []}])
def test_plain_weights_are_not_quantised(config: dict[str, Any], tmp_path: Path) -> None:
    tensors = tiny_tensors() | {"x_blocks": torch.zeros(2), "position_ids": torch.zeros(2, dtype=torch.int64)}
    write_checkpoint(tmp_path, tensors, tiny_config() | config)
    assert quantisation(open_checkpoint(str(tmp_path))) is None
