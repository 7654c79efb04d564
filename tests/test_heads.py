"""Heads against dense products, the change of basis that must not show, and layouts that have no heads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import perturb, tiny_config, tiny_tensors, write_checkpoint

from deltalens.checkpoint.pair import Pair
from deltalens.spectrum.heads import head_layers, layout, measure_heads
from deltalens.store.schema import HEADS

Tensors = dict[str, torch.Tensor]


def at(part: str, layer: int = 1) -> str:
    return f"model.layers.{layer}.self_attn.{part}_proj.weight"


def pair_of(folder: Path, base: Tensors, tuned: Tensors, config: dict[str, Any] | None = None, **changes: Any) -> Pair:
    config = tiny_config() | changes if config is None else config
    sides = [write_checkpoint(folder / name, side, config) for name, side in (("a", base), ("b", tuned))]
    return Pair.open(*map(str, sides))


def measured(pair: Pair, layer: int = 1) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows by kind and head (group for k and v)."""
    part = measure_heads(pair, layer, block_bytes=1000)
    assert part.row["reason"] is None, part.row["reason"]
    assert all(set(row) == set(HEADS.names) for row in part.row["rows"])
    return {(row["kind"], row["group"] if row["head"] is None else row["head"]): row for row in part.row["rows"]}


def wide(tensors: Tensors, part: str) -> np.ndarray:
    return tensors[at(part)].double().numpy()


