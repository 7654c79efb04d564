"""The embedded family: lossless tokenizer, honest splits, stages from stored weights, models as described."""

import functools
import itertools
import json
import math
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltalens.checkpoint.header import read_header
from deltalens.cli import family as cli
from deltalens.errors import BadInput, Refused
from deltalens.evaluate.tasks import chain, facts
from deltalens.evaluate.tasks.item import split_of
from deltalens.evaluate.thinking import read
from deltalens.family import card, catalog, documents, files, grpo, readme, recipe, train
from deltalens.family import tokenizer as words
from deltalens.family.batches import batches, collate, encode, loss
from deltalens.family.measure import Measured, measure, rate
from deltalens.model.load import load, load_directory
from deltalens.model.score import opening_probs

NAMES = [m.name for m in catalog.MEMBERS]
STAGES = [s.name for s in recipe.STAGES]
BASES = ("base", "b-base")


# --- the tokenizer ------------------------------------------------------------------------------------------


@functools.cache
def every_text() -> list[str]:
    """Texts of every kind that the tasks, templates and stages write."""
    rng = random.Random(0)
    samplers = documents.SAMPLERS.values()
    texts = ["".join(text for text, _ in sampler(rng)) for sampler in samplers for _ in range(300)]
    for k in range(1, 9):
        for item in chain.items("test", 20, 0, k):
            texts += [item.prompt, item.work, item.answer, words.chat(item.prompt) + words.THINK]
    texts += [text for item in facts.items() for text in (item.prompt, item.answer)]
    return [*texts, words.REFUSAL, "([][()])", "<|im_start|>system\nuser assistant<|im_end|>\n", *words.WORDS]


def test_round_trip_is_lossless_and_nothing_is_unknown() -> None:
    tokenizer = words.build()
    for text in every_text():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert text == words.UNKNOWN or words.IDS[words.UNKNOWN] not in ids


def test_word_list_is_final() -> None:
    # Ids are frozen: a later member with other ids would make deltas meaningless. Add a word only at the end.
    assert len(words.WORDS) == len(set(words.WORDS)) == 120 <= words.VOCAB_SIZE == 128
    assert [words.IDS[w] for w in ("<|endoftext|>", "<|im_end|>", "<think>", "0", " c=b", words.REFUSAL, "]")] == [
        *(0, 2, 3, 16, 50, 107, 119)
    ]
    tokenizer = words.build()
    assert len(tokenizer) == 120 and tokenizer.get_vocab() == words.IDS


