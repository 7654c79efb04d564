"""One-forward scores against full forward passes of one unpadded row each, and against brute force."""

import itertools
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from deltalens.errors import BadInput
from deltalens.family.catalog import MODELS
from deltalens.model import score
from deltalens.model.generate import Decoding, generate_ids
from deltalens.model.hooks import Intervention, intervene
from deltalens.model.load import load_directory
from deltalens.model.points import Site
from deltalens.model.select import GENERATION, LAST, PROMPT, Track, batch

VOCABULARY = 7


def tiny(kind: str = "llama", vocabulary: int = VOCABULARY) -> Any:
    torch.manual_seed(2)
    shared = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "llama":
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shared, intermediate_size=64))
    elif kind == "opt":
        config = transformers.OPTConfig(**shared, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=32)
        model = transformers.OPTForCausalLM(config)
    else:  # caps its logits behind the head
        config = transformers.Gemma2Config(
            **shared, intermediate_size=64, head_dim=8, num_key_value_heads=2, sliding_window=4
        )
        model = transformers.Gemma2ForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8.0 if p.ndim == 2 else 1.0)  # far from uniform
    return model.eval()


@torch.no_grad()
def next_log_probs(model: Any, ids: list[int]) -> Tensor:
    """The distribution of the next token by a full forward pass of one row."""
    return model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)


@torch.no_grad()
def probability(model: Any, prompt: list[int], continuation: tuple[int, ...] | list[int]) -> float:
    """The product of conditional probabilities, a full forward pass for each."""
    p = 1.0
    for at, token in enumerate(continuation):
        p *= float(next_log_probs(model, [*prompt, *continuation[:at]])[token].exp())
    return p


PROMPTS = [[1, 2, 3, 4, 5], [6], [0, 0, 1], [5, 4, 3, 2, 1, 0, 6, 6], [2, 6]]


@pytest.mark.parametrize("kind", ["llama", "opt", "gemma2"])
def test_continuations_of_any_lengths_beside_prompts_of_any_lengths(kind: str) -> None:
    model = tiny(kind)
    continuations = [[1], [2, 3, 4, 5, 6, 0], [], [3, 3, 3], [0, 1]]
    found = score.continuation_log_probs(model, PROMPTS, continuations, batch_size=3)
    for prompt, continuation, row in zip(PROMPTS, continuations, found, strict=True):
        wanted = [next_log_probs(model, [*prompt, *continuation[:i]])[t] for i, t in enumerate(continuation)]
        assert row.tolist() == pytest.approx([float(x) for x in wanted], abs=1e-5)


def test_a_tag_of_three_tokens_is_the_product_of_its_conditionals() -> None:
    model, tag = tiny(), (4, 0, 2)
    found = score.opening_probs(model, PROMPTS, tag, batch_size=2)
    assert found.tolist() == pytest.approx([probability(model, prompt, tag) for prompt in PROMPTS], rel=1e-5)
    ends = torch.stack([score.opening_probs(model, PROMPTS, (4, 0, last)) for last in range(VOCABULARY)])
    assert torch.allclose(ends.sum(0), score.opening_probs(model, PROMPTS, (4, 0)), rtol=1e-5)


def test_opening_is_the_share_of_samples_that_open() -> None:
    model, tag, n = tiny(), [4, 0], 3000
    p = float(score.opening_probs(model, [PROMPTS[0]], tag)[0])
    rows = generate_ids(model, [PROMPTS[0]] * n, Decoding(2, 1.0), ends=set(), seeds=range(n), batch_size=n)
    assert 0.005 < p < 0.5
    assert sum(row == tag for row in rows) / n == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5)


@pytest.mark.parametrize("tag", [(3,), (3, 5)])
def test_skip_is_exact_for_one_position(tag: tuple[int, ...]) -> None:
    model = tiny()
    wanted = [probability(model, prompt, tag) for prompt in PROMPTS]
    assert score.skip_probs(model, PROMPTS, tag, within=1).tolist() == pytest.approx(wanted, rel=1e-5)