def check(row: dict[str, Any], delta: np.ndarray, base: np.ndarray) -> None:
    sigma = np.linalg.svd(delta, compute_uv=False)
    assert row["norm_delta_sq"] == pytest.approx((delta**2).sum(), rel=1e-7)
    assert row["relative_change"] == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(base), rel=1e-7)
    assert row["sigma_max"] == pytest.approx(sigma[0], rel=1e-7)
    assert row["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-7)


@pytest.mark.parametrize(("arch", "kv"), [("llama", 2), ("llama", 4), ("qwen2", 1), ("qwen3", 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_head_against_dense_products(tmp_path: Path, arch: str, kv: int, dtype: torch.dtype) -> None:
    base = tiny_tensors(arch=arch, kv=kv, dtype=dtype)
    tuned = perturb(base, rank=2, sigma=0.05, noise=1e-3)
    pair = pair_of(tmp_path, base, tuned, tiny_config(arch, num_key_value_heads=kv))
    rows = measured(pair)
    assert head_layers(pair) == (0, 1)
    assert len(rows) == 4 * 4 + 2 * kv
    w = {part: (wide(base, part), wide(tuned, part)) for part in "qkvo"}
    for h in range(4):
        g = h // (4 // kv)
        own, shared = slice(8 * h, 8 * h + 8), slice(8 * g, 8 * g + 8)
        cut = {
            "q": [m[own] for m in w["q"]],
            "k": [m[shared] for m in w["k"]],
            "v": [m[shared] for m in w["v"]],
            "o": [m[:, own] for m in w["o"]],
        }
        for kind in "qo":
            assert rows[kind, h]["group"] == g
            check(rows[kind, h], cut[kind][1] - cut[kind][0], cut[kind][0])
        for kind in "kv":
            assert rows[kind, g]["head"] is None
            check(rows[kind, g], cut[kind][1] - cut[kind][0], cut[kind][0])
        qk = [q.T @ k for q, k in zip(cut["q"], cut["k"], strict=True)]
        ov = [o @ v for o, v in zip(cut["o"], cut["v"], strict=True)]
        for kind, (before, after) in (("qk", qk), ("ov", ov)):
            assert (rows[kind, h]["group"], rows[kind, h]["name"]) == (g, f"layers.1.self_attn.{kind}")
            check(rows[kind, h], after - before, before)


def test_slices_add_up_to_the_matrix(tmp_path: Path) -> None:
    base = tiny_tensors()
    tuned = perturb(base, rank=3, sigma=0.1)
    rows = measured(pair_of(tmp_path, base, tuned))
    for kind in "qkvo":
        total = sum(row["norm_delta_sq"] for (found, _), row in rows.items() if found == kind)
        assert total == pytest.approx(((wide(tuned, kind) - wide(base, kind)) ** 2).sum(), rel=1e-12)
        assert {row["name"] for (found, _), row in rows.items() if found == kind} == {f"layers.1.self_attn.{kind}_proj"}
    assert all(row["share"] is None for row in rows.values())


def rotation(seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


def regauge(tensors: Tensors, left: str, right: str, turns: list[torch.Tensor]) -> Tensors:
    """Turn the inner basis of every group: right factor by R, left factor of its heads by the inverse transpose."""
    tuned = dict(tensors)
    for part, share in ((left, 2), (right, 1)):
        matrix = tensors[at(part)].double().clone()
        rows = matrix.T if part == "o" else matrix  # a view: columns of o are turned in place
        for head in range(len(rows) // 8):
            turn = turns[head // share]
            rows[8 * head : 8 * head + 8] = (turn if share == 1 else turn.inverse().T) @ rows[8 * head : 8 * head + 8]
        tuned[at(part)] = matrix.float()
    return tuned


@pytest.mark.parametrize(("left", "right", "kind"), [("o", "v", "ov"), ("q", "k", "qk")])
def test_a_change_of_basis_is_no_change(tmp_path: Path, left: str, right: str, kind: str) -> None:
    base = tiny_tensors(dtype=torch.float32)
    stretch = torch.diag(torch.linspace(0.5, 2, 8, dtype=torch.float64))
    tuned = regauge(base, left, right, [rotation(1) @ stretch, rotation(2)])
    rows = measured(pair_of(tmp_path, base, tuned))
    other = {"ov": "qk", "qk": "ov"}[kind]
    for head in range(4):
        assert rows[kind, head]["relative_change"] < 1e-6  # float32 storage
        assert rows[left, head]["relative_change"] > 0.3
        assert rows[other, head]["norm_delta_sq"] == 0
        assert rows[other, head]["stable_rank"] is None
    assert min(rows[right, group]["relative_change"] for group in range(2)) > 0.3


def test_a_scale_moved_between_query_and_key(tmp_path: Path) -> None:
    base = tiny_tensors()
    tuned = base | {at("q"): base[at("q")] * 2, at("k"): base[at("k")] / 2}
    rows = measured(pair_of(tmp_path, base, tuned))
    for head in range(4):
        assert rows["q", head]["relative_change"] == pytest.approx(1.0)
        assert rows["qk", head]["norm_delta_sq"] == pytest.approx(0.0, abs=1e-30)


def test_a_real_change_survives_a_change_of_basis(tmp_path: Path) -> None:
    base = tiny_tensors(dtype=torch.float32)
    moved = perturb(base, rank=2, sigma=0.05)
    turned = regauge(moved, "o", "v", [rotation(3), rotation(4)])
    plain = measured(pair_of(tmp_path / "plain", base, moved))
    again = measured(pair_of(tmp_path / "again", base, turned))
    for head in range(4):
        for column in ("norm_delta_sq", "sigma_max", "stable_rank"):
            assert again["ov", head][column] == pytest.approx(plain["ov", head][column], rel=1e-4)
        assert again["o", head]["norm_delta_sq"] > 2 * plain["o", head]["norm_delta_sq"]


def test_a_tiny_change_of_large_factors_is_not_lost(tmp_path: Path) -> None:
    base = tiny_tensors(dtype=torch.float32)
    base = {key: value * 1000 if "proj" in key else value for key, value in base.items()}
    tuned = perturb(base, rank=0, noise=1e-4)
    rows = measured(pair_of(tmp_path, base, tuned))
    q, k = wide(base, "q")[:8], wide(base, "k")[:8]
    exact = wide(tuned, "q")[:8].T @ (wide(tuned, "k")[:8] - k) + (wide(tuned, "q")[:8] - q).T @ k
    assert rows["qk", 0]["norm_delta_sq"] == pytest.approx((exact**2).sum(), rel=1e-8)


def test_head_dim_is_not_hidden_over_heads(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    base = tiny_tensors()
    for part, shape in (("q", (4 * 24, 32)), ("k", (2 * 24, 32)), ("v", (2 * 24, 32)), ("o", (32, 4 * 24))):
        for layer in (0, 1):
            base[at(part, layer)] = torch.randn(shape, generator=generator)
    rows = measured(pair_of(tmp_path, base, perturb(base), head_dim=24))
    assert len(rows) == 20
    assert rows["q", 3]["stable_rank"] <= 2 + 1e-6


def test_hidden_over_heads_where_no_head_dim_is_named(tmp_path: Path) -> None:
    config = tiny_config("llama")
    del config["head_dim"]
    base = tiny_tensors(arch="llama")
    assert len(measured(pair_of(tmp_path, base, perturb(base), config))) == 20


def test_the_language_model_of_a_multimodal_config(tmp_path: Path) -> None:
    base = tiny_tensors()
    config = {"model_type": "some_vl", "num_attention_heads": 16, "text_config": tiny_config()}
    assert len(measured(pair_of(tmp_path, base, perturb(base), config))) == 20


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in tiny_config().items() if key not in keys}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "no attention heads"),
        (without("num_attention_heads"), "no attention heads"),
        (without("head_dim", "hidden_size"), "no head_dim"),
        (without("head_dim") | {"hidden_size": 30}, "do not divide hidden_size 30"),
        (tiny_config(num_key_value_heads=3), "do not divide"),
        (tiny_config(num_key_value_heads=0), "do not divide"),
        (tiny_config(head_dim=16), "the config's heads make it"),
        (tiny_config(head_dim="8"), "head_dim 8"),
        (tiny_config(num_attention_heads=True), "no attention heads"),
    ],
)
def test_configs_without_usable_heads(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    base = tiny_tensors()
    part = measure_heads(pair_of(tmp_path, base, perturb(base), config), 0, 2**20)
    assert part.row["rows"] == []
    assert reason in part.row["reason"]


def test_sides_that_divide_differently(tmp_path: Path) -> None:
    base = tiny_tensors()
    a = write_checkpoint(tmp_path / "a", base, tiny_config())
    b = write_checkpoint(tmp_path / "b", perturb(base), tiny_config(num_attention_heads=2, head_dim=16))
    assert "differently" in str(layout(Pair.open(str(a), str(b))))


def test_fused_attention_has_no_rows(tmp_path: Path) -> None:
    def fused(tensors: Tensors) -> Tensors:
        rest = {key: value for key, value in tensors.items() if "self_attn" not in key}
        for layer in (0, 1):
            qkv = torch.cat([tensors[at(part, layer)] for part in "qkv"])
            rest[f"model.layers.{layer}.self_attn.qkv_proj.weight"] = qkv
            rest[at("o", layer)] = tensors[at("o", layer)]
        return rest

    base = tiny_tensors()
    pair = pair_of(tmp_path, fused(base), fused(perturb(base)))
    assert head_layers(pair) == ()
    assert measure_heads(pair, 0, 2**20).row == {"rows": [], "reason": "layer 0 has no measured q_proj, k_proj, v_proj"}
    assert "layer 7 has no measured" in measure_heads(pair, 7, 2**20).row["reason"]


def test_a_match_that_leaves_attention_out(tmp_path: Path) -> None:
    base = tiny_tensors()
    pair = pair_of(tmp_path, base, perturb(base))
    only = Pair.open(pair.base.source, pair.tuned.source, match="*.q_proj")
    assert head_layers(only) == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(tmp_path: Path, bad: float) -> None:
    base = tiny_tensors()
    tuned = perturb(base)
    tuned[at("v")][0, 0] = bad
    pair = pair_of(tmp_path, base, tuned)
    assert "NaN or Inf" in measure_heads(pair, 1, 2**20).row["reason"]
    assert measure_heads(pair, 0, 2**20).row["reason"] is None


def test_a_base_of_zeros_has_no_relative_change(tmp_path: Path) -> None:
    base = tiny_tensors()
    base[at("k")] = torch.zeros_like(base[at("k")])
    rows = measured(pair_of(tmp_path, base, perturb(base)))
    assert rows["k", 0]["relative_change"] is None
    assert rows["qk", 0]["relative_change"] is None
    assert rows["qk", 0]["norm_delta_sq"] > 0
