"""The configuration of an experiment: every key has a commented default, every mistake names what was meant."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from deltalens.errors import BadInput
from deltalens.experiment.config import DEFAULTS, DEMO, ROLES, Config, default, read_config, shortened

ROOT = Path(__file__).parent.parent
MAIN = '[[pairs]]\nname = "main"\nbase = "family:instruct"\ntuned = "family:reasoning"\nrole = "main"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(text)
    return path


def test_every_key_has_a_default_below_a_comment() -> None:
    lines = DEFAULTS.read_text().splitlines()
    keys = [line.partition(" ")[0] for line in lines if re.match(r"\w+ = ", line)]
    assert sorted(keys) == sorted(f.name for f in fields(Config))
    for key in keys:
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{key} = "))
        assert lines[at - 1].startswith("# ")
    assert all(f'"{role}"' in DEFAULTS.read_text() for role in ROLES)


def test_a_file_says_only_what_differs(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, f"n = 50\nalphas = [1, 2.5]\nminutes = 3\n{MAIN}"))
    plain = default("family:instruct", "family:reasoning")
    assert (config.n, config.alphas, config.minutes) == (50, (1.0, 2.5), 3.0)
    assert config.main == plain.main
    assert (config.top, config.nulls, config.skip) == (plain.top, plain.nulls, plain.skip)
    assert plain.asked.n == 200
    assert plain.asked.tasks == ()
    assert plain.asked.max_tokens is None


def test_the_shipped_configurations_read() -> None:
    demo = read_config(DEMO)
    assert {pair.role for pair in demo.pairs} == set(ROLES)
    assert demo.n == 200  # causal verdicts need them
    for path in (ROOT / "runs").glob("*.toml"):
        read_config(path)


@pytest.mark.parametrize(
    ("text", "error", "fix"),
    [
        ("tsak = 'chain'", "a key 'tsak'", "task; there are"),
        ("batch-size = 3", "a key 'batch-size'", "batch_size; there are"),
        ("n = 0", "n = 0", "at least 1"),
        ("n = 2.5", "n = 2.5", "n = 200"),
        ("n = true", "n = True", "n = 200"),
        ("seeds = []", "seeds = []", "seeds = [0]"),
        ("n = 99999999999", "n = 99999999999", "at most 100000"),
        ("seeds = [-1]", "seeds = [-1]", "from 0"),
        ("seeds = [1, 1]", "seeds = [1, 1]", "each once"),
        ("alphas = [1.0, 0]", "alphas = [1.0, 0]", "above 0"),
        ("alphas = [-1.0]", "alphas = [-1.0]", "above 0"),
        ("alphas = [nan]", "alphas = [nan]", "above 0"),
        ("task = 'chain-hrad'", "chain-hrad: no such task", "did you mean chain-hard?"),
        ("alphas = ['x']", "alphas = ['x']", "alphas = ["),
        ("minutes = -1", "minutes = -1", "at least 0"),
        ("temperature = -1", "temperature = -1", "at least 0"),
        ("temperature = 1e-9", "temperature = 1e-09", "0 for greedy"),
        ("generate = 'al'", "generate = 'al'", "all; there are"),
        ("generated = -1", "generated = -1", "at least 0"),
        ("nulls = 'ful'", "nulls = 'ful'", "full; there are"),
        ("dtype = 'fp32'", "dtype = 'fp32'", "float32; there are"),
        ("n = ", "is not TOML", "key = value"),
        (MAIN + MAIN, "two pairs are called main", "a name of its own"),
        (MAIN.replace('"main"\n', '"mian"\n', 2), "role 'mian'", "main; there are"),
        (MAIN.replace("tuned", "tunde"), "a pair has a key 'tunde'", "tuned; there are"),
        (MAIN.replace('base = "family:instruct"\n', ""), "a pair has no base", "base = "),
        (MAIN.replace("reasoning", "instruct"), "of pair main are both family:instruct", "two models"),
        (MAIN.replace('name = "main"', 'name = "../x"'), "is no name of a pair", "letters"),
        (MAIN.replace('role = "main"', 'role = "rl"'), "no main pair", "deltalens run BASE TUNED"),
        (MAIN + MAIN.replace('name = "main"', 'name = "two"'), "2 main pairs", "one [[pairs]]"),
    ],
)
def test_mistakes_name_what_was_meant(text: str, error: str, fix: str, tmp_path: Path) -> None:
    if "[[pairs]]" not in text:
        text = f"{text}\n{MAIN}"
    with pytest.raises(BadInput) as found:
        read_config(written(tmp_path, text))
    assert error in found.value.error
    assert found.value.fix is not None
    assert fix in found.value.fix


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize(("name", "says"), [("/dev/zero", "not a regular file"), ("large", "1,000,001 bytes")])
def test_what_has_no_end_is_not_read(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"#" * 1_000_001)
    with pytest.raises(BadInput, match=says) as found:
        read_config(tmp_path / name)
    assert found.value.fix == "--config FILE.toml"


def test_interventions_are_greedy_and_eval_keeps_the_tasks_own(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, f"n = 200\ngenerated = 100\n{MAIN}"))
    assert (config.swept.temperature, config.asked.temperature, config.evaluated.temperature) == (0.0, None, None)
    assert (config.swept.n, config.evaluated.n) == (200, 100)
    assert read_config(written(tmp_path, f"temperature = 1\n{MAIN}")).swept.temperature == 1.0


def test_no_time_at_all() -> None:
    config = default("a", "b")
    assert shortened(config, None) == config
    assert shortened(config, 2.0).minutes == 2.0
    for minutes in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(BadInput, match="not possible"):
            shortened(config, minutes)