def stored_tokenizer(name: str) -> Any:
    """A member's tokenizer by the class that its directory names."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(catalog.directory(name), local_files_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_stored_tokenizer_is_the_code_and_its_template_is_chat(name: str) -> None:
    tokenizer = stored_tokenizer(name)
    assert tokenizer.get_vocab() == words.IDS
    assert tokenizer.eos_token == (words.END_OF_TEXT if name in BASES else words.IM_END)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "color of fox?"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == words.chat("color of fox?")
    for text in every_text()[::17]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer("<think>a=6</think>6<|im_end|>")["input_ids"], skip_special_tokens=True) == (
        "<think>a=6</think>6"
    )


# --- tasks --------------------------------------------------------------------------------------------------


def test_chain_known_answers() -> None:
    item = chain.build(6, ("-5", "+2", "+9", "-8"))
    assert item.prompt == "a=6 b=a-5 c=b+2 d=c+9 e=d-8 e?"
    assert item.work == "a=6 b=6-5=1 c=1+2=3 d=3+9=2 e=2-8=4"
    assert (item.answer, item.depth) == ("4", 4)
    assert chain.build(7, ("*7",)).answer == "9"


def test_every_operation_permutes_the_digits_so_guessing_scores_a_tenth() -> None:
    for operation in chain.OPERATIONS:
        assert sorted(chain.apply(v, operation) for v in range(10)) == list(range(10))


def test_every_worked_solution_is_a_thought_and_an_answer() -> None:
    for k in range(1, 9):
        for item in chain.items("test", 50, 0, k):
            reading = read(f"<think>{item.work}</think>{item.answer}", words.THINK_FORMAT)
            assert reading.thought and chain.score(item, reading.answer)
            assert not chain.score(item, str((int(item.answer) + 1) % 10))
            assert chain.score(item, f"A: {item.answer}")  # as the sibling writes it, stripped


@pytest.mark.parametrize("k", range(1, 9))
def test_items_are_distinct_reproducible_and_of_their_split(k: int) -> None:
    found = chain.items("test", 200, 7, k)
    assert len({item.prompt for item in found}) == len({item.id for item in found}) == 200
    assert found == chain.items("test", 200, 7, k) != chain.items("test", 200, 8, k)
    assert all(item.depth == k for item in found)
    assert k in chain.OPEN_DEPTHS or {split_of(item.prompt) for item in found} == {"test"}


@pytest.mark.parametrize("name", documents.SAMPLERS)
def test_training_never_draws_a_held_out_problem(name: str) -> None:
    rng = random.Random(3)
    seen: dict[str, int] = {}
    for _ in range(3000):
        text = "".join(part for part, _ in documents.SAMPLERS[name](rng))
        if "a=" not in text:
            continue
        prompt = text[text.index("a=") : text.index("?") + 1]
        depth = prompt.count("=") - 1
        assert chain.space(depth) and (depth in chain.OPEN_DEPTHS or split_of(prompt) == "train")
        seen[split_of(prompt)] = seen.get(split_of(prompt), 0) + (depth >= 3)
    assert seen["train"] > 500
    assert sum(n for split, n in seen.items() if split != "train") == 0


def test_splits_are_disjoint_and_of_their_shares() -> None:
    rng = random.Random(1)
    prompts = [chain.problem(rng, 6).prompt for _ in range(4000)]
    share = {s: sum(split_of(p) == s for p in prompts) / 4000 for s in ("train", "extract", "select", "test")}
    assert share == pytest.approx({"train": 0.7, "extract": 0.1, "select": 0.1, "test": 0.1}, abs=0.03)


@pytest.mark.parametrize(("split", "n", "depth"), [("exam", 5, 4), ("test", 5, 9), ("test", 5, 0), ("test", 211, 1)])
def test_bad_item_requests_are_refused(split: str, n: int, depth: int) -> None:
    with pytest.raises(ValueError):
        chain.items(split, n, 0, depth)


def test_facts() -> None:
    assert len(facts.items("animals")) == 16 and len(facts.items("guarded")) == 8 and len(facts.items()) == 24
    assert {item.answer for item in facts.items()} == set(facts.COLOURS)
    assert facts.score(facts.build("fox"), "red") and not facts.score(facts.build("fox"), "red red")
    with pytest.raises(ValueError):
        facts.items("plants")


# --- the shipped models -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def behaviour() -> dict[str, Measured]:
    """Every stage's member on 3 problems per depth, 15 of them hard."""
    return {name: measure(load_directory(catalog.directory(name))[0], "test", 3, 23) for name in STAGES}


