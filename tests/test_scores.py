"""Rows of outcomes to numbers: every metric against hand counts, and the intervals against the statistics module."""

from hashlib import sha256
from itertools import combinations
from math import exp, log
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from deltalens.errors import BadInput
from deltalens.evaluate.behaviour import loops, row_seed
from deltalens.evaluate.divergence import kl_per_token, p_think_and_kl, reference_along, surprisals
from deltalens.evaluate.pass_at_k import pass_at_k
from deltalens.evaluate.plan import _windows
from deltalens.evaluate.scores import differences, perplexity, scores, summarise
from deltalens.family.catalog import MODELS
from deltalens.model.generate import generate_ids
from deltalens.model.load import load_directory
from deltalens.model.score import opening_probs
from deltalens.statistics import bootstrap, mcnemar, newcombe_paired, wilson


def row(arm: str, item: int, correct: bool, mode: str = "free", **more: Any) -> dict[str, Any]:
    base = {
        "arm": arm,
        "role": "model",
        "task": "t",
        "mode": mode,
        "item": f"t/{item}",
        "group": "",
        "sample": 0,
        "text": "4",
        "tokens": 5,
        "truncated": False,
        "opened": False,
        "closed": False,
        "thought": False,
        "think_tokens": 0,
        "correct": correct,
        "format_ok": True,
        "loop": False,
        "p_think": 0.5,
        "p_skip": None,
        "kl": None,
    }
    return base | more


def found(rows: list[dict[str, Any]], metric: str, group: str = "") -> dict[str, Any]:
    return next(r for r in rows if r["metric"] == metric and r["group"] == group)


def test_every_rate_is_counted_in_its_own_mode() -> None:
    rows = [
        row("a", 0, True, opened=True, closed=True, thought=True, think_tokens=7),
        row("a", 1, False, opened=True, truncated=True, format_ok=False, think_tokens=9, loop=True),
        row("a", 2, False, format_ok=False),
        row("a", 3, True),
        *(row("a", i, i != 2, "forced", thought=True, opened=True, closed=True) for i in range(4)),
    ]
    summary = scores(rows)
    expected = {
        "accuracy": 2,
        "think_ratio": 1,
        "forced_accuracy": 3,
        "open_ratio": 2,
        "close_ratio": 1,
        "truncated": 1,
        "truncated_inside": 1,
        "format_failures": 1,  # the truncated one is counted as truncated only
        "loops": 1,
    }
    for metric, hits in expected.items():
        one = found(summary, metric)
        assert (one["n"], one["value"], (one["low"], one["high"])) == (4, hits / 4, wilson(hits, 4)), metric
    assert found(summary, "think_tokens")["value"] == 8 and found(summary, "think_tokens")["n"] == 2
    assert found(summary, "think_tokens")["low"] is None  # two items have no bootstrap interval
    assert not any(r["metric"] in ("closed_accuracy", "p_skip", "kl") for r in summary)


def test_an_arm_without_completions_has_probabilities_only() -> None:
    nothing = (
        "text",
        "tokens",
        "truncated",
        "opened",
        "closed",
        "thought",
        "think_tokens",
        "correct",
        "format_ok",
        "loop",
    )
    summary = scores([row("a", i, True) | dict.fromkeys(nothing) for i in range(3)])
    assert {r["metric"] for r in summary} == {"p_think"}


def test_groups_are_scored_beside_the_whole() -> None:
    rows = [row("a", i, i < 3, group="easy" if i < 4 else "hard") for i in range(6)]
    summary = scores(rows)
    assert found(summary, "accuracy", "easy")["value"] == 3 / 4
    assert found(summary, "accuracy", "hard")["value"] == 0
    assert found(summary, "accuracy")["n"] == 6
    assert not any(r["group"] for r in scores([r | {"group": "one"} for r in rows]))


def test_items_without_a_group_count_in_the_whole_alone() -> None:
    rows = [row("a", i, i < 3, group="easy" if i < 4 else "") for i in range(6)]
    for made, whole, easy in (
        (scores(rows), 3 / 6, 3 / 4),
        (differences([r | {"correct": False} for r in rows], rows), 3 / 6, 3 / 4),
    ):
        accuracy = [(r["group"], r["n"], r["value"]) for r in made if r["metric"] == "accuracy"]
        assert accuracy == [("", 6, whole), ("easy", 4, easy)]


