"""The generator: greedy is token-identical to transformers, whatever padding, batch or architecture; sampling draws
from the softmax, and a row never depends on its batch."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from deltalens.errors import BadInput
from deltalens.model import generate as g
from deltalens.model.forward import in_batches
from deltalens.model.generate import Decoding
from deltalens.model.load import load
from deltalens.model.select import Track

ENDS = set(range(1, 128, 8))
"""Every eighth id ends a text of a tiny model, so that rows stop apart."""


def tiny(architecture: str) -> Any:
    """A random model of 128 tokens."""
    import transformers as t

    torch.manual_seed(5)
    shared = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = {**shared, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    build: dict[str, Callable[[], Any]] = {
        # Learned absolute positions: wrong position_ids would show at once.
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=1)
        ),
        "opt": lambda: t.OPTForCausalLM(
            t.OPTConfig(**shared, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64)
        ),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**llama)),
        # A sliding window shorter than the prompts.
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**llama, sliding_window=8)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**llama)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**llama)),
        # Every other layer slides, and the logits are capped.
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**llama, sliding_window=8, query_pre_attn_scalar=8)),
    }
    model = build[architecture]()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0 if p.ndim == 2 else 1.0)  # away from ties, so that every step has a clear winner
    return model.eval()


def uneven(n: int = 12, seed: int = 0) -> list[list[int]]:
    """Random prompts of 1 to 30 tokens, in an order that batches must restore."""
    rng = random.Random(seed)
    return [[rng.randrange(128) for _ in range(rng.randint(1, 30))] for _ in range(n)]


def chains() -> list[str]:
    """Rendered chain problems of eight depths, shuffled; some thinking is forced."""
    rng = random.Random(3)
    texts = []
    for i, depth in enumerate((8, 1, 5, 3, 2, 7, 4, 6)):
        steps = " ".join(f"{'abcdefghi'[k]}={'abcdefghi'[k - 1]}+{rng.randint(1, 9)}" for k in range(1, depth + 1))
        question = f"a={rng.randrange(10)} {steps} {'abcdefghi'[depth]}?"
        opening = "<think>" if i % 3 == 0 else ""
        texts.append(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{opening}")
    return texts


def reference(model: Any, prompts: list[list[int]], ends: set[int], max_new_tokens: int) -> list[list[int]]:
    """transformers' own greedy generation, one prompt at a time: no padding, so nothing to get wrong."""
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=0,
            eos_token_id=sorted(ends),
        )
        rows.append(out[0, ids.shape[1] :].tolist())
    return rows


@pytest.fixture(scope="module")
def reasoning() -> tuple[Any, Any]:
    return load("family:reasoning", device="cpu")


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny("llama")


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_token_identical_on_the_family(reasoning: tuple[Any, Any]) -> None:
    model, tokenizer = reasoning
    prompts, ends = encode(tokenizer, chains()), g.ending_ids(model, tokenizer)
    rows = g.generate_ids(model, prompts, ends=ends, batch_size=5)
    assert rows == reference(model, prompts, ends, 64)
    assert len({len(row) for row in rows}) > 3, "rows must end apart"


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2"])
def test_token_identical_on_another_architecture(architecture: str) -> None:
    model, prompts = tiny(architecture), uneven()
    rows = g.generate_ids(model, prompts, Decoding(20), ends=ENDS, batch_size=5)
    assert rows == reference(model, prompts, ENDS, 20)
    assert len({tuple(row) for row in rows}) > 2, "the model must answer different prompts differently"


def test_text_comes_back_in_order_without_its_ending(reasoning: tuple[Any, Any]) -> None:
    model, tokenizer = reasoning
    alone = [g.generate(model, tokenizer, [text], 64)[0] for text in chains()]
    assert g.generate(model, tokenizer, chains(), 64, batch_size=3) == alone
    assert all("<|im_end|>" not in text for text in alone)
    assert any(text.startswith("<think>") for text in alone)
    assert g.generate(model, tokenizer, [], 8) == []