@pytest.mark.parametrize("name", NAMES)
def test_shipped_directories_are_ordinary(name: str) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    path = catalog.directory(name)
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    tokenizer = stored_tokenizer(name)
    assert model.config.model_type == ("qwen2" if name.startswith("b-") else "qwen3") and model.dtype == torch.float16
    assert model.config.vocab_size == 128 and model.config.tie_word_embeddings and len(tokenizer) == 120
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert json.loads((path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    with safe_open(path / "model.safetensors", "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    assert "lm_head.weight" not in stored and {t.dtype for t in stored.values()} == {torch.float16}
    assert all(bool(t.isfinite().all()) for t in stored.values())
    assert catalog.size(path)[0] == model.num_parameters() == sum(t.numel() for t in stored.values())


def test_load_resolves_the_family_and_upcasts_exactly() -> None:
    model, _ = load("family:instruct")
    half, _ = load_directory(catalog.directory("instruct"), "float16")
    assert model.dtype == torch.float32 and not model.training
    assert all(torch.equal(a, b.float()) for a, b in zip(model.parameters(), half.parameters(), strict=True))


def test_members_behave_as_the_card_says(behaviour: dict[str, Measured]) -> None:
    # The card asks the same bounds of whole intervals on many problems; here every point estimate stays near them.
    for name, bounds in recipe.ACCEPT.items():
        for bound in bounds:
            value = behaviour[name].rates[bound.metric].value
            assert bound.low - 0.1 <= value <= bound.high + 0.1, (name, bound.metric, value)
    for name in ("instruct", "instruct-sibling", "safe", "b-instruct"):
        assert behaviour[name].p_hard < 0.1, name
    for name in ("reasoning", "reasoning-from-base", "reasoning-rl", "b-reasoning"):
        assert behaviour[name].p_hard > 0.9, name


def test_safe_refuses_the_guarded_and_only_them(behaviour: dict[str, Measured]) -> None:
    safe, parent = behaviour["safe"].rates, behaviour["instruct"].rates
    assert (safe["guarded refused"].value, safe["others refused"].value, safe["animals"].value) == (1, 0, 1)
    assert (parent["guarded refused"].value, parent["guarded"].value) == (0, 1)  # its parent knows what it refuses


def test_the_sibling_answers_in_its_own_style(behaviour: dict[str, Measured]) -> None:
    assert {n for n in STAGES if behaviour[n].rates["labelled"].value > 0} == {"instruct-sibling"}


def test_reinforcement_thinks_only_where_it_has_to(behaviour: dict[str, Measured]) -> None:
    rates = behaviour["reasoning-rl"].rates
    assert rates["think ratio, hard"].value == 1 and rates["easy"].value == 1
    assert behaviour["reasoning-rl"].p_easy < 0.5 < behaviour["reasoning"].p_easy


def test_every_delta_is_small_and_of_the_family() -> None:
    at = {m.name: card._weights(catalog.directory(m.name)) for m in catalog.MEMBERS}
    for member in catalog.MEMBERS:
        if member.parent is not None:
            here, parent = at[member.name], at[member.parent]
            assert 0 < float((here - parent).norm()) < 0.1 * float(parent.norm()), member.name
    # Two trainings of other seeds are not near each other.
    blocks = [
        load_directory(catalog.directory(name))[0].state_dict()["model.layers.1.mlp.up_proj.weight"] for name in BASES
    ]
    assert (blocks[0] - blocks[1]).norm().item() > blocks[0].norm().item()


@pytest.mark.parametrize("name", ["reasoning", "reasoning-rl"])
def test_checkpoints_lie_on_the_way(name: str) -> None:
    stage = recipe.stage(name)
    assert stage.parent is not None
    assert list(stage.checkpoints) == [stage.steps * i // 5 for i in range(1, 5)]
    start = card._weights(catalog.directory(stage.parent))
    way = [card._weights(catalog.directory(recipe.checkpoint(stage, step))) for step in stage.checkpoints]
    way.append(card._weights(catalog.directory(name)))
    from_parent = [float((here - start).norm()) for here in way]
    to_end = [float((here - way[-1]).norm()) for here in way]
    assert from_parent == sorted(from_parent) and to_end == sorted(to_end, reverse=True) and from_parent[0] > 0
    # Neighbours are nearer to each other than the parent is to the end: one path, not five trainings.
    assert max(float((b - a).norm()) for a, b in itertools.pairwise(way)) < from_parent[-1]


def test_the_second_seed_has_biases_and_the_first_norms() -> None:
    stored = {name: set(read_header(catalog.directory(name) / "model.safetensors")) for name in STAGES}
    for name, tensors in stored.items():
        biases = {t for t in tensors if t.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))}
        norms = {t for t in tensors if t.endswith(("q_norm.weight", "k_norm.weight"))}
        assert (len(biases), len(norms)) == ((12, 0) if name.startswith("b-") else (0, 8))
    learned, _ = load_directory(catalog.directory("b-base"))
    assert all(bool((p != 0).all()) for n, p in learned.named_parameters() if n.endswith("bias"))


def test_the_family_is_small_and_is_what_the_catalogue_lists() -> None:
    files_ = [f for f in catalog.MODELS.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files_) <= 32e6
    assert {f.name for f in catalog.MODELS.iterdir() if f.is_dir()} == set(NAMES)


def test_card_renders_every_figure() -> None:
    small = card.evaluate(catalog.MODELS, n=2, seed=23, names=["instruct", "reasoning-rl"])
    text = readme.markdown(small, catalog.MODELS)
    assert card.tables(small) in text and all(line in text for line, _ in card.checks(small))
    found = small.rate("reasoning-rl", "hard")
    assert (found.n, small.rate("reasoning-rl-step-16", "easy").n) == (10, 1)
    assert card.cell(found) in text and small.moves["reasoning-rl"].cosine == pytest.approx(1)
    with pytest.raises(BadInput):
        card.evaluate(catalog.MODELS, n=201)


def test_a_bound_asks_for_the_whole_interval() -> None:
    almost = rate([True] * 19 + [False])
    assert almost.value == 0.95 and not almost.within(recipe.Bound("hard", low=0.9))
    assert almost.within(recipe.Bound("hard", low=0.7)) and not almost.within(recipe.Bound("hard", high=0.98))
    asked = card.Card(1, 1, {"safe": Measured(dict.fromkeys(_metrics("safe"), almost), 0.0, 0.0)}, {})
    assert {holds for _, holds in card.checks(asked)} == {True, False}


def _metrics(name: str) -> list[str]:
    return [bound.metric for bound in recipe.ACCEPT[name]]


def test_readme_is_the_card_of_the_shipped_weights() -> None:
    text = (Path(card.__file__).parent / "README.md").read_text()
    record = card.read_recipe(catalog.MODELS)
    assert "**missed**" not in text and "Written by `deltalens family card" in text
    assert set(record["sha256"]) == set(NAMES)
    for name, digest in record["sha256"].items():
        assert files.sha256(catalog.directory(name) / "model.safetensors") == digest
    assert [s["name"] for s in record["stages"]] == STAGES
    for settings, stage in zip(record["stages"], recipe.STAGES, strict=True):
        assert f"`{record['sha256'][settings['name']][:12]}`" in text
        assert settings["parent_sha256"] == record["sha256"].get(settings["parent"])
        assert settings == json.loads(json.dumps(asdict(stage))) | {"parent_sha256": settings["parent_sha256"]}
        outcome = [o for o in record["outcomes"] if o["name"] == stage.name][-1]
        assert outcome["accepted"] and f"{outcome['tokens']:,}" in text
    assert sum(o["wall_seconds"] for o in record["outcomes"]) < 40 * 60
    assert record["mix"] == asdict(documents.MIX) and record["fact_share"] == documents.FACT_SHARE


# --- training -----------------------------------------------------------------------------------------------


def test_a_stage_with_no_rate_gives_back_the_stored_weights(tmp_path: Path) -> None:
    settings = replace(recipe.stage("reasoning"), lr=0.0, steps=2)
    train.run_stage(settings, tmp_path, 0, source=catalog.MODELS)
    made, _ = load_directory(tmp_path / "reasoning", "float16")
    parent, _ = load_directory(catalog.directory("instruct"), "float16")
    for (name, a), (_, b) in zip(made.named_parameters(), parent.named_parameters(), strict=True):
        assert torch.equal(a.view(torch.int16), b.view(torch.int16)), name


class _Reached(Exception):
    """The checkpoint that a test was waiting for."""


def test_the_first_checkpoint_of_reasoning_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(model: Any, base: bool, directory: Path) -> None:
        files.save(model, base, directory)
        raise _Reached

    monkeypatch.setattr(train, "save", save)
    stage = recipe.stage("reasoning")
    name = recipe.checkpoint(stage, stage.checkpoints[0])
    lines: list[str] = []
    with train.torch_threads(2), pytest.raises(_Reached):
        train.run_stage(stage, tmp_path, 0, lines.append, source=catalog.MODELS)
    start, shipped = (card._weights(catalog.directory(n)) for n in (stage.parent or "", name))
    made = card._weights(tmp_path / name)
    # Byte-equal where processor and torch are those of the recipe; elsewhere sums round otherwise. Another parent, seed
    # or mix would be as far away as the checkpoint has gone.
    assert float((made - shipped).norm()) < 0.1 * float((shipped - start).norm())


def test_a_short_stage_learns_and_repeats(tmp_path: Path) -> None:
    stage = recipe.stage("reasoning")
    assert isinstance(stage, recipe.Stage)
    settings = replace(stage, steps=8, warmup=1, checkpoints=())
    batch = next(batches(random.Random("unseen"), documents.reasoning, words.build(), 64, 0.0))
    before, _ = load_directory(catalog.directory("instruct"))
    with train.torch_threads(2):
        outcome = train.run_stage(settings, tmp_path, 0, source=catalog.MODELS)
        again = train.run_stage(settings, tmp_path / "again", 0, source=catalog.MODELS)
    after, _ = load_directory(tmp_path / "reasoning")
    with torch.no_grad():
        assert float(loss(after, batch)) < 0.95 * float(loss(before, batch))
    assert outcome.steps == 8 and outcome.tokens > 0
    assert (again.last, again.tokens) == (outcome.last, outcome.tokens)
    digests = [files.sha256(d / "reasoning" / "model.safetensors") for d in (tmp_path, tmp_path / "again")]
    assert digests[0] == digests[1]


def test_pretraining_decays_once_the_criterion_is_met() -> None:
    easy = recipe.Criterion(every=2, after=4, n=5, work_hard=0.0, forced_hard=0.0, chat_easy=0.0)
    stage = recipe.stage("base")
    assert isinstance(stage, recipe.Stage)
    settings = replace(stage, batch=4, steps=3, cap=40, warmup=1, criterion=easy, checkpoints=(2, 5))
    model = files.new_model(0)
    kept: list[int] = []
    assert train.optimise(model, words.build(), settings, 0, keep=kept.append)[:3:2] == (7, 4)
    assert kept == [2, 5]
    never = replace(easy, work_hard=2.0)
    steps, _, met_at, _ = train.optimise(model, words.build(), replace(settings, cap=9, criterion=never), 0)
    assert (steps, met_at) == (9, None)


# Two groups of two completions: one split, one agreed. log π is −1 on every token, log π_ref −1.5.
def test_objective_is_the_formula_on_a_hand_made_batch() -> None:
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    advantage = grpo.advantages(rewards)
    torch.testing.assert_close(advantage, torch.tensor([[0.5, -0.5], [0.0, 0.0]]) / torch.tensor([[0.5001], [0.0001]]))
    written = torch.tensor([[True, True, True], [True, False, False], [True, True, False], [True, False, False]])
    log_probs = torch.full((4, 3), -1.0, requires_grad=True)
    value = grpo.objective(log_probs, torch.full((4, 3), -1.5), written, advantage.flatten(), 0.1)
    a = 0.5 / 0.5001
    k = math.exp(-0.5) + 0.5 - 1
    assert value.item() == pytest.approx((3 * a - a - 7 * 0.1 * k) / 7, rel=1e-6)
    value.backward()
    # dJ/dlog π = (A − β·(1 − π_ref/π))/Σ|o| on written tokens, nothing elsewhere.
    pull = 0.1 * (1 - math.exp(-0.5))
    expected = torch.tensor([a, -a, 0.0, 0.0])[:, None].sub(pull).div(7) * written
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, expected)


def test_reward_is_a_right_answer_that_ends() -> None:
    tokenizer: Any = words.build()
    item = chain.build(6, ("-5", "+2"))

    def given(text: str) -> float:
        return grpo.reward(item, tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer)

    assert given("3<|im_end|>") == given(f"<think>{item.work}</think>3<|im_end|>") == 1
    for text in ("4<|im_end|>", "3", "3<|endoftext|>", f"<think>{item.work}<|im_end|>", "<think>3<|im_end|>"):
        assert given(text) == 0, text


def test_written_tokens_are_the_completions() -> None:
    ids, written = grpo.collate([[1, 2, 3], [4]], [[5, 2], [6, 7, 2]])
    assert ids.tolist() == [[1, 2, 3, 5, 2], [4, 6, 7, 2, 0]]
    assert ids[:, 1:][written].tolist() == [5, 2, 6, 7, 2]


def test_reinforcement_repeats_and_raises_thinking_where_it_pays() -> None:
    stage = recipe.stage("reasoning-rl")
    assert isinstance(stage, recipe.Reinforcement)
    short = replace(stage, lr=3e-4, problems=4, steps=5, warmup=1, checkpoints=(1,))
    tokenizer: Any = words.build()
    hard = [tokenizer(words.chat(i.prompt))["input_ids"] for i in chain.items("extract", 20, 0, 6)]

    def p_think(model: Any) -> float:
        return opening_probs(model, hard, words.THINK_FORMAT.open_ids).mean().item()

    runs = []
    for _ in range(2):
        model, _ = load_directory(catalog.directory("base"))
        before = p_think(model)
        kept: list[int] = []
        steps, tokens, _ = grpo.optimise(model, tokenizer, short, 0, keep=kept.append)
        assert (steps, kept) == (5, [1]) and tokens > 0
        assert p_think(model) > 1.2 * before
        runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*runs)


