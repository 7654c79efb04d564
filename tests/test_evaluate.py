"""`eval` as a user runs it, on the embedded family: known truths, resume, formats that differ, and bad input.

What the family cannot show, its closed list of words being all it reads, is shown on a random byte-level model.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import PLAIN_CHATML, bpe, family

from deltalens.checkpoint.identity import behaviour_identity
from deltalens.checkpoint.source import open_checkpoint
from deltalens.cli.evaluate import show_differences
from deltalens.cli.main import main
from deltalens.direction.bank import write_bank
from deltalens.direction.direction import Direction
from deltalens.errors import BadInput, Refused
from deltalens.evaluate.plan import Settings, plan
from deltalens.evaluate.prompts import render
from deltalens.evaluate.suite import evaluate
from deltalens.evaluate.tasks import facts
from deltalens.evaluate.tasks.item import Item
from deltalens.family.catalog import MODELS
from deltalens.store.experiment import Experiment
from deltalens.store.results import SUMMARY

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
    assert {tuple(r) for r in rows} == {tuple(SUMMARY.names)}


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


def edited(file: Path, **changes: Any) -> None:
    """Values of a JSON file, set; None takes one away."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def asking(file: Path, *items: dict[str, Any]) -> str:
    """A prompt file as a task."""
    file.write_text("".join(json.dumps({"id": str(i), "answer": "4"} | item) + "\n" for i, item in enumerate(items)))
    return f"jsonl:{file}"