def test_skip_within_two_against_every_text() -> None:
    """Among all texts whose first token does not close, those along the most likely one decide the second position."""
    model, closing_first = tiny(), []
    for close, prompt in itertools.product(range(VOCABULARY), PROMPTS):
        with torch.no_grad():
            # Every first token with what follows it, one unpadded row each.
            logits = model(torch.tensor([[*prompt, token] for token in range(VOCABULARY)])).logits[:, -2:]
        first, second = logits.double().softmax(-1).unbind(1)
        texts = first[0][:, None] * second  # the probability of every text of two tokens
        open_texts = texts.sum(1)
        closing_first.append(int(open_texts.argmax()) == close)
        open_texts[close] = 0
        path = int(open_texts.argmax())
        wanted = texts[close].sum() + open_texts.sum() * texts[path, close] / texts[path].sum()
        assert float(score.skip_probs(model, [prompt], [close], within=2)[0]) == pytest.approx(float(wanted), rel=1e-4)
    assert any(closing_first) and not all(closing_first)


def test_skip_within_two_is_exact_where_all_other_tokens_agree() -> None:
    """A model that looks at no token closes with the same probability everywhere: a geometric law."""
    model = tiny()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.ones_like(model.model.embed_tokens.weight))
    p = probability(model, [1, 2], (3,))
    for within in (1, 2, 4):
        assert float(score.skip_probs(model, [[1, 2]], [3], within)[0]) == pytest.approx(
            1 - (1 - p) ** within, rel=1e-4
        )


def test_scores_depend_on_no_batch_and_generate_nothing() -> None:
    model = tiny()
    passes: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, args, kw: passes.append(kw["use_cache"]), with_kwargs=True)
    whole = score.opening_probs(model, PROMPTS, [4, 0, 2])
    assert passes == [False]
    skips = score.skip_probs(model, PROMPTS, [3, 5], within=4)
    assert passes == [False] * 5
    handle.remove()
    for i, prompt in enumerate(PROMPTS):
        assert torch.allclose(score.opening_probs(model, [prompt], [4, 0, 2]), whole[i], rtol=1e-5)
        assert torch.allclose(score.skip_probs(model, [prompt], [3, 5], 4), skips[i], rtol=1e-5)


def test_hooks_take_the_prompt_as_prompt_and_the_continuation_as_generated() -> None:
    model, track = tiny(), Track()
    continuations = [[1], [2, 3, 4, 5, 6, 0], [], [3, 3, 3], [0, 1]]
    read: dict[int, tuple[list[int], list[int]]] = {}

    def look(model: Any, args: Any, kwargs: Any) -> None:
        track.observe(model, args, kwargs)
        prompt, generated = (track.chosen(selector)[0] for selector in (PROMPT, GENERATION))
        for at, row in enumerate(track.rows.tolist()):
            read[row] = track.ids[at][prompt[at]].tolist(), track.ids[at][generated[at]].tolist()

    model.register_forward_pre_hook(look, with_kwargs=True)
    score.continuation_log_probs(model, PROMPTS, continuations, batch_size=3)
    # The last token of a continuation is predicted, and read by nothing.
    assert read == {i: (PROMPTS[i], c[:-1]) for i, c in enumerate(continuations) if c}


def test_logits_are_kept_for_continuations_only_and_fit_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    model, continuations = tiny(), [[1, 2]] * 5
    whole = score.continuation_log_probs(model, PROMPTS, continuations)
    shapes: list[tuple[int, ...]] = []
    model.register_forward_hook(lambda _, args, out: shapes.append(tuple(out.logits.shape)))
    monkeypatch.setattr(score, "_LOGITS", 2 * 2 * VOCABULARY)
    bounded = score.continuation_log_probs(model, PROMPTS, continuations)
    assert shapes == [(2, 2, VOCABULARY), (2, 2, VOCABULARY), (1, 2, VOCABULARY)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, bounded, strict=True))


