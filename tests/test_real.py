"""A real language model through the same commands: SmolLM2-135M-Instruct (`make test-real`)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import train
from recipe import Recipe
from safetensors.torch import load_file
from start import convert, package

from deltalens.checkpoint.chat import read_chat
from deltalens.checkpoint.source import open_checkpoint
from deltalens.cli.main import main
from deltalens.errors import Refused
from deltalens.store.experiment import Experiment

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(package() is None, reason="needs make test-real"),
    pytest.mark.filterwarnings("default"),  # the GGUF reader's own
]


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = package()
    assert folder is not None
    return convert(folder, tmp_path_factory.mktemp("real") / "smollm2")


def test_its_format_is_found_without_transformers(smollm2: Path) -> None:
    chat = read_chat(open_checkpoint(str(smollm2)))
    assert chat.template is not None and chat.think is not None
    assert (chat.think.open, len(chat.think.open_ids), len(chat.think.close_ids)) == ("<think>", 3, 3)
    assert not chat.think.opened_by_template and chat.think.switch is None
    assert chat.render("Hi").endswith("<|im_start|>assistant\n")


def test_it_is_evaluated_like_the_family(smollm2: Path, tmp_path: Path) -> None:
    asked = ["--n", "4", "--max-tokens", "16", "--temperature", "0", "--out", str(tmp_path / "e")]
    assert main(["eval", str(smollm2), *asked]) == 0
    rows = Experiment.open(tmp_path / "e").summary.to_pylist()
    tasks = {r["task"] for r in rows}
    assert {"modular", "deduction", "refusal", "text"} <= tasks
    (text,) = (r for r in rows if r["metric"] == "perplexity")
    assert 5 < text["value"] < 100 and text["low"] is not None  # plain prose in short windows, 4-bit weights
    p_think = [r["value"] for r in rows if r["metric"] == "p_think" and not r["group"]]
    assert p_think and max(p_think) < 1e-3  # it was never taught to think
    completions = Experiment.open(tmp_path / "e").results("eval").to_pylist()
    assert any(r["correct"] for r in completions if r["task"] == "refusal" and r["group"] == "harmless")


@pytest.fixture(scope="session")
def bank(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("real") / "bank.safetensors")
    command = ["directions", "activations", str(smollm2), "--contrast", "prompts", "--layers", "10", "20", "--out", out]
    assert main([*command, "--quiet"]) == 0
    return out


def test_a_direction_is_compared_with_refusal(smollm2: Path, bank: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", bank, "--refusal", str(smollm2), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "supported" in str(found) or "undecided" in str(found) or "contradicted" in str(found)


def test_it_is_probed_on_prompts_of_equal_length(smollm2: Path, bank: str, tmp_path: Path) -> None:
    out = tmp_path / "probe"
    assert main(["probe", str(smollm2), "--direction", bank, "--out", str(out), "--quiet"]) == 0
    rows = Experiment.open(out).summary.to_pylist()
    (length,) = (r for r in rows if r["arm"] == "prompt length")
    assert length["n"] >= 48 and length["low"] < 0.5 < length["high"]
    assert any(r["metric"] == "d" and r["arm"].startswith("direction") and r["low"] is not None for r in rows)


def test_steering_it_has_arms_and_controls(smollm2: Path, bank: str, tmp_path: Path) -> None:
    out = tmp_path / "steer"
    asked = ["--layers", "20", "--alpha", "2", "--n", "2", "--max-tokens", "8", "--task", "choice"]
    assert main(["steer", str(smollm2), "--direction", bank, *asked, "--out", str(out), "--quiet"]) == 0
    arms = Experiment.open(out).arms.to_pylist()
    assert sum(a["role"] == "control" for a in arms) >= 10
    assert any(r["metric"] == "effect_minus_largest_control" for r in Experiment.open(out).summary.to_pylist())


# --- a small version of runs/smollm2 ---------------------------------------------------------------------


SMALL = Recipe("think", "think", chains=48, chat=16)


@pytest.fixture(scope="session")
def small(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small")
    (out / train.START).symlink_to(smollm2)
    train.make(SMALL, out)
    return out


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    steps = iter(range(5))

    def stop(*given: Any) -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return loss(*given)

    loss = train.loss
    monkeypatch.setattr(train, "loss", stop)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_training_ends_with_the_same_weights(
    small: Path, tmp_path: Path, optimizer: str, interrupted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(SMALL, chains=40, chat=8, optimizer=optimizer)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        out.mkdir()
        (out / train.START).symlink_to((small / train.START).resolve())
        shutil.copy(small / "chat.json", out)
    with pytest.raises(KeyboardInterrupt):
        train.make(recipe, parts)
    assert (parts / ".think.safetensors").is_file() and not (parts / "think").exists()
    with pytest.raises(Refused, match="seed 0 there, 1 now"):
        train.make(replace(recipe, seed=1), parts)
    monkeypatch.undo()
    train.make(recipe, parts)
    train.make(recipe, whole)
    one, two = weights(whole / "think"), weights(parts / "think")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert sorted(p.name for p in parts.iterdir()) == ["chat.json", "instruct", "think"]
    cards = [json.loads((out / "think" / "card.json").read_text()) for out in (whole, parts)]
    assert cards[0]["loss"] == cards[1]["loss"] and cards[0]["held_out_loss"] == cards[1]["held_out_loss"]