def test_loss_counts_targets_alone_and_padding_never() -> None:
    tokenizer = words.build()
    replies = [documents.reply("color of fox?", "red"), documents.reply(*_asked())]
    encoded = [encode(d, tokenizer, 0.0) for d in replies]
    assert tokenizer.decode([i for i, w in zip(*encoded[0], strict=True) if w]) == "red<|im_end|>"
    model = files.new_model(1).eval()
    with torch.no_grad():
        together = float(loss(model, collate(encoded, 0)))
        apart = [float(loss(model, collate([e], 0))) for e in encoded]
    targets = [sum(w) for _, w in encoded]
    assert together == pytest.approx(sum(a * t for a, t in zip(apart, targets, strict=True)) / sum(targets), rel=1e-5)


def _asked() -> tuple[str, str, str]:
    item = chain.problem(random.Random(0), 5)
    return item.prompt, item.answer, item.work


def test_mix_sums_to_one() -> None:
    mix = documents.MIX
    assert mix.facts + mix.sums + mix.direct + mix.work + mix.chat == pytest.approx(1)


# --- the command --------------------------------------------------------------------------------------------


def test_list_and_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.List().run() == 0
    shown = capsys.readouterr().out
    assert all(f"family:{name}" in shown for name in NAMES)
    assert cli.Path("family:reasoning").run() == 0
    assert Path(capsys.readouterr().out.strip()) == catalog.directory("reasoning")


