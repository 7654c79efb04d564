"""What the README says is so: its Python runs, its commands exist, its links point somewhere."""

import re
from pathlib import Path

import pytest

from deltalens.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(code, names)  # the point of the test
    assert names["run"].matrices.num_rows == 29


def test_the_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for block in blocks("") for line in block.splitlines()]
    targets = {line.split()[1] for line in lines if line.startswith("make ")}
    assert {"demo", "test"} <= targets
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    groups = ("directions", "family")  # verbs whose second word is a verb too
    commands = [line.split() for line in lines if line.startswith("deltalens ")]
    verbs = {tuple(words[1:3] if words[1] in groups else words[1:2]) for words in commands}
    assert {("plan",), ("measure",), ("report",)} <= verbs
    for verb in verbs:
        with pytest.raises(SystemExit) as stop:
            main([*verb, "--help"])
        assert stop.value.code == 0
        shown_as = ("deltalens", *verb)
        options = {
            word
            for words in commands
            if tuple(words[: len(shown_as)]) == shown_as
            for word in words
            if word[:2] == "--"
        }
        shown = capsys.readouterr().out
        assert all(flag in shown for flag in options), options


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_the_links_point_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
