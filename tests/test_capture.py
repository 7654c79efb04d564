"""Captured moments are numpy's float64 on the concatenated activations of prompts read one by one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import WIDTH, shared, texts, tiny

from deltalens.errors import BadInput, Refused
from deltalens.model.capture import capture_moments, capture_rows
from deltalens.model.hooks import Intervention, intervene
from deltalens.model.points import attach
from deltalens.model.select import EVERYWHERE, GENERATION, LAST, Selector, Where
from deltalens.model.sites import Site, sites_of

SITES = [Site("resid_post", 0), Site("mlp_act", 1), Site("head_in", 2, 3), Site("resid_mid", 1), Site("logits")]


def alone(model: Any, prompts: Sequence[Sequence[int]], site: Site) -> list[np.ndarray]:
    """A site's activations, every prompt read by itself: no padding, no batch, no early stop."""
    found: list[torch.Tensor] = []
    handles = attach(model, sites_of(model).point(site), lambda x: found.append(x[0]), lambda: 1)
    with torch.no_grad():
        for prompt in prompts:
            model(input_ids=torch.tensor([prompt]), use_cache=False)
    for handle in handles:
        handle.remove()
    return [x.double().numpy() for x in found]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "opt"])
def test_moments_are_those_of_the_concatenated_activations(architecture: str) -> None:
    model, prompts, groups = shared(architecture), texts(), [0, 1, 0, 2, 1]
    found = capture_moments(model, prompts, SITES, EVERYWHERE, groups=groups, outer=True, batch_size=2)
    for site in SITES:
        rows = alone(model, prompts, site)
        for group in range(3):
            x = np.concatenate([row for row, g in zip(rows, groups, strict=True) if g == group])
            moments = found[site]
            assert moments.count[group] == len(x)
            close = {"rtol": 1e-4, "atol": 1e-4 * np.abs(x).max() ** 2}
            np.testing.assert_allclose(moments.mean[group], x.mean(0), rtol=1e-4, atol=1e-4 * np.abs(x).max())
            np.testing.assert_allclose(moments.square[group], (x**2).mean(0), **close)
            assert moments.outer is not None
            np.testing.assert_allclose(moments.outer[group], x.T @ x / len(x), **close)


def test_sums_are_float64() -> None:
    """Given the same rows, moments agree with numpy to float64's precision, far beyond float32's."""
    model, prompts = shared("llama"), texts()
    rows = capture_rows(model, prompts, SITES, EVERYWHERE, batch_size=2)
    moments = capture_moments(model, prompts, SITES, EVERYWHERE, outer=True, batch_size=2)
    for site in SITES:
        x = rows[site].values.double().numpy()
        np.testing.assert_allclose(moments[site].mean[0], x.mean(0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(moments[site].square[0], (x**2).mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments[site].outer[0], x.T @ x / len(x), rtol=1e-11, atol=1e-13)


def test_rows_come_in_order_with_their_places() -> None:
    model, prompts = shared("llama"), texts()
    select = Selector((Where(positions=(-1, -4)),))
    found = capture_rows(model, prompts, SITES, select, batch_size=2)
    places = [(i, len(p) + at) for i, p in enumerate(prompts) for at in (-4, -1) if len(p) + at >= 0]
    for site in SITES:
        rows = found[site]
        assert list(zip(rows.row.tolist(), rows.position.tolist(), strict=True)) == places
        wanted = np.stack([alone(model, prompts, site)[i][at] for i, at in places])
        np.testing.assert_allclose(rows.values, wanted, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(rows.norm, np.linalg.norm(rows.values, axis=1), rtol=1e-5)
        assert rows.values.dtype == torch.float32


def test_projections_are_inner_products() -> None:
    model, prompts, site = shared("llama"), texts(), SITES[0]
    vectors = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    full = capture_rows(model, prompts, [site, SITES[1]], EVERYWHERE)
    part = capture_rows(model, prompts, [site, SITES[1]], EVERYWHERE, project={site: vectors})
    torch.testing.assert_close(part[site].values, full[site].values @ vectors.T)
    assert torch.equal(part[site].norm, full[site].norm)
    assert torch.equal(part[SITES[1]].values, full[SITES[1]].values)


def test_turns_tell_completion_from_prompt() -> None:
    model, prompts = shared("llama"), texts()
    lengths = [(len(p) - 2,) for p in prompts]
    rows = capture_rows(model, prompts, [SITES[0]], GENERATION, turns=lengths, batch_size=2)[SITES[0]]
    assert rows.position.tolist() == [at for p in prompts for at in (len(p) - 2, len(p) - 1)]
    last = capture_rows(model, prompts, [SITES[0]], LAST, turns=lengths)[SITES[0]]
    assert last.position.tolist() == [len(p) - 3 for p in prompts]


def test_the_pass_stops_behind_the_deepest_site() -> None:
    model, ran = tiny("llama"), []
    sites_of(model)
    for i, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda m, args, output, i=i: ran.append(i))
    plain = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    ran.clear()
    capture_moments(model, texts(), [Site("attn_out", 1), Site("resid_pre", 0)])
    assert ran == [0]
    assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, plain), "and leaves no trace"
    assert not model._forward_pre_hooks


def test_capture_sees_an_intervention() -> None:
    model, v = shared("llama"), torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))
    site, strengths = Site("resid_post", 1), torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    plain = capture_rows(model, texts(), [site])[site].values
    with intervene(model, [Intervention(site, "add", v, strengths)]):  # strengths follow prompts, not batches
        steered = capture_rows(model, texts(), [site], batch_size=2)[site].values
    torch.testing.assert_close(steered, plain + strengths[:, None] * v, atol=1e-4, rtol=1e-4)


def test_bad_input() -> None:
    model, site = shared("llama"), SITES[0]
    with pytest.raises(Refused, match="the selector matches no token"):
        capture_rows(model, texts(), [site], GENERATION)
    only = Selector((Where(positions=(-12,)),))  # in the longest prompt
    with pytest.raises(Refused, match="no token of group 1"):
        capture_moments(model, texts(), [site], only, groups=[1, 1, 0, 1, 1])
    with pytest.raises(BadInput, match="do not form groups"):
        capture_moments(model, texts(), [site], groups=[0, 0, 2, 2, 2])
    with pytest.raises(BadInput, match="do not form groups"):
        capture_moments(model, [], [site])
    with pytest.raises(BadInput, match="prompt 1 has no tokens"):
        capture_rows(model, [[4], []], [site])
    with pytest.raises(BadInput, match="has no layer 9"):
        capture_rows(model, texts(), [Site("q", 9)])
    with pytest.raises(BadInput, match="no site to capture"):
        capture_rows(model, texts(), [])
    with pytest.raises(BadInput, match="has width 32, the directions 8"):
        capture_rows(model, texts(), [site], project={site: torch.ones(2, 8)})
