"""What a whole run says where the truth is known: no cause in noise or in a pair that does not think, a planted one."""

import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted_pair import LAYER, save_planted
from safetensors.torch import load_file, save_file
from test_report import Page, assert_self_contained
from test_run import KEPT, config, one_control, run, silent, tables
from test_run_page import opened

from deltalens.checkpoint.source import resolve
from deltalens.experiment.config import read_config
from deltalens.experiment.run import run_all
from deltalens.experiment.verdicts import Answer, verdicts
from deltalens.store.experiment import Experiment

INSTRUCT = "family:instruct"
SAFETY = (INSTRUCT, "family:safe", "safety")
SIBLING = ("family:base", "family:instruct-sibling", "sibling")
CAUSES = ("causal for", "sufficient", "necessary", "choice", "specific", "sharp")
"""How the questions begin to which a pair that does not think has no yes."""
SHARES = ("causal for", "sufficient", "necessary")
"""Those that are answered by a share of the pair's difference in thinking."""


def answers(folder: Path, main: tuple[str, str], controls: dict[str, tuple[str, str, str]], *keep: str) -> list[Answer]:
    """The verdicts of a run at n = 200 without long completions, and 4 cells of its causal map."""
    path = config(folder, keep, n=200, pairs={"main": (*main, "main"), **controls})
    done = run_all(replace(read_config(path), cells=4), folder / "exp", silent, lambda _: None, "deltalens run")
    assert not done.missing
    return verdicts(folder / "exp")


def words(found: list[Answer]) -> dict[str, str]:
    return {start: next(a.word for a in found if a.question.startswith(start)) for start in (*CAUSES, "low-rank")}


def save_noise(folder: Path) -> str:
    """The instruct model and a quarter of an ulp of noise, rounded back to its float16 (docs/measures.md)."""
    copy = Path(shutil.copytree(resolve(INSTRUCT), folder / "noise"))
    generator = torch.Generator().manual_seed(0)
    (file,) = copy.glob("*.safetensors")
    made = {}
    for name, w in load_file(file).items():
        assert w.dtype == torch.float16
        binade = (torch.frexp(w.double()).exponent - 1).clamp(min=-14)
        noise = torch.randn(w.shape, generator=generator, dtype=torch.float64) / 4
        made[name] = (w.double() + noise * 2.0 ** (binade - 10)).half()
    save_file(made, file, {"format": "pt"})
    return str(copy)


@pytest.fixture
def few() -> Generator[None]:
    """One control of each kind."""
    with one_control():
        yield


def assert_no_cause(found: list[Answer], steps: set[str]) -> None:
    """A difference of 1e-6 in p_think, whose interval excludes 0, is no difference to take a share of."""
    said = words(found)
    assert {said[question] for question in CAUSES} == {"undecided"}, said
    told = [a for a in found if a.question.startswith(SHARES)]
    assert {number.step for a in told for number in a.numbers} == steps
    shares = [number for a in told for number in a.numbers if "F" in number.name]
    assert shares and all(number.value is None for number in shares)
    assert "the pair differs by" in told[0].why


def test_noise_is_no_cause(tmp_path: Path, few: None) -> None:
    pairs = {"safety": SAFETY, "sibling": SIBLING}
    found = answers(tmp_path, (INSTRUCT, save_noise(tmp_path)), pairs, "specific")
    assert_no_cause(found, {"specific"})
    assert words(found)["low-rank"] != "supported"


def test_siblings_that_do_not_think_have_no_cause(tmp_path: Path, few: None) -> None:
    found = answers(tmp_path, (INSTRUCT, SIBLING[1]), {"safety": SAFETY}, "specific")
    assert_no_cause(found, {"specific"})
    assert words(found)["low-rank"] == "supported"  # the delta is real, and about something else


EDITED = ("steer-up", "steer-down", "transition", "rank", "specific", "map")


@pytest.mark.slow
def test_no_step_finds_a_cause_in_noise(tmp_path: Path) -> None:
    pairs = {"safety": SAFETY, "sibling": SIBLING}
    found = answers(tmp_path, (INSTRUCT, save_noise(tmp_path)), pairs, *EDITED)
    assert_no_cause(found, {"rank", "specific", "map", "steer-up"})
    assert words(found)["low-rank"] != "supported"


@pytest.mark.slow
def test_no_step_finds_a_cause_in_siblings(tmp_path: Path) -> None:
    found = answers(tmp_path, (INSTRUCT, SIBLING[1]), {"safety": SAFETY}, *EDITED)
    assert_no_cause(found, {"rank", "specific", "map", "steer-up"})