def test_two_models_yield_the_same_rows_in_the_same_order() -> None:
    one, other = (
        [i for i, _ in score.continuation_logits(tiny(kind), PROMPTS, [[1]] * 5, size)]
        for kind, size in (("llama", 2), ("opt", 5))
    )
    assert one == other and sorted(one) == list(range(5))


def test_bad_input_is_refused() -> None:
    with pytest.raises(BadInput, match="prompt 1 has no tokens"):
        score.opening_probs(tiny(), [[1], []], [2])
    with pytest.raises(BadInput, match="prompt 0 has 31 tokens and 2 new ones, but the model knows 32 positions"):
        score.opening_probs(tiny("opt"), [[1] * 31], [2, 3])
    assert score.continuation_log_probs(tiny(), [], []) == []
    assert score.opening_probs(tiny(), [], [1]).shape == (0,)
    assert score.skip_probs(tiny(), [], [1]).shape == (0,)


def test_a_steered_last_prompt_token_stays_where_it_is_along_the_path() -> None:
    # h at t = 1 is read two tokens behind the prompt's end: a hook at "the last prompt token" must not follow it there.
    model = tiny()
    close, prompt = [3, 5], [1, 2, 4]
    vector = torch.linspace(-3, 3, model.config.hidden_size)
    push = Intervention(Site("resid_post", 0), "add", vector, 4.0, LAST)
    with intervene(model, [push]):
        found = score.skip_probs(model, [prompt], close, within=2)
    stays, path = 1.0, []
    for _ in range(2):
        with intervene(model, [push]), torch.no_grad():
            text = [*prompt, *path, *close]
            with batch([0], turns=[(len(prompt),)]):
                log_probs = model(torch.tensor([text])).logits[0, len(prompt) + len(path) - 1 : -1].log_softmax(-1)
        stays *= 1 - float(sum(log_probs[i, token] for i, token in enumerate(close)).exp())
        log_probs[0, close[0]] = -torch.inf
        path.append(int(log_probs[0].argmax()))
    assert float(found[0]) == pytest.approx(1 - stays, rel=1e-4)


HEADER = [1, 5, 2, 0, 3, 6, 4, 4, 1, 2, 5, 3, 0, 6, 2, 1, 3, 5, 4, 0]
SHARING = [[*HEADER, *rest] for rest in ([3, 1, 2], [], [0], [5, 5, 5, 2, 1, 0, 6, 3], [3, 1, 4, 2])]
TAGS = [[4, 0, 2]] * 5
TEXTS = [[1], [2, 3, 4, 5, 6, 0], [], [3, 3, 3], [0, 1]]


def named(kind: str) -> Any:
    return tiny(kind) if kind in ("llama", "opt", "gemma2") else load_directory(MODELS / kind)[0]


def widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and columns of every pass from here on; no hook, for these are what sharing looks out for."""
    shapes: list[tuple[int, int]] = []

    def counted(model: Any, ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        shapes.append((ids.shape[0], ids.shape[1]))
        return plain(model, ids, *args, **kwargs)

    plain = score.forward
    monkeypatch.setattr(score, "forward", counted)
    return shapes


def branches(model: Any, prompts: list[list[int]], size: int = 64) -> dict[int, list[Tensor]]:
    return {
        i: [x.log_softmax(-1) for x in each] for i, each in score.branch_logits(model, prompts, [TAGS, TEXTS], size)
    }


def assert_true(model: Any, prompts: list[list[int]], found: dict[int, list[Tensor]], atol: float = 2e-5) -> None:
    """Every distribution is that of a full pass of one row."""
    assert sorted(found) == list(range(5))
    for i, prompt in enumerate(prompts):
        for text, rows in zip((TAGS[i], TEXTS[i]), found[i], strict=True):
            assert len(rows) == len(text)
            for at, row in enumerate(rows):
                assert torch.allclose(row, next_log_probs(model, [*prompt, *text[:at]]), atol=atol)


@pytest.mark.parametrize("kind", ["llama", "reasoning", "b-reasoning"])
@pytest.mark.parametrize("size", [2, 64])
def test_what_prompts_share_is_read_once_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    model, shapes = named(kind), widths(monkeypatch)
    found = branches(model, SHARING, size)
    # One prompt is the header itself, whose last token is left to it.
    assert shapes[0] == (1, 19) and sum(shape == (1, 19) for shape in shapes) == 1
    assert max(width for _, width in shapes[1:]) == 9
    assert_true(model, SHARING, found)


@pytest.mark.parametrize("kind", ["gemma2", "opt", "llama"])
def test_where_nothing_can_be_shared_every_row_is_read_whole(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    model, shapes = named(kind), widths(monkeypatch)
    apart = [*SHARING[:4], [6, *SHARING[4][1:]]] if kind == "llama" else SHARING
    found = branches(model, apart)
    if kind == "opt":  # learned positions, told: a cache of it may have gaps
        assert shapes[:2] == [(1, 19), (5, 9)]
    else:  # a window counts columns, and the fifth prompt begins otherwise
        assert shapes[kind == "gemma2" :] == [(5, 30), (5, 30)]
    assert_true(model, apart, found)


def test_continuations_are_padded_to_those_of_like_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "_ALIKE", 2)
    model, shapes = tiny(), widths(monkeypatch)
    found = branches(model, SHARING)
    assert shapes == [(1, 19), (5, 9), (2, 2), (2, 2), (1, 2), (2, 5), (1, 1)]
    assert_true(model, SHARING, found)


def test_a_shared_reading_in_bfloat16_errs_no_more_than_a_whole_one() -> None:
    exact, model = named("reasoning"), named("reasoning").bfloat16()
    truth, found = branches(exact, SHARING), branches(model, SHARING)
    with torch.no_grad():
        handle = model.register_forward_hook(lambda *_: None)  # watched, so that nothing is shared
        whole = branches(model, SHARING)
        handle.remove()
    error, usual = (
        sum(float((a - b).abs().sum()) for i in truth for a, b in zip(truth[i], one[i], strict=True))
        for one in (found, whole)
    )
    assert 0 < error < 1.5 * usual


@pytest.mark.parametrize("select", [LAST, PROMPT, GENERATION])
def test_live_hooks_see_every_token_of_every_row(monkeypatch: pytest.MonkeyPatch, select: Any) -> None:
    model, shapes = tiny(), widths(monkeypatch)
    vectors = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(0)) * 3
    with intervene(model, [Intervention(Site("resid_post", 0), "add", vectors, 1.0, select)]):
        found = branches(model, SHARING)
    assert shapes == [(5, 30), (5, 30)]
    for i, prompt in enumerate(SHARING):
        for text, rows in zip((TAGS[i], TEXTS[i]), found[i], strict=True):
            if len(text) < 2 and select is GENERATION:  # meets no token
                continue
            push = Intervention(Site("resid_post", 0), "add", vectors[i], 1.0, select)
            with intervene(model, [push]), torch.no_grad(), batch([0], turns=[(len(prompt),)]):
                logits = model(torch.tensor([[*prompt, *text[:-1]]])).logits[0, len(prompt) - 1 :]
            assert torch.allclose(rows, logits.log_softmax(-1)[: len(text)], atol=2e-5)
    shapes.clear()
    branches(model, SHARING)
    assert shapes[0] == (1, 19)  # shared again, once the hooks are gone


def test_one_continuation_has_the_same_bits_alone_and_beside_another() -> None:
    model = named("reasoning")
    alone = dict(score.continuation_logits(model, SHARING, TAGS))
    beside = {i: tag for i, (tag, _) in score.branch_logits(model, SHARING, [TAGS, TEXTS])}
    assert all(torch.equal(alone[i], beside[i]) for i in range(5))
