"""Sites are where their names say, on every architecture; what does not fit is refused with its reason."""

from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, GROUPED, HEAD, HEADS, LAYERS, VOCABULARY, WIDTH, shared, tiny
from torch import Tensor, nn

from deltalens.errors import BadInput, Refused
from deltalens.model.points import NAMES, attach
from deltalens.model.sites import Site, input_of, sites_of

IDS = torch.tensor([[3, 70, 22, 9, 101, 54], [88, 14, 3, 61, 40, 7]])


def activations(model: Any, sites: list[Site], change: tuple[Site, Any] | None = None) -> dict[Site, Tensor]:
    """What stands at sites while the model reads IDS, perhaps with one of them changed."""
    known, found, handles = sites_of(model), {}, []
    try:
        if change is not None:
            handles += attach(model, known.point(change[0]), change[1], lambda: len(IDS))
        for site in sites:
            visit = lambda x, site=site: found.update({site: x.clone()})  # noqa: E731
            handles += attach(model, known.point(site), visit, lambda: len(IDS))
        with torch.no_grad():
            model(input_ids=IDS, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_site_is_offered_and_has_its_size(architecture: str) -> None:
    model = shared(architecture)
    sites = sites_of(model)
    missing = {"resid_mid"} if architecture == "gpt_neox" else set()  # its blocks are parallel
    assert {name for name, _ in sites.faults} == missing
    inner = 128 if architecture == "gpt2" else 64
    kv = 2 if architecture in GROUPED else HEADS
    sizes = {"q": HEADS * HEAD, "k": kv * HEAD, "v": kv * HEAD, "head_in": HEADS * HEAD, "mlp_act": inner}
    for name in set(NAMES) - missing - {"logits"}:
        assert sites.size(Site(name, 1)) == sizes.get(name, WIDTH)
    assert sites.size(Site("logits")) == VOCABULARY
    assert sites.size(Site("k", 0, 1)) == HEAD
    assert sites_of(model) is sites, "validated once"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_stream_adds_up(architecture: str) -> None:
    model = shared(architecture)
    names = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    found = activations(model, [Site(name, at) for name in names for at in range(LAYERS)])
    for at in range(LAYERS):
        pre, attention, mlp, post = (found[Site(name, at)] for name in names)
        torch.testing.assert_close(pre + attention + mlp, post)
        assert at == 0 or torch.equal(pre, found[Site("resid_post", at - 1)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_keys_are_those_that_are_cached(architecture: str) -> None:
    model = shared(architecture)
    found = activations(model, [Site("k", 1), Site("v", 1), *(Site("v", 1, h) for h in range(2))])
    with torch.no_grad():
        out = model(input_ids=IDS, use_cache=True)
    cached = out[1].layers[1]
    keys, values = cached.keys, cached.values
    assert torch.equal(found[Site("v", 1)].view(2, 6, -1, HEAD).transpose(1, 2), values)
    assert torch.equal(found[Site("v", 1, 1)], values[:, 1])
    if architecture not in ("qwen3", "olmo2"):  # they normalise keys in between
        # Rotary embedding leaves position 0 alone; GPT-2 and OPT have none.
        torch.testing.assert_close(found[Site("k", 1)].view(2, 6, -1, HEAD)[:, 0], keys[:, :, 0])


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "olmo2"])  # it normalises all heads as one
def test_a_head_moves_only_the_heads_that_read_it(architecture: str) -> None:
    model = shared(architecture)
    sites = sites_of(model)
    shake = lambda x: x + torch.linspace(-1, 2, x.shape[-1])  # noqa: E731
    plain = activations(model, [Site("head_in", 1)])[Site("head_in", 1)]
    for name, heads in (("q", HEADS), ("k", sites.kv_heads), ("v", sites.kv_heads)):
        for head in range(heads):
            change = (Site(name, 1, head), shake)
            moved = activations(model, [Site("head_in", 1)], change)[Site("head_in", 1)] != plain
            mine = {h for h in range(HEADS) if (h if name == "q" else sites.kv_head(h)) == head}
            assert {h for h in range(HEADS) if bool(moved.view(2, 6, HEADS, HEAD)[:, :, h].any())} == mine


def test_matrices_read_their_input_sites() -> None:
    model = shared("llama")
    block = model.model.layers[2]
    kinds = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "attn_out", "down_proj": "mlp_out"}
    found = activations(model, [*(input_of(kind, 2) for kind in kinds), *(Site(name, 2) for name in kinds.values())])
    for kind, output in kinds.items():
        matrix = getattr(block.mlp if kind == "down_proj" else block.self_attn, kind)
        torch.testing.assert_close(matrix(found[input_of(kind, 2)]), found[Site(output, 2)])
    inner = activations(model, [input_of("gate_proj", 2), input_of("up_proj", 2), Site("mlp_act", 2)])
    x = inner[input_of("gate_proj", 2)]
    act = nn.functional.silu(block.mlp.gate_proj(x)) * block.mlp.up_proj(x)
    torch.testing.assert_close(act, inner[Site("mlp_act", 2)])