def test_max_new_tokens_cuts(llama: Any) -> None:
    whole = g.generate_ids(llama, uneven(), Decoding(20), ends=set())
    assert all(len(row) == 20 for row in whole)
    assert g.generate_ids(llama, uneven(), Decoding(3), ends=set()) == [row[:3] for row in whole]
    assert g.generate_ids(llama, uneven(), Decoding(0), ends=set()) == [[]] * 12


def test_rows_that_ended_are_not_computed(llama: Any) -> None:
    sizes: list[int] = []
    handle = llama.register_forward_pre_hook(lambda _, args, kw: sizes.append(len(kw["input_ids"])), with_kwargs=True)
    rows = g.generate_ids(llama, uneven(), Decoding(20), ends=ENDS)
    handle.remove()
    assert sum(sizes) == sum(map(len, rows)), "one row of one forward pass for every token"
    assert sizes[0] == 12 > sizes[-1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_hooks_know_the_row_the_token_and_its_position_at_every_step(llama: Any, temperature: float) -> None:
    prompts, track = uneven(), Track()
    read: dict[tuple[int, int], int] = {}

    def look(model: Any, args: Any, kwargs: Any) -> None:
        track.observe(model, args, kwargs)
        for at, row in enumerate(track.rows.tolist()):
            for column in range(-track.new, 0):
                if track.real[at, column]:
                    assert kwargs["position_ids"][at, column] == track.position[at, column]
                    read[row, int(track.position[at, column])] = int(kwargs["input_ids"][at, column])

    handle = llama.register_forward_pre_hook(look, with_kwargs=True)
    rows = g.generate_ids(llama, prompts, Decoding(20, temperature), ends=ENDS, seeds=range(12), batch_size=5)
    handle.remove()
    texts = [[*prompt, *row[:-1]] for prompt, row in zip(prompts, rows, strict=True)]
    assert read == {(i, at): token for i, text in enumerate(texts) for at, token in enumerate(text)}


def test_a_sampled_row_depends_on_its_prompt_and_seed_only(llama: Any) -> None:
    prompts, seeds, decoding = uneven(), list(range(12)), Decoding(20, temperature=1.5, top_p=0.9)

    def sample(order: list[int], batch_size: int, decoding: Decoding = decoding) -> dict[int, list[int]]:
        mine = [prompts[i] for i in order], decoding
        rows = g.generate_ids(llama, *mine, ends=ENDS, seeds=[seeds[i] for i in order], batch_size=batch_size)
        return dict(zip(order, rows, strict=True))

    whole = sample(list(range(12)), 64)
    assert sample(list(range(11, -1, -1)), 5) == whole
    assert sample([7], 1) == {7: whole[7]}
    assert {i: row[:5] for i, row in whole.items()} == sample(list(range(12)), 64, Decoding(5, 1.5, 0.9))
    twice = g.generate_ids(llama, [prompts[0]] * 40, Decoding(8, 1.5), ends=set(), seeds=[0, 0, *range(2, 40)])
    assert twice[0] == twice[1]
    assert len({tuple(row) for row in twice}) == 39, "other seeds give other texts"


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_frequencies_are_those_of_the_softmax(llama: Any, top_p: float) -> None:
    n, temperature, prompt = 4000, 0.25, [3, 14, 15]  # warm enough to be random, far from uniform
    with torch.no_grad():
        p = (llama(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1).numpy()
    order = np.argsort(-p)
    nucleus = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1] if top_p < 1 else order
    rows = g.generate_ids(
        llama, [prompt] * n, Decoding(1, temperature, top_p), ends=set(), seeds=range(n), batch_size=1000
    )
    counts = np.bincount([row[0] for row in rows], minlength=128)
    assert counts[np.setdiff1d(order, nucleus)].sum() == 0
    expected = n * p[nucleus] / p[nucleus].sum()
    common = expected >= 5
    assert common.sum() > 5
    observed = np.append(counts[nucleus][common], counts[nucleus][~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    keep = wanted > 0
    assert scipy.stats.chisquare(observed[keep], wanted[keep]).pvalue > 0.001


def test_the_second_token_is_drawn_given_the_first(llama: Any) -> None:
    prompt = [3, 14, 15]
    rows = g.generate_ids(llama, [prompt] * 2000, Decoding(2, 0.25), ends=set(), seeds=range(2000), batch_size=1000)
    first = max({row[0] for row in rows}, key=[row[0] for row in rows].count)
    seconds = [row[1] for row in rows if row[0] == first]
    with torch.no_grad():
        p = (llama(torch.tensor([[*prompt, first]])).logits[0, -1].double() / 0.25).softmax(-1)
    likely = int(p.argmax())
    assert scipy.stats.binomtest(seconds.count(likely), len(seconds), float(p[likely])).pvalue > 0.001


def test_a_tiny_temperature_and_a_tiny_nucleus_are_greedy(llama: Any) -> None:
    greedy = g.generate_ids(llama, uneven(), Decoding(10), ends=ENDS)
    for decoding in (Decoding(10, 1e-4), Decoding(10, 1.0, 1e-9)):
        assert g.generate_ids(llama, uneven(), decoding, ends=ENDS, seeds=range(12)) == greedy


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate"), MemoryError()],
)
def test_out_of_memory_halves_the_batch_once(error: Exception) -> None:
    def work(limit: int) -> Callable[[list[int]], list[int]]:
        def run(where: list[int]) -> list[int]:
            if len(where) > limit:
                raise error
            return [i * i for i in where]

        return run

    lengths = [i % 5 for i in range(20)]
    done = {i: x for where, found in in_batches(work(4), lengths, 8) for i, x in zip(where, found, strict=True)}
    assert done == {i: i * i for i in range(20)}
    with pytest.raises(BadInput, match="out of memory with a batch of 4 rows, the longest of 4 tokens") as caught:
        list(in_batches(work(3), lengths, 8))
    assert "smaller batch" in str(caught.value.fix)
    with pytest.raises(BadInput, match="a batch of 1 rows"):
        list(in_batches(work(0), [7], 8))


def test_any_other_error_is_a_bug_and_passes() -> None:
    def run(where: list[int]) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches(run, [1, 2], 8))


def test_out_of_memory_within_a_model(llama: Any) -> None:
    whole = g.generate_ids(llama, uneven(), Decoding(10), ends=ENDS)

    def full(_: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = llama.register_forward_pre_hook(full, with_kwargs=True)
    assert g.generate_ids(llama, uneven(), Decoding(10), ends=ENDS, batch_size=12) == whole
    with pytest.raises(BadInput, match="out of memory"):
        g.generate_ids(llama, uneven(40), Decoding(10), ends=ENDS, batch_size=40)
    handle.remove()


def test_bad_input_is_refused_before_any_work(llama: Any) -> None:
    with pytest.raises(BadInput, match="prompt 1 has no tokens"):
        g.generate_ids(llama, [[1], []], ends=set())
    with pytest.raises(BadInput, match="one seed for every prompt"):
        g.generate_ids(llama, [[1], [2]], Decoding(4, 1.0), ends=set(), seeds=[1])
    for bad in ({"max_new_tokens": -1}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}):
        with pytest.raises(BadInput, match=next(iter(bad))):
            Decoding(**bad)


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_a_text_beyond_the_table_of_positions_is_refused_before_any_work(architecture: str) -> None:
    model = tiny(architecture)
    assert len(g.generate_ids(model, [[5] * 60], Decoding(4), ends=set())[0]) == 4
    model.register_forward_pre_hook(lambda *_: pytest.fail("a forward pass ran"))
    with pytest.raises(BadInput, match="prompt 1 has 60 tokens and 5 new ones, but the model knows 64 positions"):
        g.generate_ids(model, [[5], [5] * 60], Decoding(5), ends=set())


def test_ending_ids_come_from_the_generation_config_else_the_tokenizer(reasoning: tuple[Any, Any]) -> None:
    model, tokenizer = reasoning
    assert g.ending_ids(model, tokenizer) == {0, 2}
    bare = tiny("llama")
    bare.generation_config.eos_token_id = None
    assert g.ending_ids(bare, tokenizer) == {tokenizer.eos_token_id}
