"""The greedy generator: token-identical to transformers, whatever padding, batch or architecture."""

from typing import Any

import pytest
import torch

from deltalens.errors import BadInput
from deltalens.evaluate.tasks import chain
from deltalens.family.catalog import MODELS
from deltalens.family.tokenizer import IDS, build, chat
from deltalens.model import generate as g
from deltalens.model.load import load_directory


def uneven(n: int) -> list[str]:
    """Prompts of eight lengths, shuffled so that batches must restore the order; some thinking is forced."""
    items = [item for k in (8, 1, 5, 3, 2, 7, 4, 6) for item in chain.items("test", n, 11, k)]
    return [chat(item.prompt) + ("<think>" if i % 3 == 0 else "") for i, item in enumerate(items)]


def reference(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[list[int]]:
    """transformers' own greedy generation, one prompt at a time: no padding, so nothing to get wrong."""
    ends = g.ending_ids(model, tokenizer)
    rows = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
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
    return load_directory(MODELS / "reasoning")


def tiny(architecture: str) -> Any:
    """A random model over the family's tokenizer in which every eighth id ends a text, so that rows stop apart."""
    import transformers

    torch.manual_seed(5)
    if architecture == "gpt2":  # learned absolute positions: wrong position_ids would show at once
        config = transformers.GPT2Config(
            vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=None, eos_token_id=1
        )
        model = transformers.GPT2LMHeadModel(config)
    elif architecture == "opt":  # takes its positions from the mask
        config = transformers.OPTConfig(
            vocab_size=128,
            hidden_size=32,
            num_hidden_layers=2,
            ffn_dim=64,
            num_attention_heads=2,
            word_embed_proj_dim=32,
            max_position_embeddings=128,
        )
        model = transformers.OPTForCausalLM(config)
    else:
        # A sliding window shorter than the prompts.
        config = transformers.MistralConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=8,
        )
        model = transformers.MistralForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0 if p.ndim == 2 else 1.0)  # away from ties, so that every step has a clear winner
    model.generation_config.eos_token_id = list(range(1, 128, 8))
    return model.eval()


def test_token_identical_on_the_family(reasoning: tuple[Any, Any]) -> None:
    model, tokenizer = reasoning
    prompts = uneven(1)
    assert g.generate_ids(model, tokenizer, prompts, 64, batch_size=5) == reference(model, tokenizer, prompts, 64)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "mistral"])
def test_token_identical_on_another_architecture(architecture: str) -> None:
    model, tokenizer = tiny(architecture), build()
    prompts = uneven(1)
    rows = g.generate_ids(model, tokenizer, prompts, 20, batch_size=4)
    assert rows == reference(model, tokenizer, prompts, 20)
    assert len({tuple(row) for row in rows}) > 2, "the model must answer different prompts differently"


def test_the_batch_changes_nothing_and_order_is_kept(reasoning: tuple[Any, Any]) -> None:
    model, tokenizer = reasoning
    prompts = uneven(1)
    alone = [g.generate(model, tokenizer, [p], 64)[0] for p in prompts]
    assert g.generate(model, tokenizer, prompts, 64, batch_size=3) == alone
    assert all("<|im_end|>" not in text for text in alone)
    assert any(text.startswith("<think>") for text in alone)


def test_max_new_tokens_cuts_and_no_prompt_is_no_work(reasoning: tuple[Any, Any]) -> None:
    model, tokenizer = reasoning
    assert [len(r) for r in g.generate_ids(model, tokenizer, uneven(1), 3)] == [3] * 8
    assert g.generate_ids(model, tokenizer, uneven(1), 0) == [[]] * 8
    assert g.generate(model, tokenizer, [], 8) == []


def test_first_token_probabilities(reasoning: tuple[Any, Any]) -> None:
    model, tokenizer = reasoning
    prompts = [chat(item.prompt) for k in (8, 1, 4) for item in chain.items("test", 2, 3, k)]
    probs = g.first_token_probs(model, tokenizer, prompts, range(128), batch_size=4)
    assert probs.sum(1) == pytest.approx(torch.ones(6), abs=1e-5)
    for prompt, row in zip(prompts, probs, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1]
        assert torch.allclose(row, logits.softmax(-1), atol=1e-5)
    assert torch.equal(g.p_think(model, tokenizer, prompts), probs[:, IDS["<think>"]]) or torch.allclose(
        g.p_think(model, tokenizer, prompts), probs[:, IDS["<think>"]], atol=1e-6
    )


def test_bad_input_is_refused(reasoning: tuple[Any, Any]) -> None:
    model, tokenizer = reasoning
    with pytest.raises(BadInput, match="prompt 1 has no tokens"):
        g.generate(model, tokenizer, ["a=1", ""])
    with pytest.raises(BadInput, match="not one token"):
        g.p_think(model, tokenizer, ["a=1"], tag="<reason>")
