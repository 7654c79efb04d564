"""`eval` as a user runs it, on the embedded family: known truths, resume, formats that differ, and bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deltalens.cli.main import main
from deltalens.evaluate.plan import Settings, plan
from deltalens.evaluate.suite import evaluate
from deltalens.family.catalog import MODELS
from deltalens.store.experiment import Experiment

HARD = ("family:instruct", "family:reasoning", "--task", "chain-hard", "--n", "50", "--quiet")


def number(rows: list[dict[str, Any]], arm: str, metric: str, **where: Any) -> dict[str, Any]:
    return next(
        r
        for r in rows
        if r["arm"] == arm
        and r["metric"] == metric
        and not r["group"]
        and r["reference"] == where.get("reference")
        and r["task"] == where.get("task", "chain-hard")
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eval") / "e"
    assert main(["eval", *HARD, "--out", str(out)]) == 0
    return out


def test_the_family_behaves_as_it_was_made(kept: Path) -> None:
    rows = Experiment.open(kept).summary.to_pylist()
    assert number(rows, "family:instruct", "accuracy")["high"] < 0.4  # guessing is .1
    assert number(rows, "family:instruct", "forced_accuracy")["low"] > 0.85
    assert number(rows, "family:reasoning", "accuracy")["low"] > 0.9
    assert number(rows, "family:instruct", "think_ratio")["value"] == 0
    assert number(rows, "family:reasoning", "think_ratio")["value"] == 1
    assert number(rows, "family:reasoning", "p_think")["low"] > 0.9 > number(rows, "family:instruct", "p_think")["high"]
    difference = number(rows, "family:reasoning", "accuracy", reference="family:instruct")
    assert difference["low"] > 0.5 and difference["p_holm"] < 1e-6
    assert number(rows, "family:reasoning", "kl")["low"] > 0.5
    assert not any(r["arm"] == "family:instruct" and r["metric"] == "kl" for r in rows)


def test_every_completion_is_kept(kept: Path) -> None:
    rows = Experiment.open(kept).results("eval").to_pylist()
    assert len(rows) == 2 * 2 * 50  # models, free and forced, items
    for row in rows:
        assert (row["p_think"] is None) == (row["mode"] == "forced")
        assert row["correct"] is False or row["format_ok"]
        assert 0 <= row["think_tokens"] <= row["tokens"] <= 64
        assert row["thought"] == (row["closed"] and len(row["text"].partition("</think>")[0]) > 8)
    items = [{r["item"] for r in rows if r["arm"] == arm} for arm in ("family:instruct", "family:reasoning")]
    assert items[0] == items[1] and len(items[0]) == 50
    assert {r["role"] for r in rows if r["arm"] == "family:instruct"} == {"baseline"}


def test_it_resumes_and_gives_the_same_tables(kept: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    shutil.copytree(kept, out)
    whole = Experiment.open(out).results("eval"), Experiment.open(out).summary
    parts = sorted((out / "parts").iterdir())
    parts[0].unlink()
    parts[1].write_bytes(b"torn")
    before = {p.name: p.stat().st_mtime_ns for p in parts[2:]}
    record = json.loads((out / "experiment.json").read_text())
    (out / "experiment.json").write_text(json.dumps(record | {"status": "running"}))
    assert main(["eval", *HARD, "--out", str(out)]) == 0
    assert (Experiment.open(out).results("eval"), Experiment.open(out).summary) == whole
    assert all((out / "parts" / name).stat().st_mtime_ns == when for name, when in before.items())


def test_other_settings_do_not_mix(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *HARD[:-3], "--n", "49", "--quiet", "--out", str(kept)]) == 3
    assert "settings.n was 50, not 49" in capsys.readouterr().err


def test_json_is_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "family:base", "--task", "facts", "--n", "3", "--json", "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {r["arm"] for r in rows} == {"family:base"} and any(r["metric"] == "perplexity" for r in rows)


def test_the_table_has_every_arm_and_interval(capsys: pytest.CaptureFixture[str]) -> None:
    models = ["family:base", "family:instruct"]
    assert main(["eval", *models, "--task", "chain-easy", "guarded", "--n", "8", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert text.count("family:instruct") >= 4 and "chain-easy" in text and "guarded" in text
    assert "1.000 [0.676, 1.000]" in text and "Holm over" in text and "perplexity" in text


def test_sampling_repeats_and_does_not_depend_on_the_batch() -> None:
    runs = [
        evaluate(
            plan(
                ["family:reasoning"],
                Settings(tasks=("chain-hard",), n=6, seeds=(3, 4), temperature=1.2, batch_size=batch),
            )
        )
        for batch in (64, 5)
    ]
    texts = [[(r["item"], r["sample"], r["text"]) for r in run.rows if r["mode"] == "free"] for run in runs]
    assert texts[0] == texts[1] and len(texts[0]) == 12
    first, second = ([t for _, s, t in texts[0] if s == sample] for sample in (0, 1))
    assert first != second
    assert any(r["metric"] == "pass@2" for r in runs[0].summary)


def copied(tmp_path: Path, name: str, template: str | None) -> Path:
    """A family member in another chat format."""
    folder = tmp_path / name
    shutil.copytree(MODELS / "instruct", folder)
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def test_a_reference_with_its_own_format_is_one_more_arm(tmp_path: Path) -> None:
    own = copied(tmp_path, "own", "{% for m in messages %}{{ 'Q: ' + m['content'] + ' A: ' }}{% endfor %}")
    asked = plan([str(own), "family:reasoning"], Settings(tasks=("chain-easy",), n=5, temperature=0.0))
    assert any("templates differ" in note for note in asked.notes)
    found = evaluate(asked)
    arms = {(r["arm"], r["role"]) for r in found.rows}
    assert arms == {(str(own), "baseline"), (f"{own}, own format", "format"), ("family:reasoning", "model")}
    native = [r for r in found.rows if r["role"] == "format"]
    assert len(native) == 5 and {r["mode"] for r in native} == {"free"}
    assert all(r["kl"] is None for r in native)


def test_without_a_template_prompts_are_plain_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(tmp_path, "plain", None)
    line = json.dumps({"id": "a", "prompt": "color of fox?", "answer": "red"})
    (tmp_path / "a.jsonl").write_text(line + "\n")
    # The family's tokenizer has no word for "Question:", so the plain prompt itself is unreadable to it.
    code = main(["eval", str(folder), "--task", f"jsonl:{tmp_path / 'a.jsonl'}", "--n", "1", "--quiet"])
    said = capsys.readouterr()
    assert code == 0 and "no model has a chat template" in said.err and "n = 1" in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "MODEL"),
        (["family:nobody"], 2, "nobody"),
        (["family:base", "family:base"], 2, "named twice"),
        (["family:base", "--task", "chian"], 2, "did you mean chain"),
        (["family:base", "--task", "refusal", "modular"], 2, "cannot encode"),
        (["family:base", "--task", "facts", "--n", "25"], 2, "--n 24"),
        (["family:base", "--n", "0"], 2, "--n 0 is not possible"),
        (["family:base", "--seed", "1", "1"], 2, "named twice"),
        (["family:base", "--max-tokens", "0"], 2, "--max-tokens"),
        (["family:base", "--batch-size", "0"], 2, "--batch-size"),
        (["family:base", "--temperature", "-1", "--task", "facts"], 2, "temperature"),
        (["family:base", "--top-p", "0", "--temperature", "1", "--task", "facts"], 2, "top_p"),
        (["family:base", "--device", "mps", "--task", "facts"], 2, "--device cpu"),
        (["family:base", "--out", ""], 2, "--out"),
        (["family:base", "--task", "jsonl:/nowhere.jsonl"], 2, "/nowhere.jsonl"),
    ],
)
def test_bad_input(arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        found = main(["eval", *arguments, "--quiet"])
    except SystemExit as stop:
        found = stop.code
    said = capsys.readouterr().err
    assert found == code and words in said and "Traceback" not in said


def test_models_of_other_tokenizers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(MODELS / "base", other)
    file = other / "tokenizer.json"
    settings = json.loads(file.read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary["0"], vocabulary["1"] = vocabulary["1"], vocabulary["0"]
    file.write_text(json.dumps(settings))
    assert main(["eval", str(other), "family:instruct", "--task", "chain-easy", "--n", "5", "--quiet"]) == 3
    assert "different tokenizers" in capsys.readouterr().err


def test_a_malformed_prompt_file_names_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"id": "a", "prompt": "color of fox?", "answer": "red"}\n{"id": "b"\n')
    assert main(["eval", "family:base", "--task", f"jsonl:{file}", "--quiet"]) == 2
    assert "line 2" in capsys.readouterr().err
    file.write_text("")
    assert main(["eval", "family:base", "--task", f"jsonl:{file}", "--quiet"]) == 2
    assert "error:" in capsys.readouterr().err
