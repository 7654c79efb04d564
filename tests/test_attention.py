"""The open attention is eager attention; what it hides is hidden, and the model's own implementation comes back."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, HEADS, LAYERS, shared, texts, tiny
from torch import Tensor

from deltalens.errors import BadInput, Refused
from deltalens.model.attention import attend, head_statistics
from deltalens.model.forward import forward, left_padded
from deltalens.model.generate import Decoding, generate_ids
from deltalens.model.select import EVERYWHERE, GENERATION, Selector, Where

IDS = torch.tensor([[3, 70, 22, 9, 101, 64, 8, 90, 91, 5], [88, 14, 3, 61, 40, 33, 32, 18, 7, 51]])


def logits(model: Any, ids: Tensor = IDS, mask: Tensor | None = None, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits


def patterns(model: Any, ids: Tensor) -> list[Tensor]:
    """transformers' own attention weights, under eager attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    model.set_attn_implementation(before)
    return list(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_open_attention_is_eager_attention(architecture: str) -> None:
    model, seen = shared(architecture), {}
    before = model.config._attn_implementation
    plain, wanted = logits(model), patterns(model, IDS)
    with attend(model, lambda layer, probs, track: seen.update({layer: probs})):
        torch.testing.assert_close(logits(model), plain, atol=5e-4, rtol=1e-4)  # two kernels, float32
    assert sorted(seen) == list(range(LAYERS))
    for layer, pattern in enumerate(wanted):
        assert seen[layer].shape == (2, HEADS, 10, 10)
        torch.testing.assert_close(seen[layer], pattern, atol=1e-5, rtol=1e-4)
    assert model.config._attn_implementation == before
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2", "gpt_neox"])
def test_hiding_is_a_mask_of_four_dimensions(architecture: str) -> None:
    """The oracle is a whole mask given by hand, to eager attention, in a model without a sliding window."""
    model = tiny(architecture, **({"sliding_window": 64} if architecture in ("mistral", "gemma2") else {}))
    start, stop = 2, 5
    allowed = torch.ones(10, 10, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    allowed[0, :, stop:, start:stop] = False
    own = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
    model.set_attn_implementation("eager")
    mask = {"full_attention": own, "sliding_attention": own} if architecture == "gemma2" else own
    wanted, plain = logits(model, mask=mask), logits(model)
    with attend(model, hide=[(start, stop), None]):
        found = logits(model)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[:, :stop], plain[:, :stop], atol=1e-5, rtol=1e-5)  # earlier positions unchanged
    torch.testing.assert_close(found[1], plain[1], atol=1e-5, rtol=1e-5)
    assert bool(((found[0, stop:] - plain[0, stop:]).abs().amax(-1) > 1e-3).all())


def test_hiding_acts_in_the_layers_named() -> None:
    model = shared("llama")
    with attend(model, hide=[(2, 5)] * 2, layers=[2]):
        last = logits(model)
    with attend(model, hide=[(2, 5)] * 2):
        every = logits(model)
    assert float((last - every).abs().max()) > 1e-3
    assert float((last - logits(model)).abs().max()) > 1e-3


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2"])
def test_hiding_under_padding_and_a_cache(architecture: str) -> None:
    """Rows of a left-padded, cached generation that loses rows are those of whole texts read alone."""
    model, prompts = shared(architecture), texts(4)
    hide = [(1, 4), None, (0, 9), (2, 3)]
    ends = range(1, 128, 8)
    with attend(model, hide=hide):
        cached = generate_ids(model, prompts, Decoding(8), ends=ends, batch_size=4)
    assert cached != generate_ids(model, prompts, Decoding(8), ends=ends)
    for prompt, hidden, completion in zip(prompts, hide, cached, strict=True):
        text = list(prompt)
        for _ in completion:
            ids = torch.tensor([text])
            with attend(model, hide=None if hidden is None else [hidden]):
                text.append(int(logits(model, ids)[0, -1].argmax()))
        assert text[len(prompt) :] == completion


def test_the_models_own_attention_comes_back() -> None:
    model, other = shared("llama"), shared("gpt2")
    plain, before = logits(model), model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), attend(model):
        1 / 0  # noqa: B018
    with pytest.raises(Refused, match="is open already"), attend(model), attend(model):
        pass
    with attend(model), attend(other):  # two models at a time
        torch.testing.assert_close(logits(model), plain, atol=1e-4, rtol=1e-4)
        logits(other)
    assert model.config._attn_implementation == before
    assert torch.equal(logits(model), plain)


def test_what_cannot_be_done_is_refused() -> None:
    model = shared("llama")
    with pytest.raises(Refused, match="no token was kept from a hidden span"), attend(model, hide=[(8, 10)] * 2):
        logits(model)
    with pytest.raises(BadInput, match="the span 3:3 of row 1 is empty"), attend(model, hide=[None, (3, 3)]):
        pass
    with pytest.raises(BadInput, match="row 1 of the batch has none of the 1 spans"), attend(model, hide=[(1, 3)]):
        logits(model)
    with pytest.raises(Refused, match="no token"):
        head_statistics(model, texts(), GENERATION)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_head_statistics_are_those_of_the_patterns(architecture: str) -> None:
    model, prompts = shared(architecture), texts()
    spans = [(0, 2), (1, 3), (4, 9), (0, 1), (2, 3)]
    for select in (EVERYWHERE, Selector((Where(positions=(-1, -2)),))):
        found = head_statistics(model, prompts, select, spans=spans, batch_size=2)
        parts: list[np.ndarray] = []
        for prompt, (start, stop) in zip(prompts, spans, strict=True):
            queries = range(len(prompt)) if select == EVERYWHERE else [len(prompt) - 2, len(prompt) - 1]
            own = torch.stack(patterns(model, torch.tensor([prompt])))[:, 0].double().numpy()  # layers heads new keys
            for query in queries:
                p = own[:, :, query, : query + 1]
                entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)
                distance = np.sum(p * (query - np.arange(query + 1)), axis=-1)
                parts.append(np.stack([entropy, p[..., 0], distance, p[..., start:stop].sum(-1)]))
        assert found.tokens == len(parts)
        wanted = np.mean(parts, axis=0)
        assert found.span is not None
        for got, want in zip((found.entropy, found.first, found.distance, found.span), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_uniform_attention_by_hand() -> None:
    model = tiny("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    found = head_statistics(model, [[4, 5, 6, 7]], spans=[(1, 3)])
    assert found.entropy == pytest.approx(torch.full((LAYERS, HEADS), math.log(4), dtype=torch.float64))
    assert found.first == pytest.approx(torch.full((LAYERS, HEADS), 0.25, dtype=torch.float64))
    assert found.distance == pytest.approx(torch.full((LAYERS, HEADS), 1.5, dtype=torch.float64))
    assert found.span == pytest.approx(torch.full((LAYERS, HEADS), 0.5, dtype=torch.float64))


def test_a_batch_reads_what_a_row_alone_does() -> None:
    model, prompts, rows = shared("llama"), texts(3), {}
    ids, mask = left_padded(prompts, model.device)
    with torch.no_grad(), attend(model, lambda layer, probs, track: rows.update({layer: probs})):
        forward(model, ids, mask, keep=1)
    for i, prompt in enumerate(prompts):
        wanted = patterns(model, torch.tensor([prompt]))
        n = len(prompt)
        for layer in range(LAYERS):
            torch.testing.assert_close(rows[layer][i, :, -n:, -n:], wanted[layer][0], atol=1e-5, rtol=1e-4)
            assert float(rows[layer][i, :, -n:, :-n].sum()) == 0.0
