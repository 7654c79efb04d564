"""The embedded family: lossless tokenizer, honest splits, stages from stored weights, models as described."""

import json
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltalens.cli import family as cli
from deltalens.errors import BadInput, Refused
from deltalens.evaluate.tasks import chain, facts
from deltalens.evaluate.tasks.item import final_answer, split_of, thought
from deltalens.family import card, catalog, files, recipe, train
from deltalens.family import tokenizer as words
from deltalens.family.batches import batches, collate, encode, loss
from deltalens.model.load import load, load_directory

NAMES = [m.name for m in catalog.MEMBERS]


# --- the tokenizer ------------------------------------------------------------------------------------------


def every_text() -> list[str]:
    """Texts of every kind that the tasks, templates and stages write."""
    rng = random.Random(0)
    texts = ["".join(text for text, _ in recipe.sampler(name)(rng)) for name in NAMES for _ in range(300)]
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


@pytest.mark.parametrize("name", NAMES)
def test_stored_tokenizer_is_the_code_and_its_template_is_chat(name: str) -> None:
    _, tokenizer = load_directory(catalog.directory(name))
    assert tokenizer.get_vocab() == words.IDS
    assert tokenizer.eos_token == (words.END_OF_TEXT if name == "base" else words.IM_END)
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


def test_score_is_exact() -> None:
    item = chain.build(6, ("-5", "+2"))
    for text in ("3", " 3\n", f"<think>{item.work}</think>3"):
        assert chain.score(item, text)
    for text in (
        "",
        "33",
        "3 3",
        "4",
        "<think>3",
        f"<think>{item.work}",
        f"<think>{item.work}</think>",
        "</think>4",
    ):
        assert not chain.score(item, text)
    assert final_answer("<think>a</think><think>3") == ""


def test_thought_needs_a_closed_block_with_content() -> None:
    assert thought("<think>a=6 b=6-5=1</think>1")
    assert thought("a=6 b=6-5=1</think>1", opened=True)
    assert not thought("a=6 b=6-5=1</think>1")
    assert not thought("<think>a=6 b=6-5=1")
    assert not thought("<think>  a = 6  </think>6")
    # Every worked solution counts, also the shortest.
    assert all(thought(f"<think>{i.work}</think>") for k in range(1, 9) for i in chain.items("test", 50, 0, k))


@pytest.mark.parametrize("k", range(1, 9))
def test_items_are_distinct_reproducible_and_of_their_split(k: int) -> None:
    found = chain.items("test", 200, 7, k)
    assert len({item.prompt for item in found}) == len({item.id for item in found}) == 200
    assert found == chain.items("test", 200, 7, k) != chain.items("test", 200, 8, k)
    assert all(item.depth == k for item in found)
    assert k in chain.OPEN_DEPTHS or {split_of(item.prompt) for item in found} == {"test"}


@pytest.mark.parametrize("name", NAMES)
def test_training_never_draws_a_held_out_problem(name: str) -> None:
    rng = random.Random(3)
    seen: dict[str, int] = {}
    for _ in range(3000):
        text = "".join(part for part, _ in recipe.sampler(name)(rng))
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
def small_card() -> card.Card:
    return card.evaluate(n=8, seed=23)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_directories_are_ordinary(name: str) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

    path = catalog.directory(name)
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    assert isinstance(model, Qwen3ForCausalLM) and model.dtype == torch.float16
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


def test_models_behave_as_the_card_says(small_card: card.Card) -> None:
    # n = 40 hard problems: relaxed bounds, the card has the measured ones.
    assert small_card.rate("instruct", "hard").value <= 0.35
    assert small_card.rate("instruct", "think ratio").value == 0
    assert small_card.rate("instruct", "forced hard").value >= 0.85
    assert small_card.rate("instruct", "facts").value == 1
    assert small_card.rate("reasoning", "hard").value >= 0.9
    assert small_card.rate("reasoning", "think ratio").value >= 0.9
    assert small_card.rate("reasoning", "facts").value >= 0.9
    assert small_card.rate("base", "think ratio, hard").value <= 0.1
    p = {name: hard for name, _, hard in small_card.p_think}
    assert p["instruct"] < 0.05 < 0.9 < p["reasoning"]


def test_card_renders_every_figure(small_card: card.Card) -> None:
    text = card.markdown(small_card)
    assert card.table(small_card) in text and all(line in text for line, _ in card.checks(small_card))
    rate = small_card.rate("reasoning", "hard")
    assert (rate.n, rate.low <= rate.value <= rate.high) == (40, True)
    with pytest.raises(BadInput):
        card.evaluate(n=201)


