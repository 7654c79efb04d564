"""Pairing: every tensor of either side is one row, and what cannot be compared is refused by name."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import perturb, tiny_config, tiny_tensors, write_checkpoint, write_pair

from deltalens.checkpoint.embedding import tied
from deltalens.checkpoint.identity import identity, mtimes
from deltalens.checkpoint.names import sort_key
from deltalens.checkpoint.pair import Pair, Row
from deltalens.checkpoint.source import open_checkpoint
from deltalens.errors import BadInput, Refused

Tensors = dict[str, torch.Tensor]


def make(
    folder: Path,
    base: Tensors,
    tuned: Tensors,
    base_config: dict[str, Any] | None = None,
    tuned_config: dict[str, Any] | None = None,
    match: str | None = None,
) -> Pair:
    configs = base_config or tiny_config(), tuned_config or base_config or tiny_config()
    paths = [
        write_checkpoint(folder / side, tensors, config)
        for side, tensors, config in zip(("base", "tuned"), (base, tuned), configs, strict=True)
    ]
    return Pair.open(str(paths[0]), str(paths[1]), match)


def rows(pair: Pair) -> dict[str, Row]:
    return {row.name.name: row for row in pair.rows}


def statuses(pair: Pair) -> dict[str, int]:
    return dict(Counter(row.status for row in pair.rows))


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("shards", [1, 4])
def test_every_tensor_is_one_row_in_table_order(arch: str, shards: int, tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path, arch, shards)
    pair = Pair.open(str(base), str(tuned))
    assert sorted(row.base.name for row in pair.rows if row.base) == sorted(pair.base.tensors)
    assert sorted(row.tuned.name for row in pair.rows if row.tuned) == sorted(pair.tuned.tensors)
    assert statuses(pair).keys() == {"measured", "vector"}
    assert statuses(pair)["measured"] == 1 + 2 * 7
    assert pair.warnings == ()
    assert pair.match is None
    names = [row.name for row in pair.rows]
    assert names == sorted(names, key=sort_key)
    assert names[0].name == "embed"
    assert len({name.name for name in names}) == len(names)


def test_identical_sides_are_a_warning(tmp_path: Path) -> None:
    base, _ = write_pair(tmp_path)
    pair = Pair.open(str(base), str(base / ".." / "base"))
    assert pair.warnings == ("both sides are the same checkpoint",)
    assert "measured" in statuses(pair)


@pytest.mark.parametrize("wrapper", ["", "model.language_model.", "language_model.model."])
def test_wrappers_do_not_part_siblings(wrapper: str, tmp_path: Path) -> None:
    base = tiny_tensors(arch="qwen2") | {"model.layers.0.mlp.shared_expert_gate.weight": torch.ones(1, 32)}
    tuned = {wrapper + name.removeprefix("model."): tensor for name, tensor in base.items()}
    pair = make(tmp_path, base, tuned, tiny_config("qwen2"))
    assert statuses(pair).keys() == {"measured", "vector"}
    assert rows(pair)["model.layers.0.mlp.shared_expert_gate.weight"].status == "measured"


def test_two_names_for_one_weight_are_both_kept(tmp_path: Path) -> None:
    base = tiny_tensors()
    doubled = base | {"layers.0.mlp.up_proj.weight": torch.ones(64, 32)}
    pair = make(tmp_path, doubled, base)
    found = rows(pair)
    assert found["model.layers.0.mlp.up_proj.weight"].status == "measured"
    assert found["layers.0.mlp.up_proj.weight"].status == "unpaired"
    assert "layers.0.mlp.up_proj" not in found
    assert any("layers.0.mlp.up_proj: each keeps its stored name" in w for w in pair.warnings)


def test_a_name_that_only_looks_canonical_loses_nothing(tmp_path: Path) -> None:
    base = tiny_tensors() | {"embed": torch.ones(3, 3)}
    pair = make(tmp_path, base, base)
    assert {"embed", "model.embed_tokens.weight"} <= rows(pair).keys()
    assert statuses(pair)["measured"] == 1 + 2 * 7 + 1


def test_more_dimensions_buffers_and_empty_tensors(tmp_path: Path) -> None:
    base = tiny_tensors() | {
        "model.layers.0.mlp.experts.gate_up_proj": torch.ones(2, 3, 4),
        "model.layers.0.position_ids": torch.arange(4),
        "model.layers.0.scale": torch.tensor(1.0),
        "model.none.weight": torch.ones(0, 4),
    }
    found = rows(make(tmp_path, base, base))
    assert found["layers.0.mlp.experts.gate_up_proj"].status == "unmeasured"
    assert found["layers.0.mlp.experts.gate_up_proj"].reason == "3 dimensions"
    assert found["layers.0.position_ids"].status == "buffer"
    assert found["layers.0.scale"].status == "vector"
    assert found["model.none.weight"].status == "unmeasured"


def test_a_buffer_on_one_side_only_is_unpaired(tmp_path: Path) -> None:
    base = tiny_tensors()
    changed = base | {"model.norm.weight": torch.ones(32, dtype=torch.int32)}
    row = rows(make(tmp_path, base, changed))["norm"]
    assert (row.status, row.reason) == ("unpaired", "floating point on one side only (BF16 and I32)")


def test_both_sides_tied(tmp_path: Path) -> None:
    base = tiny_tensors(tied=True)
    assert "lm_head" not in rows(make(tmp_path / "a", base, base))
    stored = base | {"lm_head.weight": base["model.embed_tokens.weight"].clone()}
    row = rows(make(tmp_path / "b", stored, base))["lm_head"]
    assert (row.status, row.tuned) == ("tied", None)
    assert rows(make(tmp_path / "c", stored, stored))["lm_head"].status == "tied"


def test_neither_side_tied(tmp_path: Path) -> None:
    base = tiny_tensors(tied=False)
    pair = make(tmp_path, base, base, tiny_config(tie_word_embeddings=False))
    assert rows(pair)["lm_head"].status == "measured"
    assert pair.rows[-1].name.name == "lm_head"


def test_a_file_of_some_layers_is_not_tied(tmp_path: Path) -> None:
    base = {name: t for name, t in tiny_tensors().items() if "embed" not in name}
    pair = make(tmp_path, base, base)
    assert not tied(pair.base)
    assert statuses(pair)["measured"] == 14


def test_other_widths_are_refused_with_names(tmp_path: Path) -> None:
    base, tuned = tiny_tensors(), tiny_tensors(hidden=64)
    with pytest.raises(Refused, match=r"different widths \(hidden_size 32 and 64\)") as raised:
        make(tmp_path, base, tuned, tiny_config(), tiny_config(hidden_size=64))
    assert raised.value.exit_code == 3
    assert "[64, 32] and [64, 64]" in raised.value.error or "embed" in raised.value.error
    assert raised.value.fix is not None
    assert "--match" in raised.value.fix


def test_other_depths_are_refused(tmp_path: Path) -> None:
    base, tuned = tiny_tensors(layers=2), tiny_tensors(layers=3)
    config = tiny_config(), tiny_config(num_hidden_layers=3)
    with pytest.raises(Refused, match=r"different depths \(num_hidden_layers 2 and 3\): 2 layers in the base, 3"):
        make(tmp_path, base, tuned, *config)
    pair = make(tmp_path, base, tuned, *config, match="layers.*")
    found = rows(pair)
    assert found["layers.1.mlp.up_proj"].status == "measured"
    assert (found["layers.2.mlp.up_proj"].status, found["layers.2.mlp.up_proj"].reason) == (
        "unpaired",
        "only in the tuned side",
    )


def test_a_tower_on_one_side_is_unpaired_not_another_depth(tmp_path: Path) -> None:
    base = tiny_tensors()
    tower = {f"vision_tower.encoder.layers.{n}.fc1.weight": torch.ones(4, 4) for n in range(5)}
    pair = make(tmp_path, base, base | tower)
    assert statuses(pair)["unpaired"] == 5
    assert any(warning.startswith("5 unpaired (only in the tuned side)") for warning in pair.warnings)


def test_other_depths_of_an_unknown_tree_are_refused(tmp_path: Path) -> None:
    sides = [{f"h.{n}.attn.c_attn.weight": torch.ones(4, 12) for n in range(depth)} for depth in (2, 3)]
    with pytest.raises(Refused, match="different depths"):
        make(tmp_path, *sides)


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no tensor in common \(base: model.embed_tokens.weight, …; tuned: x, …\)"):
        make(tmp_path, tiny_tensors(), {"x": torch.ones(2, 2)})


def test_match_keeps_everything_else_in_the_ledger(tmp_path: Path) -> None:
    base = tiny_tensors()
    pair = make(tmp_path, base, perturb(base), match="layers.*.mlp.*_proj")
    assert statuses(pair) == {"measured": 6, "unmeasured": len(base) - 6}
    row = rows(pair)["layers.0.self_attn.q_proj"]
    assert row.reason == "not matched by layers.*.mlp.*_proj"
    assert row.base is not None
    assert row.tuned is not None


def test_match_measures_common_shapes_only(tmp_path: Path) -> None:
    base, tuned = tiny_tensors(), tiny_tensors(ff=96)
    with pytest.raises(Refused, match="different widths"):
        make(tmp_path, base, tuned)
    pair = make(tmp_path, base, tuned, match="layers.*")
    assert statuses(pair)["measured"] == 8
    assert rows(pair)["layers.0.mlp.up_proj"].reason == "shapes differ: [64, 32] and [96, 32]"
    with pytest.raises(Refused, match=r"no tensor that --match \*mlp\* names can be compared"):
        make(tmp_path, base, tuned, match="*mlp*")


def test_a_match_of_nothing_is_bad_input_with_near_names(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="matches no tensor") as raised:
        make(tmp_path, tiny_tensors(), tiny_tensors(), match="layers.0.mlp.upproj")
    assert raised.value.fix is not None
    assert "layers.0.mlp.up_proj" in raised.value.fix


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_quantised_side_is_refused_by_name(side: str, tmp_path: Path) -> None:
    plain, quantised = tiny_config(), tiny_config(quantization_config={"quant_method": "awq"})
    configs = (quantised, plain) if side == "base" else (plain, quantised)
    with pytest.raises(Refused, match=rf"the {side} side \(.*/{side}\) is quantised: awq") as raised:
        make(tmp_path, tiny_tensors(), tiny_tensors(), *configs)
    assert raised.value.fix is not None
    assert "unquantised" in raised.value.fix


def test_mixed_dtypes_and_float64_are_said(tmp_path: Path) -> None:
    base = tiny_tensors(dtype=torch.float64)
    pair = make(tmp_path, base, perturb(base, dtype=torch.bfloat16))
    assert f"{len(base)} tensors are F64 in the base and BF16 in the tuned side" in pair.warnings
    assert "float64 tensors are rounded to float32 on reading" in pair.warnings


def test_an_unknown_dtype_is_unpaired(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "base", tiny_tensors(), tiny_config())
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"BF16","shape":[32]', b'"XY16","shape":[32]'))
    pair = Pair.open(str(folder), str(folder))
    assert rows(pair)["norm"].reason == "unknown dtype (XY16)"


def test_conv1d_is_turned_where_the_config_says_gpt2(tmp_path: Path) -> None:
    base = {
        "wte.weight": torch.ones(10, 4),
        "h.0.attn.c_attn.weight": torch.ones(4, 12),
        "h.0.attn.c_attn.bias": torch.ones(12),
    }
    turned = rows(make(tmp_path / "a", base, base, {"model_type": "gpt2"}))
    assert (turned["h.0.attn.c_attn.weight"].transposed, turned["h.0.attn.c_attn.weight"].shape) == (True, (12, 4))
    assert (turned["embed"].transposed, turned["embed"].shape) == (False, (10, 4))
    as_stored = rows(make(tmp_path / "b", base, base, {"model_type": "other"}))
    assert as_stored["h.0.attn.c_attn.weight"].shape == (4, 12)


def test_identity_is_where_the_bytes_are_not_where_the_files_lie(tmp_path: Path) -> None:
    tensors = tiny_tensors(hidden=128, ff=512)
    one = write_checkpoint(tmp_path / "one", tensors, tiny_config(), shards=2)
    two = Path(shutil.copytree(one, tmp_path / "elsewhere" / "two"))
    first, second = (open_checkpoint(str(path)) for path in (one, two))
    assert identity(first) == identity(second)
    assert identity(first, verify=True) == identity(second, verify=True)
    assert mtimes(first).keys() == {file.name for file in first.files}
    file = two / "model-00002-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    assert len(content) > 64 * 4096
    content[-1] ^= 1
    file.write_bytes(content)
    assert identity(first) != identity(second)


def test_verify_sees_what_the_samples_miss(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m", {"a": torch.zeros(512, 2048)}, tiny_config())
    ckpt = open_checkpoint(str(path))
    before = identity(ckpt), identity(ckpt, verify=True)
    with ckpt.files[0].open("r+b") as file:
        file.seek(8000)
        file.write(b"\1")
    assert identity(ckpt) == before[0]
    assert identity(ckpt, verify=True) != before[1]