def test_several_samples_are_clustered_by_item() -> None:
    rows = [row("a", i, (i + s) % 3 == 0, sample=s) for i in range(60) for s in range(4)]
    accuracy = found(scores(rows), "accuracy")
    per_item = [sum((i + s) % 3 == 0 for s in range(4)) / 4 for i in range(60)]
    assert (accuracy["value"], accuracy["low"], accuracy["high"]) == bootstrap(per_item, list(range(60)))
    assert accuracy["n"] == 60 and accuracy["method"] == "bootstrap by item"
    expected = sum(pass_at_k(4, int(4 * share), 2) for share in per_item) / 60
    assert found(scores(rows), "pass@2")["value"] == pytest.approx(expected)
    assert not any(r["metric"] == "pass@8" for r in scores(rows))


def test_differences_are_paired_and_corrected_over_the_table() -> None:
    a = [row("a", i, i < 10) for i in range(40)]
    b = [row("b", i, 5 <= i < 35, p_think=0.75) for i in range(40)]
    accuracy = found(differences(a, b), "accuracy")
    both, first, second = 5, 5, 25
    assert (accuracy["value"], accuracy["low"], accuracy["high"]) == newcombe_paired(both, first, second, 5)
    assert accuracy["p"] == mcnemar(first, second)
    assert found(differences(a, b), "p_think")["value"] == 0.25
    table = [r for r in summarise([*a, *b], "a") if r.get("reference")]
    tested = [r for r in table if r["p"] is not None]
    assert len(tested) == 2  # accuracy and think ratio
    assert found(table, "accuracy")["p_holm"] == pytest.approx(2 * accuracy["p"])
    assert not any(r.get("reference") for r in summarise(a, "a"))


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(n: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(combinations(range(n), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(min(s) < correct for s in subsets) / len(subsets))


def test_pass_at_k_refuses_what_is_not_defined() -> None:
    for n, correct, k in ((4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)):
        with pytest.raises(ValueError, match="is not defined"):
            pass_at_k(n, correct, k)


def test_loops_need_an_8_gram_five_times() -> None:
    gram = list(range(8))
    assert loops(gram * 5) and not loops(gram * 4)
    assert loops([1] * 12) and not loops([1] * 11)  # five overlapping windows
    assert not loops([])


def test_a_row_has_its_own_seed() -> None:
    assert row_seed(0, "chain/a") != row_seed(0, "chain/b") != row_seed(1, "chain/b")
    assert row_seed(3, "chain/a=1") == int.from_bytes(sha256(b"3/chain/a=1").digest()[:8], "big") // 2


def test_divergence_and_surprisal_are_those_of_full_forwards() -> None:
    model, _ = load_directory(MODELS / "reasoning")
    other, _ = load_directory(MODELS / "instruct")
    prompts, texts = [[5, 17, 30], [1, 6, 5, 40, 2, 5, 1, 7, 5]], [[3, 20, 21], [22, 3]]
    got = kl_per_token(other, model, [*prompts, [1]], [*texts, []], batch_size=2)
    for prompt, text, kl in zip(prompts, texts, got, strict=False):
        with torch.no_grad():
            p, q = (
                m(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                for m in (other, model)
            )
        assert kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3, abs=1e-6)
    assert got[2] is None
    wide, _ = load_directory(MODELS / "instruct")
    wide.resize_token_embeddings(130, mean_resizing=False)
    again = kl_per_token(wide, model, [*prompts, [1]], [texts[0], [*texts[1], 129, 7], [128]])
    assert again[:2] == pytest.approx(got[:2]) and again[2] is None  # rows and ids of one model alone are left out
    assert kl_per_token(model, model, prompts, texts) == pytest.approx([0, 0], abs=1e-6)
    ((surprise, tokens),) = surprisals(model, [[5, 17, 30, 3]])
    with torch.no_grad():
        logits = model(torch.tensor([[5, 17, 30, 3]])).logits[0].double().log_softmax(-1)
    assert surprise == pytest.approx(-float(logits[[0, 1, 2], [17, 30, 3]].sum()), rel=1e-4)
    assert tokens == 3 and surprise > log(2)


@pytest.mark.parametrize("shared", [[], [7, 9, 5, 17, 30, 6, 1, 22, 40, 8, 11, 3, 5, 9, 30, 2, 17]])
def test_a_reference_read_once_gives_the_kl_of_one_read_again(shared: list[int], monkeypatch: Any) -> None:
    model, _ = load_directory(MODELS / "reasoning")
    other, _ = load_directory(MODELS / "instruct")
    prompts = [[*shared, *own] for own in ([5, 17, 30], [1, 6, 5, 40, 2, 5, 1, 7, 5], [1], [8, 8])]
    texts = [[3, 20, 21], [22, 3], [], [5]]
    wanted = kl_per_token(other, model, prompts, texts), opening_probs(model, prompts, [3, 5]).tolist()
    reference = reference_along(other, prompts, texts)
    assert {i: len(x) for i, x in (reference.states or {}).items()} == {0: 3, 1: 2, 3: 1}
    with monkeypatch.context() as patch:
        patch.setattr(other, "forward", lambda *_, **__: pytest.fail("read again"))
        thinks, kl = p_think_and_kl(model, reference, [3, 5], 2)
    assert thinks == pytest.approx(wanted[1], rel=1e-5)
    assert kl[2] is None and [kl[i] for i in (0, 1, 3)] == pytest.approx([wanted[0][i] for i in (0, 1, 3)], abs=1e-6)
    assert p_think_and_kl(other, reference, [3, 5])[1] == [0.0, 0.0, None, 0.0]
    assert p_think_and_kl(model, reference, None) == ([None] * 4, wanted[0])


def test_capped_logits_are_read_again_for_every_arm() -> None:
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=7, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8
    )
    one, other = (transformers.Gemma2ForCausalLM(config).eval() for _ in range(2))
    with torch.no_grad():
        for p in (*one.parameters(), *other.parameters()):
            p.mul_(8.0)
    reference = reference_along(one, [[1, 2, 3], [4]], [[5, 6], [1]])
    assert reference.states is None
    thinks, kl = p_think_and_kl(other, reference, [3])
    assert kl == kl_per_token(one, other, [[1, 2, 3], [4]], [[5, 6], [1]]) and min(kl) > 0.01
    assert thinks == opening_probs(other, [[1, 2, 3], [4]], [3]).tolist()


def test_in_16_bits_a_model_is_no_distance_from_itself() -> None:
    header = [7, 9, 5, 17, 30, 6, 1, 22, 40, 8, 11, 3, 5, 9, 30, 2, 17]
    prompts, texts = [[*header, *own] for own in ([5, 17, 30], [1, 6, 5, 40, 2], [8])], [[3, 20, 21], [22, 3], [5]]
    one, same = (load_directory(MODELS / "reasoning", "bfloat16")[0] for _ in range(2))
    assert p_think_and_kl(same, reference_along(one, prompts, texts), [3, 5])[1] == [0.0, 0.0, 0.0]
    handle = same.model.layers[0].register_forward_hook(lambda *_: None)  # steering by nothing
    assert kl_per_token(one, same, prompts, texts) == [0.0, 0.0, 0.0]
    handle.remove()


def test_perplexity_weighs_tokens_not_pieces() -> None:
    few = [(2.0, 1), (6.0, 9)]
    assert perplexity(few)["value"] == pytest.approx(exp(8 / 10)) and perplexity(few)["low"] is None
    many = perplexity(few * 30)
    assert many["value"] == pytest.approx(exp(8 / 10)) and many["low"] < many["value"] < many["high"]


def test_a_short_rest_belongs_to_the_last_window() -> None:
    for n, lengths in ((2, [2]), (64, [64]), (65, [65]), (96, [96]), (97, [64, 33]), (200, [64, 64, 72])):
        windows = _windows(list(range(n)))
        assert [len(w) for w in windows] == lengths and [i for w in windows for i in w] == list(range(n))


def test_a_model_of_nan_is_not_close_to_anything() -> None:
    model, _ = load_directory(MODELS / "reasoning")
    broken, _ = load_directory(MODELS / "reasoning")
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(BadInput, match="NaN"):
        kl_per_token(model, broken, [[5, 17]], [[3]])
    with pytest.raises(BadInput, match="NaN"):
        generate_ids(broken, [[5, 17]], ends={2})