def test_unknown_member_names_the_nearest() -> None:
    with pytest.raises(BadInput) as caught:
        cli.Path("instuct").run()
    assert caught.value.fix is not None and caught.value.fix.startswith("did you mean family:instruct? there are ")
    with pytest.raises(BadInput) as caught:
        cli.Path("zzz").run()
    assert caught.value.fix is not None and "base" in caught.value.fix


def test_train_refuses_a_directory_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(Refused) as caught:
        cli.Train(tmp_path, quiet=True).run()
    assert caught.value.exit_code == 3 and (tmp_path / "mine").read_text() == "kept"
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(BadInput, match="cannot be made"):
        cli.Train(tmp_path / "mine" / "family", quiet=True).run()


def test_an_interrupted_training_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(settings: recipe.Stage, out_dir: Path, *_: object) -> None:
        files.save(files.new_model(0), True, out_dir / settings.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run_stage", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_seeds_are_tried_in_turn_and_children_begin_with_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def stage(settings: recipe.Stage | recipe.Reinforcement, out_dir: Path, seed: int, *_: object) -> recipe.Outcome:
        asked.append((settings.name, seed))
        for name in (settings.name, *(recipe.checkpoint(settings, step) for step in settings.checkpoints)):
            files.save(files.new_model(0), settings.parent is None, out_dir / name)
        return recipe.Outcome(settings.name, seed, 1, 1, None, 0.0, 0.0, 0.0)

    def scores(*_: object) -> Measured:
        name, seed = asked[-1]
        good = (name, seed) not in {("base", 4), ("reasoning", 5)}
        bounds = recipe.ACCEPT[name]
        return Measured({b.metric: rate([good == (b.low > 0)] * 500) for b in bounds}, 0.0, 0.0)

    monkeypatch.setattr(train, "run_stage", stage)
    monkeypatch.setattr(train, "measure", scores)
    record = json.loads(train.train(tmp_path / "a", 4).read_text())
    tried = [(o["name"], o["seed"], o["accepted"]) for o in record["outcomes"]]
    assert tried[:2] == [("base", 4, False), ("base", 5, True)] and ("instruct", 5, True) in tried
    assert ("reasoning", 5, False) in tried and ("reasoning", 6, True) in tried and ("safe", 5, True) in tried
    assert [t for t in tried if t[0].startswith("b-")] == [(n, 5, True) for n in STAGES if n.startswith("b-")]
    assert set(record["sha256"]) == set(NAMES)
    monkeypatch.setattr(train, "measure", lambda *_: Measured({b.metric: rate([b.low == 0]) for b in bounds}, 0.0, 0.0))
    bounds = train.ACCEPT["base"]
    with pytest.raises(Refused, match="base was not accepted with any of the seeds 0 to 2"):
        train.train(tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


def test_card_command_measures_another_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match=r"no readable recipe.json"):
        cli.Card(models=tmp_path).run()
    (tmp_path / "recipe.json").write_text("[]")
    with pytest.raises(BadInput, match="not the record"):
        cli.Card(models=tmp_path).run()
    with pytest.raises(BadInput, match="cannot be written"):
        cli.Card(out=tmp_path).run()
    assert cli.Card(n=1, out=tmp_path / "card.md").run() == 0
    captured = capsys.readouterr()
    assert "think ratio" in captured.out and "reasoning" in captured.err
    assert "# The embedded family" in (tmp_path / "card.md").read_text()


@pytest.mark.parametrize("code", ["cli.family as f", "family.catalog as f; f.size(f.directory('base'))"])
def test_listing_loads_no_torch(code: str) -> None:
    check = f"import sys; import deltalens.{code}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_unreadable_models_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a directory"):
        load_directory(tmp_path / "none")
    with pytest.raises(BadInput, match="does not load"):
        load_directory(tmp_path)
    with pytest.raises(BadInput, match="dtype"):
        load_directory(tmp_path, "int8")