def assert_planted(folder: Path, found: list[Answer]) -> None:
    """The one matrix is cause, sufficient and necessary, and no other cell of those that ran matters."""
    said = words(found)
    assert [said[question] for question in SHARES] == ["supported"] * 3, said
    rows = Experiment.open(folder / "exp" / "steps" / "map").summary.to_pylist()
    matters = {row["arm"]: row["value"] for row in rows if row["metric"] == "matters"}
    planted = {f"{direction} layer {LAYER} o_proj top" for direction in ("put in", "leave out")}
    assert {arm for arm, value in matters.items() if value} == planted
    assert sum(value == 0 for value in matters.values()) == 2
    cells = next(a for a in found if a.question.startswith("sufficient")).numbers
    assert f"put in layer {LAYER} o_proj top" in {number.arm for number in cells if number.step == "map"}


def test_a_planted_matrix_is_the_cause_and_no_other(tmp_path: Path, few: None) -> None:
    found = answers(tmp_path, save_planted(tmp_path), {"sibling": SIBLING}, "specific", "map")
    assert_planted(tmp_path, found)


@pytest.mark.slow
def test_a_planted_matrix_is_the_cause_for_every_step(tmp_path: Path) -> None:
    pairs = {"safety": SAFETY, "sibling": SIBLING}
    found = answers(tmp_path, save_planted(tmp_path), pairs, "rank", "specific", "map")
    assert_planted(tmp_path, found)
    assert words(found)["specific"] == "supported"
    assert not any("; but " in a.why for a in found if a.question.startswith(SHARES))  # all steps say the same


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_tables(tmp_path: Path) -> None:
    path, whole, again = config(tmp_path, KEPT), tmp_path / "whole", tmp_path / "again"
    assert run(path, whole) == 0
    command = [sys.executable, "-m", "deltalens", "run", "--config", str(path), "--out", str(again), "--quiet"]
    files = lambda exp: sum(file.is_file() for file in exp.rglob("*"))  # noqa: E731
    seed, killed = time.time_ns(), 0
    moments = random.Random(seed)
    for _ in range(3):
        until = moments.randint(files(again) + 1, max(files(again) + 1, files(whole) - 20))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and files(again) < until:
            time.sleep(0.005)
        process.kill()
        killed += process.wait() == -9
    assert killed, seed
    assert run(path, again) == 0
    expected, found = tables(whole), tables(again)
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        assert found[name] == table, (name, seed)


MARKUP = "</script><img src=https://evil.example/x onerror=alert(1)>"
NOUNS, COLOURS = ("fox", "crab", "jay", "frog"), ("red", "blue", "green", "yellow")


def save_hostile(source: str, folder: Path) -> str:
    """A model of the family whose nouns and colours are all spelt with markup."""
    copy = Path(shutil.copytree(resolve(source), folder))
    file = copy / "tokenizer.json"
    known = json.loads(file.read_text())
    spelt = {word: f"{MARKUP}{word}" for word in (*NOUNS, *COLOURS)}
    model, split = known["model"], known["pre_tokenizer"]
    model["vocab"] = {spelt.get(word, word): i for word, i in model["vocab"].items()}
    split["pattern"]["Regex"] = "|".join([*map(re.escape, spelt.values()), split["pattern"]["Regex"]])
    file.write_text(json.dumps(known))
    return str(copy)


def test_hostile_prompts_are_inert_on_the_page(tmp_path: Path, few: None) -> None:
    base = save_hostile(INSTRUCT, tmp_path / "<b onclick=alert(1)>")
    tuned = save_hostile("family:reasoning", tmp_path / "<iframe srcdoc=x>")
    prompts = tmp_path / "<img src=x onerror=alert(1)>.jsonl"
    lines = [
        {"id": f"{MARKUP}{word}", "prompt": f"color of {MARKUP}{word}?", "answer": MARKUP, "group": MARKUP}
        for word in NOUNS
    ]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    path = config(tmp_path, ("eval", "rank"), n=4, pairs={"main": (base, tuned, "main")})
    path.write_text(path.read_text().replace('"chain-hard"', f"'jsonl:{prompts}'").replace("max_tokens = 2", ""))
    assert run(path, tmp_path / "exp") == 0
    page = opened((tmp_path / "exp" / "report.html").read_text())
    assert page.tags.count("script") == 2 and not {"img", "b", "iframe"} & {*page.tags}
    for told in ("<b onclick=alert(1)>", "<iframe srcdoc=x>", "<img src=x onerror=alert(1)>.jsonl"):
        assert told in page.text, told
    for spelt in (NOUNS, COLOURS):  # an item, and what a model wrote
        assert any(f"{MARKUP}{word}" in page.text for word in spelt), spelt
    assert_self_contained(Page((tmp_path / "exp" / "spectra.html").read_text()))