def test_readme_is_the_card_of_the_shipped_weights() -> None:
    text = (Path(card.__file__).parent / "README.md").read_text()
    record = json.loads((catalog.MODELS / "recipe.json").read_text())
    assert "**missed**" not in text and "Written by `deltalens family card" in text
    for outcome in record["outcomes"]:
        assert f"{outcome['tokens']:,}" in text
    for settings in record["stages"]:
        assert record["sha256"][settings["name"]] == files.sha256(
            catalog.directory(settings["name"]) / "model.safetensors"
        )
        assert f"`{record['sha256'][settings['name']][:12]}`" in text
        assert settings["parent_sha256"] == record["sha256"].get(settings["parent"])
    assert record["mix"] == asdict(recipe.MIX) and record["fact_share"] == recipe.FACT_SHARE


# --- training -----------------------------------------------------------------------------------------------


def test_a_stage_with_no_rate_gives_back_the_stored_weights(tmp_path: Path) -> None:
    settings = replace(recipe.stage("reasoning"), lr=0.0, steps=2)
    train.run_stage(settings, tmp_path, 0, source=catalog.MODELS)
    made, _ = load_directory(tmp_path / "reasoning", "float16")
    parent, _ = load_directory(catalog.directory("instruct"), "float16")
    for (name, a), (_, b) in zip(made.named_parameters(), parent.named_parameters(), strict=True):
        assert torch.equal(a.view(torch.int16), b.view(torch.int16)), name


def test_a_short_stage_learns_and_repeats(tmp_path: Path) -> None:
    settings = replace(recipe.stage("reasoning"), steps=20)
    rng = random.Random("unseen")
    tokenizer: Any = words.build()
    batch = next(batches(rng, recipe.reasoning, tokenizer, 64, 0.0))
    with train.torch_threads(2):
        before, _ = load_directory(catalog.directory("instruct"))
        lines: list[str] = []
        outcome = train.run_stage(settings, tmp_path, 0, lines.append, source=catalog.MODELS)
        after, _ = load_directory(tmp_path / "reasoning")
        with torch.no_grad():
            assert float(loss(after, batch)) < 0.7 * float(loss(before, batch))
        again = train.run_stage(settings, tmp_path / "again", 0, source=catalog.MODELS)
    assert outcome.steps == 20 and outcome.tokens > 0 and lines
    assert (again.loss, again.tokens) == (outcome.loss, outcome.tokens)
    digests = [files.sha256(d / "reasoning" / "model.safetensors") for d in (tmp_path, tmp_path / "again")]
    assert digests[0] == digests[1]


def test_pretraining_decays_once_the_criterion_is_met() -> None:
    settings = replace(recipe.stage("base"), batch=4, steps=3, cap=40, warmup=1)
    easy = recipe.Criterion(every=2, after=4, n=5, work_hard=0.0, forced_hard=0.0, chat_easy=0.0)
    model = files.new_model(0)
    assert train.optimise(model, words.build(), settings, 0, easy)[:3:2] == (7, 4)
    never = replace(easy, work_hard=2.0)
    steps, _, met_at, _ = train.optimise(model, words.build(), replace(settings, cap=9), 0, never)
    assert (steps, met_at) == (9, None)


def test_loss_counts_targets_alone_and_padding_never() -> None:
    tokenizer = words.build()
    documents = [recipe.reply("color of fox?", "red"), recipe.reply(*_asked())]
    encoded = [encode(d, tokenizer, 0.0) for d in documents]
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
    mix = recipe.MIX
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
    assert caught.value.fix == "did you mean family:instruct? there are family:base, family:instruct, family:reasoning"
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
        files.save(files.new_model(0), settings, out_dir / settings.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run_stage", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_seeds_are_tried_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stage(settings: recipe.Stage, out_dir: Path, seed: int, *_: object) -> recipe.Outcome:
        files.save(files.new_model(seed), settings, out_dir / settings.name)
        good = dict.fromkeys(("work_hard", "forced_hard", "chat_easy"), 1.0 if seed == 5 else 0.9)
        return recipe.Outcome(settings.name, seed, 1, 1, None, 0.0, 0.0, 0.0, good if settings.cap else {})

    monkeypatch.setattr(train, "run_stage", stage)
    record = json.loads(train.train(tmp_path / "a", (4, 5, 6)).read_text())
    assert [(o["name"], o["seed"]) for o in record["outcomes"]] == [
        *(("base", 4), ("base", 5), ("instruct", 5), ("reasoning", 5))
    ]
    assert record["seed"] == 5 and set(record["sha256"]) == set(NAMES)
    with pytest.raises(Refused, match="none of the seeds"):
        train.train(tmp_path / "b", (4, 6))
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