def spoken(folder: Path, template: str | None) -> Path:
    """A random model that reads any text, byte by byte."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=320, **sizes)).save_pretrained(folder)
    bpe(folder, template)
    return folder


def widened(tmp_path: Path) -> Path:
    """instruct with more control tokens, and a row more."""
    import torch

    from deltalens.model.load import load_directory

    folder = copied(tmp_path, "added", (MODELS / "instruct" / "chat_template.jinja").read_text())
    model, _ = load_directory(folder)
    torch.manual_seed(0)
    model.resize_token_embeddings(129, mean_resizing=False).weight.data[128] = 0.1
    model.save_pretrained(folder)
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    added += [added[0] | {"id": i, "content": f"<{i}>"} for i in range(120, 129)]  # the family's ids end at 119
    edited(folder / "tokenizer.json", added_tokens=added)
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
    folder, task = spoken(tmp_path / "plain", None), asking(tmp_path / "a.jsonl", {"prompt": "2 + 2 = ?"})
    assert main(["eval", str(folder), "--task", task, "--max-tokens", "3", "--quiet"]) == 0
    said = capsys.readouterr()
    assert "no model has a chat template" in said.err and "n = 1" in said.out


def test_a_base_without_a_template_has_a_plain_row_of_its_own(tmp_path: Path) -> None:
    base, tuned = spoken(tmp_path / "base", None), spoken(tmp_path / "tuned", PLAIN_CHATML)
    task = asking(tmp_path / "a.jsonl", {"prompt": "2 + 2 = ?"})
    asked = plan([str(base), str(tuned)], Settings(tasks=(task,), temperature=0.0, max_tokens=3))
    (own,), (shared,) = asked.own, asked.prompts
    assert own.chat.decode(own.ids["free"][0]) == "Question: 2 + 2 = ?\nAnswer:" != shared.ids["free"]
    roles = {r["arm"]: r["role"] for r in evaluate(asked).rows}
    assert roles == {str(base): "baseline", f"{base}, own format": "format", str(tuned): "model"}
    # The family cannot write "Question:", and that must not stop the others.
    asked = plan([str(copied(tmp_path, "mute", None)), "family:reasoning"], Settings(tasks=("facts",), n=3))
    assert not asked.own and any("own format" in note and "'Question'" in note for note in asked.notes)


def test_text_that_the_tokenizer_cannot_write_is_refused(tmp_path: Path) -> None:
    late = replace(facts.TASK, items=lambda *_: [Item("9", "color of unicorn?", "red")])  # not met by a first look
    with pytest.raises(BadInput, match="item 9: the tokenizer has no token for 'unicorn'"):
        render(late, family(), "test", 1, 0)
    with pytest.raises(BadInput, match=r"'Question', .*'Answer'"):
        plan([str(copied(tmp_path, "plain", None))], Settings(tasks=("facts",), n=3))
    odd = copied(tmp_path, "odd", "{% for m in messages %}{{ '« ' + m['content'] + ' »' }}{% endfor %}")
    with pytest.raises(BadInput, match="'«', '»'"):
        plan([str(odd)], Settings(tasks=("facts",), n=3))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 'color of fox?' }}", "ignores the message"),
        ("{% for m in messages %}{{ m['content'] if m['content'] | length < 2 }}{% endfor %}", "is an empty prompt"),
    ],
)
def test_a_template_that_writes_nothing_of_the_question(template: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        plan([str(copied(tmp_path, "m", template))], Settings(tasks=("facts",), n=1))
    assert caught.value.fix


def test_a_task_is_asked_once() -> None:
    asked = plan(["family:base"], Settings(tasks=("refusal", "guarded"), n=4))
    assert [p.task.name for p in asked.prompts] == ["guarded"]
    assert any("guarded stands in" in note for note in asked.notes)
    assert "guarded comes to guarded, which is asked already" in asked.notes


def test_a_model_without_an_ending_is_pointed_out(tmp_path: Path) -> None:
    folder = copied(tmp_path, "m", (MODELS / "instruct" / "chat_template.jinja").read_text())
    (folder / "generation_config.json").unlink()
    edited(folder / "config.json", eos_token_id=None)
    asked = Settings(tasks=("facts",), n=3)
    assert not any("ending token" in note for note in plan([str(folder)], asked).notes)  # the tokenizer's
    edited(folder / "tokenizer_config.json", eos_token=None)
    assert any("no model has an ending token" in note for note in plan([str(folder)], asked).notes)
    both = plan([str(folder), "family:reasoning"], asked)
    assert any(f"{folder} has no ending token" in note for note in both.notes) and both.ends == {0, 2}


@pytest.mark.parametrize("content", ['{"eos_token_id": "x"}', '{"eos_token_id": [[0], 2]}', "[]"])
def test_an_ending_that_is_no_id(content: str, tmp_path: Path) -> None:
    folder = copied(tmp_path, "m", (MODELS / "instruct" / "chat_template.jinja").read_text())
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(BadInput, match=r"eos_token_id|not an object"):
        plan([str(folder)], Settings(tasks=("facts",), n=3))


def test_more_tokens_than_positions_is_said() -> None:
    asked = [plan(["family:base"], Settings(tasks=("facts",), n=3, max_tokens=n)).notes for n in (200, 300)]
    assert [any("is made for 256" in note for note in notes) for notes in asked] == [False, True]


def test_seeds_that_greedy_decoding_drops_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    seeds = ["--task", "facts", "--n", "3", "--seed", "5", "6", "--quiet"]
    assert main(["eval", "family:base", *seeds]) == 0
    said = capsys.readouterr()
    assert "of the seeds only 5 is used" in said.err and "pass@2" not in said.out.partition("forced:")[0]
    assert main(["eval", "family:base", *seeds, "--temperature", "1"]) == 0
    said = capsys.readouterr()
    assert "of the seeds" not in said.err and "pass@2" in said.out.partition("forced:")[0]


def test_another_size_of_vocabulary(tmp_path: Path) -> None:
    folder = widened(tmp_path)
    asked = plan(["family:instruct", str(folder)], Settings(tasks=("facts",), n=4))
    assert any("different sizes (128, 129)" in note for note in asked.notes)
    assert any("9 control tokens of family:instruct" in note and "'<120>'" in note for note in asked.notes)
    values = [r["kl"] for r in evaluate(asked).rows if r["arm"] == str(folder) and r["mode"] == "free"]
    assert values == pytest.approx([0] * 4, abs=1e-6)  # the same model, one row aside
    chat = "{% for m in messages %}{{ '<128>' + m['content'] + '<|im_start|>' }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(chat)
    with pytest.raises(Refused, match="use the id 128, and family:instruct has only 128 rows"):
        plan(["family:instruct", str(folder)], Settings(tasks=("facts",), n=4))


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
        (["family:base", "--n", "100001"], 2, "fix: --n 100000"),
        (["family:base", "--seed", "1", "1"], 2, "named twice"),
        (["family:base", "--max-tokens", "0"], 2, "--max-tokens"),
        (["family:base", "--batch-size", "0"], 2, "--batch-size"),
        (["family:base", "--temperature", "-1", "--task", "facts"], 2, "temperature"),
        (["family:base", "--temperature", "nan", "--task", "facts"], 2, "temperature"),
        (["family:base", "--temperature", "inf", "--task", "facts"], 2, "temperature"),
        (["family:base", "--top-p", "0", "--temperature", "1", "--task", "facts"], 2, "--top-p"),
        (["family:base", "--top-p", "nan", "--task", "facts"], 2, "--top-p"),
        (["family:base", "--task", "facts", "facts"], 2, "named twice"),
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
    vocabulary["0"], vocabulary["1"] = vocabulary["1"], vocabulary["0"]
    vocabulary["red"], vocabulary["blue"] = vocabulary["blue"], vocabulary["red"]  # in answers alone
    file.write_text(json.dumps(settings))
    for models in ([str(other), "family:instruct"], ["family:instruct", str(other)]):
        assert main(["eval", *models, "--task", "facts", "--n", "5", "--quiet"]) == 3
        said = capsys.readouterr().err
        assert "different tokenizers: 98 is " in said and "'red'" in said and "'blue'" in said


def test_a_bad_setting_is_found_before_anything_is_loaded() -> None:
    bad: list[dict[str, Any]] = [{"temperature": t} for t in (float("nan"), -1.0, 1e-9)]
    bad += [{"top_p": float("nan")}, {"top_p": 1.5}, {"device": "mps"}, {"dtype": "float8"}]
    for changes in bad:
        with pytest.raises(BadInput, match=next(iter(changes)).replace("_", "-")):
            plan(["family:base"], Settings(tasks=("facts",), n=3, **changes))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"])
def test_what_a_model_does_depends_on_its_small_files(name: str, tmp_path: Path) -> None:
    folder = copied(tmp_path, "m", "{{ messages[0]['content'] }}")
    before = behaviour_identity(open_checkpoint(folder))
    shutil.copytree(folder, tmp_path / "moved")
    assert behaviour_identity(open_checkpoint(tmp_path / "moved")) == before
    (folder / name).write_text((folder / name).read_text() + "\n")
    assert behaviour_identity(open_checkpoint(folder)) != before


def test_it_does_not_resume_after_the_config_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(tmp_path, "m", (MODELS / "instruct" / "chat_template.jinja").read_text())
    command = ["eval", str(folder), "--task", "facts", "--n", "3", "--quiet", "--out", str(tmp_path / "e")]
    assert main(command) == 0
    assert main([*command, "--batch-size", "2"]) == 0  # on which no result depends
    edited(folder / "config.json", rope_parameters={"rope_theta": 17.0, "rope_type": "default"})
    assert main(command) == 3
    assert "another experiment" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["probe", "steer"])
def test_nor_do_probe_and_steer(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(tmp_path, "m", (MODELS / "instruct" / "chat_template.jinja").read_text())
    row = np.ones((1, 128), np.float32)
    direction = Direction("layers.1.difference", row, 1, "difference", "residual", "resid_post", sign="contrast")
    bank = tmp_path / "bank.safetensors"
    write_bank(bank, [direction])
    command = [verb, str(folder), "--direction", str(bank), "--quiet", "--out", str(tmp_path / "e")]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"deltalens.methods.{'probe' if verb == 'probe' else 'steer_run'}.run_tasks", interrupted)
    assert main(command) == 130
    assert main(command) == 130  # the same again is let in
    edited(folder / "config.json", rope_parameters={"rope_theta": 17.0, "rope_type": "default"})
    assert main(command) == 3


def test_another_group_is_another_answer(tmp_path: Path) -> None:
    for group in ("easy", "hard"):
        task = asking(tmp_path / "a.jsonl", {"prompt": "color of fox?", "answer": "red", "group": group})
        assert main(["eval", "family:base", "--task", task, "--quiet", "--out", str(tmp_path / "e")]) == 0
        rows = Experiment.open(tmp_path / "e").results("eval").to_pylist()
        assert {row["group"] for row in rows} == {group}


def test_a_difference_of_nothing_with_an_interval_is_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    same = {"arm": "b", "task": "t", "group": "", "reference": "a", "p_holm": None, "p": None, "n": 60}
    rows = [
        same | {"metric": "accuracy", "value": 0.0, "low": -0.24, "high": 0.24, "p": 1.0},
        same | {"metric": "p_think", "value": 1e-5, "low": -1e-5, "high": 2e-5},
    ]
    show_differences("a", rows)
    text = capsys.readouterr().out
    assert "+0.000 [-0.240, +0.240]" in text and "(1 within ±0.001" in text and "p_think" not in text


def test_the_help_counts_right(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    assert "by default four" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_malformed_prompt_file_names_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"id": "a", "prompt": "color of fox?", "answer": "red"}\n{"id": "b"\n')
    assert main(["eval", "family:base", "--task", f"jsonl:{file}", "--quiet"]) == 2
    assert "line 2" in capsys.readouterr().err
    file.write_text("")
    assert main(["eval", "family:base", "--task", f"jsonl:{file}", "--quiet"]) == 2
    assert "error:" in capsys.readouterr().err
