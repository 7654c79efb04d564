"""Interventions do what their formulas say, to every chosen token, to nothing else, and leave no trace."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, HEAD, HEADS, WIDTH, shared, texts, tiny
from torch import Tensor

from deltalens.errors import BadInput, Refused
from deltalens.model import operators
from deltalens.model.forward import forward
from deltalens.model.generate import Decoding, generate_ids
from deltalens.model.hooks import Intervention, intervene
from deltalens.model.points import NAMES, attach
from deltalens.model.select import (
    EVERYWHERE,
    GENERATION,
    LAST,
    PROMPT,
    Selector,
    Where,
    batch,
)
from deltalens.model.sites import Site, sites_of

ENDS = range(1, 128, 8)
EVERY = [
    LAST,
    PROMPT,
    GENERATION,
    EVERYWHERE,
    Selector((Where("generation", positions=(0, 2)),)),
    Selector((Where("generation", tokens=tuple(range(0, 128, 2))),)),
    Selector((Where(),), (Where(positions=(-1,)),)),
]


def direction(seed: int = 0, d: int = WIDTH) -> Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(seed))


def logits(model: Any, ids: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **options).logits


def every_site(model: Any, layer: int = 1) -> Iterator[Site]:
    sites = sites_of(model)
    for name in NAMES[:-1]:
        if (name, layer) not in sites.faults:
            yield Site(name, layer)
    yield Site("logits")
    yield Site("head_in", layer, 1)
    yield Site("v", layer, 0)


IDS = torch.tensor([[3, 70, 22, 9, 101], [88, 14, 3, 61, 40], [2, 2, 50, 9, 33]])


@pytest.mark.parametrize(
    ("operator", "tensor", "strength", "expected"),
    [
        ("add", [1.0, 2.0], 3.0, [6.0, 10.0]),
        ("add_keep_norm", [0.0, 5.0], 1.0, [5 * 3 / 90**0.5, 5 * 9 / 90**0.5]),
        ("ablate", [0.0, 2.0], 1.0, [3.0, 0.0]),
        ("ablate", [0.0, -7.0], 0.5, [3.0, 2.0]),
        ("clamp", [2.0, 0.0], -1.0, [-1.0, 4.0]),
        ("ablate_subspace", [[1.0, 1.0], [2.0, 2.0]], 1.0, [-0.5, 0.5]),
        ("replace", [8.0, 9.0], 1.0, [8.0, 9.0]),
    ],
)
def test_operators_by_hand(operator: str, tensor: list, strength: float, expected: list[float]) -> None:
    chosen = operators.OPERATORS[operator]
    prepared = chosen.prepare(torch.tensor(tensor))
    shaped = prepared if operator == "ablate_subspace" else prepared.view(1, 1, -1)
    new = chosen.apply(torch.tensor([[[3.0, 4.0]]]), shaped, torch.full((1, 1, 1), strength))
    torch.testing.assert_close(new, torch.tensor([[expected]]))


def test_ablation_is_two_sided() -> None:
    v = operators.unit(direction()).view(1, 1, -1)
    h = torch.stack([direction(1), -direction(1)])[None]
    left = operators.ablate(h, v, torch.ones(1, 1, 1))
    torch.testing.assert_close((left * v).sum(-1), torch.zeros(1, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_identity_and_zero_strength_are_bitwise_nothing(architecture: str) -> None:
    model = shared(architecture)
    sites = sites_of(model)
    plain = logits(model, IDS)
    for site in every_site(model):
        v = direction(1, sites.size(site))
        for operator in ("add", "add_keep_norm", "ablate"):
            with intervene(model, [Intervention(site, operator, v, 0.0, EVERYWHERE)]) as live:
                assert torch.equal(logits(model, IDS), plain), (site, operator)
            assert live.fired == (IDS.numel(),)
        own: list[Tensor] = []
        point = sites.point(site)
        for handle in attach(model, point, lambda x, own=own: own.append(x.clone()), lambda: len(IDS)):
            logits(model, IDS)
            handle.remove()
        with intervene(model, [Intervention(site, "replace", own[0], select=EVERYWHERE)]):
            assert torch.equal(logits(model, IDS), plain), site


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "opt", "gpt_neox"])
def test_every_row_is_reached_by_its_own_strength(architecture: str) -> None:
    model = shared(architecture)
    sites, plain = sites_of(model), logits(model, IDS)
    strengths = torch.tensor([0.0, 1.0, -2.0])
    for site in every_site(model):
        v = direction(2, sites.size(site))
        with intervene(model, [Intervention(site, "add", v, strengths, EVERYWHERE)]):
            together = logits(model, IDS)
        assert torch.equal(together[0], plain[0]), site
        for row in (1, 2):
            with intervene(model, [Intervention(site, "add", v, float(strengths[row]), EVERYWHERE)]):
                alone = logits(model, IDS[row : row + 1])[0]
            torch.testing.assert_close(together[row], alone, msg=str(site))
            moved = float((together[row] - plain[row]).abs().max()) > 1e-4
            # Without rotary embedding, one vector on every key moves all scores of a query alike: softmax sees nothing.
            assert moved != (site.name == "k" and architecture in ("gpt2", "opt")), site


def test_a_direction_for_every_row() -> None:
    model, vectors = shared("llama"), torch.stack([direction(i) for i in range(3)])
    with intervene(model, [Intervention(Site("resid_post", 0), "ablate", vectors, 1.0, EVERYWHERE)]):
        together = logits(model, IDS)
    for row in range(3):
        with intervene(model, [Intervention(Site("resid_post", 0), "ablate", vectors[row], 1.0, EVERYWHERE)]):
            torch.testing.assert_close(together[row], logits(model, IDS[row : row + 1])[0])


def test_nothing_is_written_in_place() -> None:
    for architecture in ("llama", "gpt2"):
        model, kept = shared(architecture), []

        def keep(module: Any, args: Any, output: Any, kept: list = kept) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            kept.extend((x, x.clone()) for x in (*args, *outputs) if isinstance(x, Tensor))

        handles = [module.register_forward_hook(keep) for module in list(model.modules())[1:]]
        for site in every_site(model):
            v = direction(2, sites_of(model).size(site))
            with intervene(model, [Intervention(site, "add", v, 1.0, EVERYWHERE)]):
                logits(model, IDS)
            assert all(torch.equal(x, copy) for x, copy in kept), site
            kept.clear()
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "opt", "gpt_neox"])
def test_only_the_chosen_token_moves(architecture: str) -> None:
    """The stream after a block moves at the last prompt token, by αv, and nowhere else; logits before it stay."""
    model, v = shared(architecture), direction()
    plain = logits(model, IDS)
    for name in {"resid_mid", "resid_pre", "attn_out", "mlp_out", "resid_post"} - {
        n for n, _ in sites_of(model).faults
    }:
        with intervene(model, [Intervention(Site(name, 1), "add", v, 2.0)]) as live:
            steered = logits(model, IDS)
        assert live.fired == (3,)
        assert torch.equal(steered[:, :-1], plain[:, :-1])
        assert bool((steered[:, -1] != plain[:, -1]).any(-1).all())


def test_the_stream_after_attention_carries_its_change() -> None:
    """resid_mid + v is attention's output + v: the norm and the sum behind it both see it."""
    for architecture in ("llama", "gemma2", "olmo2", "gpt2", "opt"):
        model, outputs = shared(architecture), []
        for name in ("resid_mid", "attn_out"):
            with intervene(model, [Intervention(Site(name, 1), "add", direction(), 1.5, EVERYWHERE)]):
                outputs.append(logits(model, IDS))
        torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "opt", "gpt_neox"])
