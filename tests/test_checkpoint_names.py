"""One canonical name for one weight, in every tree and wrapper; nothing is renamed by accident."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalens.checkpoint.names import KINDS, Name, canonical, conv1d, sort_key

WRAPPERS = ["model.", "", "model.language_model.", "language_model.model.", "transformer.", "model.model."]
MATRICES = {
    "embed_tokens": ("embed", None, "embed", None),
    "lm_head": ("lm_head", None, "lm_head", None),
    "wte": ("embed", None, "embed", None),
    "wpe": ("pos_embed", None, "pos_embed", None),
    "layers.0.self_attn.q_proj": ("layers.0.self_attn.q_proj", 0, "q_proj", None),
    "layers.11.self_attn.k_proj": ("layers.11.self_attn.k_proj", 11, "k_proj", None),
    "layers.3.self_attn.v_proj": ("layers.3.self_attn.v_proj", 3, "v_proj", None),
    "layers.3.self_attn.o_proj": ("layers.3.self_attn.o_proj", 3, "o_proj", None),
    "layers.3.mlp.gate_proj": ("layers.3.mlp.gate_proj", 3, "gate_proj", None),
    "layers.3.mlp.up_proj": ("layers.3.mlp.up_proj", 3, "up_proj", None),
    "layers.3.mlp.down_proj": ("layers.3.mlp.down_proj", 3, "down_proj", None),
    "layers.3.mlp.gate": ("layers.3.mlp.router", 3, "router", None),
    "layers.3.mlp.router": ("layers.3.mlp.router", 3, "router", None),
    "layers.3.mlp.experts.17.up_proj": ("layers.3.mlp.experts.17.up_proj", 3, "up_proj", 17),
    "layers.3.mlp.shared_expert.up_proj": ("layers.3.mlp.shared_expert.up_proj", 3, "up_proj", None),
    "layers.3.mlp.shared_experts.up_proj": ("layers.3.mlp.shared_expert.up_proj", 3, "up_proj", None),
    "layers.3.block_sparse_moe.gate": ("layers.3.mlp.router", 3, "router", None),
    "layers.3.block_sparse_moe.experts.2.w1": ("layers.3.mlp.experts.2.gate_proj", 3, "gate_proj", 2),
    "layers.3.block_sparse_moe.experts.2.w2": ("layers.3.mlp.experts.2.down_proj", 3, "down_proj", 2),
    "layers.3.block_sparse_moe.experts.2.w3": ("layers.3.mlp.experts.2.up_proj", 3, "up_proj", 2),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("module", MATRICES)
def test_matrices_of_known_trees(wrapper: str, module: str) -> None:
    assert canonical(f"{wrapper}{module}.weight", 2) == Name(*MATRICES[module])


@pytest.mark.parametrize(
    ("stored", "layer"),
    [
        ("model.layers.3.mlp.shared_expert_gate.weight", 3),
        ("model.layers.3.self_attn.kv_a_proj_with_mqa.weight", 3),
        ("mtp.layers.0.self_attn.q_proj.weight", 0),
        ("model.vision_tower.encoder.layers.7.self_attn.q_proj.weight", 7),
        ("visual.blocks.5.attn.qkv.weight", 5),
        ("transformer.h.1.attn.c_attn.weight", 1),
        ("h.1.mlp.c_fc.weight", 1),
        ("model.layers.3.self_attn.q_proj", 3),
        ("model.layers.03.self_attn.q_proj.weight", None),
        ("model.layers.9999999.self_attn.q_proj.weight", None),
        ("score.weight", None),
        ("layers", None),
        ("", None),
    ],
)
def test_any_other_matrix_keeps_its_stored_name(stored: str, layer: int | None) -> None:
    assert canonical(stored, 2) == Name(stored, layer, "other", None)


@pytest.mark.parametrize("wrapper", ["model.", "", "language_model.model."])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("norm.weight", "norm"),
        ("layers.2.input_layernorm.weight", "layers.2.input_layernorm"),
        ("layers.2.self_attn.q_norm.weight", "layers.2.self_attn.q_norm"),
        ("layers.2.self_attn.q_proj.bias", "layers.2.self_attn.q_proj.bias"),
        ("layers.2.mlp.gate.e_score_correction_bias", "layers.2.mlp.gate.e_score_correction_bias"),
    ],
)
def test_vectors_get_analogous_names(wrapper: str, module: str, name: str) -> None:
    found = canonical(wrapper + module, 1)
    assert (found.name, found.kind) == (name, "other")
    assert found.layer == (None if name == "norm" else 2)


def test_stacked_experts_are_named_without_their_wrapper() -> None:
    found = canonical("model.layers.4.mlp.experts.gate_up_proj", 3)
    assert found == Name("layers.4.mlp.experts.gate_up_proj", 4, "other", None)


def test_order_of_tables() -> None:
    stored = [
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.10.self_attn.q_proj.weight",
        "model.layers.2.mlp.down_proj.weight",
        "model.layers.2.mlp.experts.10.up_proj.weight",
        "model.layers.2.mlp.experts.9.up_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.2.self_attn.k_proj.weight",
        "model.layers.2.self_attn.q_proj.weight",
        "wpe.weight",
        "model.embed_tokens.weight",
    ]
    names = [canonical(name, 1 if "norm" in name else 2) for name in stored]
    assert sorted(names, key=sort_key) == names[::-1]


@given(st.text(max_size=60), st.integers(0, 4))
def test_any_text_has_a_name(stored: str, ndim: int) -> None:
    name = canonical(stored, ndim)
    assert name.kind in KINDS
    assert canonical(stored, ndim) == name
    sort_key(name)
    if ndim == 2 and name.kind == "other":
        assert name.name == stored


@given(st.sampled_from(WRAPPERS), st.sampled_from(sorted(MATRICES)))
def test_canonical_names_are_fixed_points(wrapper: str, module: str) -> None:
    name = canonical(f"{wrapper}{module}.weight", 2)
    if name.layer is not None:
        assert canonical(f"{name.name}.weight", 2) == name


def test_conv1d_names() -> None:
    assert conv1d("transformer.h.0.attn.c_attn.weight")
    assert conv1d("h.11.mlp.c_proj.weight")
    assert not conv1d("h.11.mlp.c_proj.bias")
    assert not conv1d("wte.weight")
    assert not conv1d("model.layers.0.mlp.c_fc.weight")
