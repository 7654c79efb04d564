"""The preflight: fast, from headers alone, without torch, and harmless to a terminal."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from chats import PLAIN_CHATML, QWEN3, QWQ, bpe
from factories import perturb, tiny_config, tiny_tensors, write_checkpoint, write_pair, write_tokenizer

from deltalens.checkpoint.chat import ThinkFormat
from deltalens.checkpoint.plan import INTERPRETER_BYTES, LIVE_BLOCKS, plan
from deltalens.cli.plan import PlanCommand
from deltalens.errors import Refused


def test_a_plan_in_figures(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path, shards=3)
    found = plan(str(base), str(tuned))
    weights = sum(t.numel() * t.element_size() for t in tiny_tensors().values())
    assert found.statuses == {"measured": 15, "vector": 9}
    assert (found.base.bytes, found.tuned.bytes, found.bytes_to_read) == (weights, weights, 2 * weights)
    assert (found.base.files, found.tuned.files) == (1, 3)
    assert found.base.dtypes == {"BF16": 24}
    assert found.base.architecture == "Qwen3ForCausalLM"
    assert found.base.tied
    assert (found.warnings, found.differences, found.unmatched) == ((), (), ())
    twins, reflectors, vectors = 2 * 4 * 64 * 32, 8 * 32**2, 3 * 8 * 16 * 64
    assert found.peak_memory_bytes == INTERPRETER_BYTES + twins + reflectors + vectors + LIVE_BLOCKS * 4 * 64 * 32
    assert (found.parentage.verdict, found.vocabulary) == ("unknown", None)
    assert found.seconds > 0
    assert json.loads(found.to_json())["statuses"] == found.statuses


def test_differences_and_unmatched_tensors_are_listed(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    base = write_checkpoint(tmp_path / "base", tensors, tiny_config())
    tuned_config = tiny_config(rope_parameters={"rope_theta": 1e6}, dtype="float32", tie_word_embeddings=False)
    extra = perturb(tensors, dtype=torch.float32) | {"lm_head.weight": torch.ones(50, 32), "x": torch.ones(2)}
    tuned = write_checkpoint(tmp_path / "tuned", extra, tuned_config)
    found = plan(str(base), str(tuned))
    assert {d.setting: (d.base, d.tuned) for d in found.differences} == {
        "rope_theta": (10000.0, 1e6),
        "dtype": ("bfloat16", "float32"),
        "tied embeddings": (True, False),
    }
    assert {(u.name, u.status) for u in found.unmatched} == {("x", "unpaired")}
    assert found.statuses["measured"] == 16
    said = "\n".join(found.warnings)
    assert "25 tensors are BF16 in the base and F32" in said
    assert "configs differ in rope_theta (10000.0 and 1000000.0): the weights are read by different functions" in said


def test_a_missing_config_is_said(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", tiny_tensors(), None)
    found = plan(str(base), str(base))
    assert sum("no config.json" in warning for warning in found.warnings) == 2


def test_match_plans_for_less(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path)
    whole, part = plan(str(base), str(tuned)), plan(str(base), str(tuned), "layers.0.*")
    assert part.seconds < whole.seconds
    assert part.bytes_to_read == whole.bytes_to_read  # the rest's norms still have to be known
    assert part.statuses["measured"] == 7


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = write_pair(tmp_path, shards=2)
    assert PlanCommand(str(base), str(tuned)).run() == 0
    shown = capsys.readouterr()
    assert str(base) in shown.out
    assert "15 measured, 9 vector" in shown.out
    assert "estimated: peak memory" in shown.out
    assert shown.err == ""
    assert PlanCommand(str(base), str(tuned), json=True).run() == 0
    assert json.loads(capsys.readouterr().out)["tuned"]["files"] == 2


def test_a_checkpoint_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J[red]x[/red]\u202e\r\nfake: line"
    tensors = tiny_tensors()
    base = write_checkpoint(tmp_path / "base", tensors, tiny_config(architectures=[evil]))
    tuned = write_checkpoint(tmp_path / "tuned", tensors | {evil: torch.ones(2, 2)}, tiny_config(hidden_act=evil))
    PlanCommand(str(base), str(tuned)).run()
    shown = capsys.readouterr().out
    assert "[red]x[/red]" in shown
    assert not {"\x1b", "\u202e", "\r"} & set(shown)
    assert not any(line.startswith("fake") for line in shown.splitlines())


def test_parent_and_tokens_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = write_pair(tmp_path)
    long = "\x1b[31m" + "x" * 10**5
    write_tokenizer(base, ["a", "b", "c"])
    write_tokenizer(tuned, ["a", long, "\u202e", "d"])
    (tuned / "README.md").write_text("---\nbase_model: owner/parent\n---\n")
    PlanCommand(str(base), str(tuned)).run()
    shown = capsys.readouterr().out
    assert "declared: the card names owner/parent; the base given is not recognised" in shown
    assert "2 ids not the same string (1 b → \\x1b[31mxxx" in shown
    assert "1 id in the tuned only (3 d)" in shown
    assert "warning:  2 token ids mean different strings" in shown
    assert len(shown) < 5000
    assert not {"\x1b", "\u202e"} & set(shown)
    PlanCommand(str(base), str(tuned), json=True).run()
    found = json.loads(capsys.readouterr().out)
    assert found["parentage"]["verdict"] == "declared"
    assert found["vocabulary"][0] == {"id": 1, "base": "b", "tuned": long}


def test_a_wrong_base_is_called_out(capsys: pytest.CaptureFixture[str]) -> None:
    PlanCommand("family:base", "family:reasoning").run()
    shown = capsys.readouterr().out
    assert "warning:  wrong base: family:reasoning was trained from family:instruct, not family:base" in shown
    PlanCommand("family:instruct", "family:reasoning").run()
    shown = capsys.readouterr().out
    assert "the right base: family:reasoning was trained from family:instruct" in shown
    assert "every id means the same string" in shown
    assert "warning" not in shown


def test_the_think_format_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = write_pair(tmp_path)
    for side, template, added in ((base, PLAIN_CHATML, ()), (tuned, QWEN3, ("<think>", "</think>"))):
        bpe(side, template, added)
    PlanCommand(str(base), str(tuned)).run()
    shown = capsys.readouterr().out
    assert "think:    <think> … </think> (1 + 1 tokens), switch enable_thinking\n" in shown
    assert "format:   the base has another chat template (prompts will be rendered with the tuned side's)" in shown
    PlanCommand(str(tuned), str(base)).run()
    assert "think:    <think> … </think> (3 + 3 tokens)\n" in capsys.readouterr().out
    bpe(tuned, QWQ)
    (base / "chat_template.jinja").unlink()
    PlanCommand(str(base), str(tuned)).run()
    shown = capsys.readouterr().out
    assert "(1 + 1 tokens), opened by the template\n" in shown
    assert "format:   the base has no chat template" in shown
    PlanCommand(str(tuned), str(base)).run()
    assert "format:   the tuned side has no chat template" in capsys.readouterr().out
    PlanCommand(str(base), str(tuned), json=True).run()
    found = json.loads(capsys.readouterr().out)["format"]
    assert (found["think"]["opened_by_template"], found["think"]["empty_block"]) == (True, "<think>\n\n</think>\n\n")
    assert (found["base_template"], found["problem"], len(found["template"])) == ("plain", None, 16)


def test_the_family_has_one_format_and_loads_neither_torch_nor_transformers() -> None:
    found = plan("family:instruct", "family:reasoning").format
    assert found.think == ThinkFormat("<think>", "</think>", (3,), (4,), False, None, "<think></think>")
    assert (found.template, found.problem) == (found.base_template, None)
    program = """