def test_patching_a_layer_is_clean_downstream(architecture: str) -> None:
    model, other = shared(architecture), IDS.flip(0).roll(1, dims=1)
    found: list[Tensor] = []
    (handle,) = attach(model, sites_of(model).point(Site("resid_post", 1)), lambda x: found.append(x), lambda: 3)
    clean = logits(model, other)
    handle.remove()
    with intervene(model, [Intervention(Site("resid_post", 1), "replace", found[0], select=EVERYWHERE)]):
        assert torch.equal(logits(model, IDS), clean)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ablating_a_head_is_zeroing_its_columns_of_o_proj(architecture: str) -> None:
    model, head = tiny(architecture), 2
    for layer in range(2):
        site = Site("head_in", layer, head)
        with intervene(model, [Intervention(site, "replace", torch.zeros(HEAD), select=EVERYWHERE)]):
            hooked = logits(model, IDS)
        writer = model.get_submodule(sites_of(model).point(site).path)
        columns = slice(head * HEAD, (head + 1) * HEAD)
        before = writer.weight.detach().clone()
        with torch.no_grad():
            (writer.weight.T if architecture != "gpt2" else writer.weight)[columns] = 0
            zeroed = logits(model, IDS)
            writer.weight.copy_(before)
        torch.testing.assert_close(hooked, zeroed)
        assert not torch.allclose(hooked, logits(model, IDS), atol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2", "gpt_neox"])
def test_padding_changes_nothing(architecture: str) -> None:
    model, rows = shared(architecture), texts()
    width = max(map(len, rows))
    steps = [
        Intervention(Site("resid_post", 0), "add", direction(3), 2.0, Selector((Where(positions=(-1, -3)),))),
        Intervention(Site("head_in", 1, 1), "ablate", direction(4, HEAD), 1.0, PROMPT),
    ]
    alone = []
    for row in rows:
        with intervene(model, steps):
            alone.append(logits(model, torch.tensor([row]))[0])
    for padding in ("left", "right"):
        at = [slice(width - len(r), width) if padding == "left" else slice(0, len(r)) for r in rows]
        ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
        for i, (row, where) in enumerate(zip(rows, at, strict=True)):
            ids[i, where], mask[i, where] = torch.tensor(row), 1
        options = {} if architecture == "opt" else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        with intervene(model, steps) as live:
            found = logits(model, ids, attention_mask=mask, **options)
        assert live.fired == (sum(1 + (len(r) > 2) for r in rows), sum(map(len, rows)))
        for got, where, wanted in zip(found, at, alone, strict=True):
            torch.testing.assert_close(got[where], wanted, atol=2e-4, rtol=1e-4)


def generations(model: Any, prompts: list[list[int]], n: int, **options: Any) -> list[list[int]]:
    """transformers' own greedy generation, row by row."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        kwargs = {"do_sample": False, "max_new_tokens": n, "pad_token_id": 0, "eos_token_id": list(ENDS)}
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **kwargs, **options)
        found.append(out[0, ids.shape[1] :].tolist())
    return found


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "opt", "gpt_neox"])
def test_zero_strength_generates_what_transformers_does(architecture: str) -> None:
    model, prompts = shared(architecture), texts()
    plain = generations(model, prompts, 12)
    zero = [Intervention(Site("resid_post", 1), "add", direction(), torch.zeros(len(prompts)), EVERYWHERE)]
    with intervene(model, zero):
        assert generate_ids(model, prompts, Decoding(12), ends=ENDS, batch_size=3) == plain


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("selector", EVERY, ids=range(len(EVERY)))
def test_cached_decoding_is_reading_it_all_again(architecture: str, selector: Selector) -> None:
    """generate_ids with a cache, in a batch that loses rows, and transformers' generate, against whole forwards."""
    model, prompts = shared(architecture), texts(4)
    strengths = torch.tensor([1.0, -1.5, 0.0, 3.0])

    def steps(row: int | None) -> list[Intervention]:
        strength = strengths if row is None else float(strengths[row])
        return [Intervention(Site("resid_post", 1), "add", direction(9), strength, selector)]

    with intervene(model, steps(None)):
        cached = generate_ids(model, prompts, Decoding(8), ends=ENDS, batch_size=4)
    assert cached != generate_ids(model, prompts, Decoding(8), ends=ENDS), "the intervention must matter"
    for row, prompt in enumerate(prompts):
        text = list(prompt)
        for _ in range(8):
            ids = torch.tensor([text])
            with (
                contextlib.suppress(Refused),  # a text may have no chosen token yet
                intervene(model, steps(row)),
                batch([0], [(len(prompt),)]),
            ):
                text.append(int(logits(model, ids)[0, -1].argmax()))
            if text[-1] in ENDS:
                break
        assert cached[row] == text[len(prompt) :]
    if selector in (LAST, EVERYWHERE, PROMPT):
        with intervene(model, steps(1)):
            assert generations(model, prompts[1:2], 8)[0] == cached[1]


def test_a_second_prompt_is_a_prompt() -> None:
    """Two turns over one cache equal one reading that is told of the turns, logits and all."""
    model = shared("llama")
    first, second = [4, 9, 33, 7], [12, 80, 3]
    steps = [Intervention(Site("resid_post", 1), "add", direction(), 2.0, LAST)]
    pieces = [first, [21], [66], second, [90]]
    with intervene(model, steps) as live, torch.no_grad():
        mask, cache, found = torch.empty(1, 0, dtype=torch.long), None, []
        for piece in pieces:
            mask = torch.cat([mask, torch.ones(1, len(piece), dtype=torch.long)], dim=1)
            out, cache = forward(model, torch.tensor([piece]), mask, keep=len(piece), cache=cache, use_cache=True)
            found.append(out)
    assert live.fired == (2,)
    ids = torch.tensor([[token for piece in pieces for token in piece]])
    with intervene(model, steps) as live, batch([0], [(4, 2, 3, 1)]):
        whole = logits(model, ids)
    assert live.fired == (2,)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_exact_logits_after_an_exception() -> None:
    for architecture in ("llama", "opt"):
        model = tiny(architecture)
        sites_of(model)
        plain, hooks = logits(model, IDS), [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        bad = Intervention(Site("resid_post", 2), "add", direction(), torch.ones(2), EVERYWHERE)
        good = Intervention(Site("resid_mid", 0), "add", direction(), 5.0, EVERYWHERE)
        with pytest.raises(BadInput, match="row 2 of the batch has none of the 2"), intervene(model, [good, bad]):
            logits(model, IDS)
        with pytest.raises(ZeroDivisionError), intervene(model, [good]):
            1 / 0  # noqa: B018
        assert torch.equal(logits(model, IDS), plain)
        assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks


def test_a_selector_that_meets_nothing_is_refused() -> None:
    model = shared("llama")
    nothing = Intervention(Site("mlp_out", 0), "add", direction(), 1.0, GENERATION)
    with pytest.raises(Refused, match="add at mlp_out of layer 0 met no token"), intervene(model, [nothing]):
        logits(model, IDS)
    with (
        pytest.raises(Refused, match="met no token"),
        intervene(model, [Intervention(Site("q", 0), "add", direction())]),
    ):
        pass


def test_interventions_compose_in_order() -> None:
    model, v, site = shared("llama"), direction(), Site("resid_post", 1)
    clamp = Intervention(site, "clamp", v, 4.0, EVERYWHERE)
    add = Intervention(site, "add", v, 1.0, EVERYWHERE)
    with intervene(model, [clamp]):
        clamped = logits(model, IDS)
    with intervene(model, [add, clamp]):
        torch.testing.assert_close(logits(model, IDS), clamped)
    with intervene(model, [clamp, add]):
        last = logits(model, IDS)
    assert not torch.allclose(last, clamped, atol=1e-2)
    with intervene(model, [clamp]), intervene(model, [add]):
        assert torch.equal(logits(model, IDS), last)
    with intervene(model, [add]), intervene(model, [clamp]):
        torch.testing.assert_close(logits(model, IDS), clamped)
    # At the end of a block, after what came to the stream within it, whatever the order in the list.
    middle = Intervention(Site("resid_mid", 1), "add", v, 3.0, EVERYWHERE)
    end = Intervention(site, "replace", torch.zeros(WIDTH), select=EVERYWHERE)
    with intervene(model, [end]):
        blank = logits(model, IDS)
    with intervene(model, [end, middle]):
        assert torch.equal(logits(model, IDS), blank)


def test_half_precision_is_rounded_once() -> None:
    model = tiny("llama").to(torch.bfloat16)
    v, before, after = direction(), [], []
    point = sites_of(model).point(Site("resid_post", 1))
    handles = attach(model, point, lambda x: before.append(x), lambda: 3)
    with intervene(model, [Intervention(Site("resid_post", 1), "ablate", v, 1.0, EVERYWHERE)]):
        handles += attach(model, point, lambda x: after.append(x), lambda: 3)
        logits(model, IDS)
    for handle in handles:
        handle.remove()
    h, unit = before[0].double(), (v / v.norm()).double()
    exact = h - (h @ unit)[..., None] * unit
    torch.testing.assert_close(after[0], exact.to(torch.bfloat16), atol=2**-9, rtol=2**-8)


def test_logits_can_be_changed_in_generation() -> None:
    model = shared("gemma2")  # it caps its logits behind lm_head
    push = torch.zeros(128)
    push[42] = 100.0
    with intervene(model, [Intervention(Site("logits"), "add", push, 1.0, EVERYWHERE)]) as live:
        assert generate_ids(model, texts(2), Decoding(3), ends=[1]) == [[42] * 3] * 2
        assert live.fired == (6,), "the logits of each step's last token, for two rows"
        assert generations(model, texts(1), 3) == [[42] * 3]


def test_bad_input() -> None:
    model, site = shared("llama"), Site("resid_post", 1)

    def refuse(error: str, item: Intervention) -> None:
        with pytest.raises(BadInput, match=error), intervene(model, [item]):
            pass

    refuse("resid_post of layer 1 has width 32, the direction is 31", Intervention(site, "add", direction(0, 31)))
    refuse("has width 8, the direction is 32", Intervention(Site("head_in", 0, 1), "add", direction()))
    refuse("NaN or Inf", Intervention(site, "add", direction() * float("nan")))
    refuse("strength at resid_post of layer 1 is not finite", Intervention(site, "add", direction(), float("inf")))
    refuse("no operator is called ad .fix: add;", Intervention(site, "ad", direction()))
    refuse("length 0", Intervention(site, "ablate", torch.zeros(WIDTH)))
    refuse("no direction", Intervention(site, "ablate_subspace", torch.zeros(2, WIDTH)))
    refuse("no layer 7", Intervention(Site("resid_post", 7), "add", direction()))
    short = Intervention(site, "replace", torch.zeros(3, 2, WIDTH), select=EVERYWHERE)
    with pytest.raises(BadInput, match="the batch has 5 columns, its replacement 2"), intervene(model, [short]):
        logits(model, IDS)


def test_subspace_ablation_leaves_nothing_in_it() -> None:
    model, basis = shared("qwen3"), torch.stack([direction(1), direction(2), direction(1) + direction(2)])
    after: list[Tensor] = []
    site = Site("resid_pre", 2)
    with intervene(model, [Intervention(site, "ablate_subspace", basis, 1.0, EVERYWHERE)]):
        (handle,) = attach(model, sites_of(model).point(site), lambda x: after.append(x), lambda: 3)
        logits(model, IDS)
        handle.remove()
    torch.testing.assert_close(after[0] @ basis.T, torch.zeros(3, 5, 3), atol=1e-4, rtol=0)
    assert np.linalg.matrix_rank(after[0].reshape(-1, WIDTH).numpy(), tol=1e-4) > HEADS