def test_structure_stands_in_for_names() -> None:
    sites = sites_of(tiny("phi"))  # parallel, self_attn.dense, mlp.fc2: in no row of the table
    assert set(sites.modules[0]) == {"attn_in", "head_in", "attn_out", "mlp_in", "mlp_act", "mlp_out"}
    assert not sites.faults


def test_a_mixture_has_no_mlp_act() -> None:
    sites = sites_of(tiny("mixtral", num_local_experts=4))
    with pytest.raises(BadInput, match="layer 0 of this model has no mlp_act"):
        sites.point(Site("mlp_act", 0))
    assert sites.size(Site("mlp_in", 0)) == WIDTH


def test_what_does_not_fit_is_refused_with_its_reason() -> None:
    scaled = sites_of(tiny("granite", residual_multiplier=0.3))  # the stream gets a fraction of what modules return
    with pytest.raises(Refused, match=r"attn_out of layer 1 cannot be used: resid_pre \+ attn_out \+ mlp_out is not"):
        scaled.point(Site("attn_out", 1))
    assert scaled.point(Site("resid_post", 1)).path == "model.layers.1"
    with pytest.raises(Refused, match="the block may be parallel"):
        sites_of(shared("gpt_neox")).point(Site("resid_mid", 0))
    sequential = sites_of(tiny("gpt_neox", use_parallel_residual=False))
    assert sequential.point(Site("resid_mid", 0)).carried_to == "gpt_neox.layers.0"
    dead = tiny("llama")
    with torch.no_grad():
        dead.model.layers[0].self_attn.o_proj.weight.zero_()
    with pytest.raises(Refused, match="head_in of layer 0, head 1 cannot be used: changing it changes no logit"):
        sites_of(dead).point(Site("head_in", 0, 1))


def test_a_stream_that_does_not_run_through_the_blocks_is_refused() -> None:
    detour = tiny("llama")
    detour.model.layers[1].register_forward_pre_hook(lambda m, args: (args[0] * 1.5, *args[1:]))
    with pytest.raises(Refused, match=r"the input of model.layers.1 is not the output of model.layers.0"):
        sites_of(detour)
    short = tiny("llama")
    short.config.num_hidden_layers = 5
    with pytest.raises(Refused, match="has no list of 5 blocks"):
        sites_of(short)


def test_wrong_heads_are_found() -> None:
    model = tiny("llama")
    inside = model.model.layers[1].self_attn.v_proj
    inside.forward = lambda x: nn.functional.linear(x, inside.weight).roll(HEAD, dims=-1)
    assert not sites_of(model).faults, "a roll inside the module is the model's own affair"
    other = tiny("llama")
    other.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda m, args: (args[0].roll(HEAD, dims=-1),))
    with pytest.raises(Refused, match="v is not what its heads pass on"):
        sites_of(other).point(Site("v", 1))


def test_bad_input_names_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"no site is called resid_pots \(fix: resid_post;"):
        Site("resid_pots", 1)
    with pytest.raises(BadInput, match="resid_post needs a layer"):
        Site("resid_post")
    with pytest.raises(BadInput, match="logits has no layer"):
        Site("logits", 3)
    with pytest.raises(BadInput, match="mlp_out has no heads"):
        Site("mlp_out", 1, 0)
    with pytest.raises(BadInput, match="the input of embed is not a site"):
        input_of("embed", 0)
    sites = sites_of(shared("llama"))
    with pytest.raises(BadInput, match=r"no layer 3 \(fix: a layer from 0 to 2"):
        sites.point(Site("q", 3))
    with pytest.raises(BadInput, match=r"k has no head 2 \(fix: a head from 0 to 1"):
        sites.point(Site("k", 0, 2))