import sys
from deltalens.cli.plan import PlanCommand
PlanCommand("family:instruct", "family:reasoning").run()
loaded = {"torch", "transformers", "huggingface_hub", "scipy", "pyarrow"} & set(sys.modules)
assert not loaded, loaded
"""
    shown = subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, capture_output=True, text=True)
    assert "think:    <think> … </think> (1 + 1 tokens)\n" in shown.stdout
    assert "format:" not in shown.stdout


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("chat_template.jinja", "{{ raise_exception('\x1b[2Jno\n') }}", "cannot be rendered"),
        ("chat_template.jinja", "{% for %}", "cannot be rendered"),
        ("tokenizer_config.json", '{"chat_template": 3}', "names no default chat template"),
        ("tokenizer.json", "{}", "cannot be read"),
    ],
)
def test_an_odd_chat_format_is_said_and_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str, said: str
) -> None:
    base, tuned = write_pair(tmp_path)
    bpe(tuned, None)
    (tuned / file).write_text(content)
    assert PlanCommand(str(base), str(tuned)).run() == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("format:")]
    assert said in line
    assert "think:" not in shown
    assert "\x1b[2J" not in shown
    assert plan(str(base), str(tuned)).format.template is None


def test_peak_memory_is_estimated_within_bounds(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    paths = [
        str(write_checkpoint(tmp_path / side, {"w": torch.empty(256, 65536).normal_(generator=generator).bfloat16()}))
        for side in ("a", "b")
    ]
    program = """
import sys
import deltalens as dl
pair = dl.Pair.open(sys.argv[1], sys.argv[2])
print(dl.measure_diff(pair, sys.argv[3], threads=1, context=False).record["peak_rss_bytes"])
"""
    command = [sys.executable, "-c", program, *paths, str(tmp_path / "run")]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.9 < plan(*paths).peak_memory_bytes / peak < 1.6


def test_not_comparable_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "a", tiny_tensors(), tiny_config())
    tuned = write_checkpoint(tmp_path / "b", tiny_tensors(layers=3), tiny_config(num_hidden_layers=3))
    with pytest.raises(Refused, match="different depths"):
        PlanCommand(str(base), str(tuned)).run()


def test_a_thousand_tensors_without_torch_in_a_second(tmp_path: Path) -> None:
    tensors = {
        f"model.layers.{n}.{part}.weight": torch.zeros(4, 4)
        for n in range(143)
        for part in (*(f"self_attn.{x}_proj" for x in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    }
    assert len(tensors) > 1000
    base = write_checkpoint(tmp_path / "base", tensors, tiny_config(num_hidden_layers=143))
    tuned = write_checkpoint(tmp_path / "tuned", tensors, tiny_config(num_hidden_layers=143), shards=5)
    program = """
import sys
from deltalens.cli.plan import PlanCommand
PlanCommand(sys.argv[1], sys.argv[2]).run()
loaded = {"torch", "transformers", "huggingface_hub", "scipy", "pyarrow"} & set(sys.modules)
assert not loaded, loaded
"""
    command = [sys.executable, "-W", "error", "-c", program, str(base), str(tuned)]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    # Under 1 s on an idle machine, interpreter included; other tests may share the cores.
    assert min(seconds) < 3
