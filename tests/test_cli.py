"""The command as a user meets it: exit codes, two-line errors, light imports, and Ctrl-C."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from factories import tiny_config, tiny_tensors, write_checkpoint, write_pair

import deltalens as dl
from deltalens.cli.display import duration, size
from deltalens.cli.main import main
from deltalens.errors import printable

ROOT = Path(__file__).parent.parent


def call(*args: str, **how: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "deltalens", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, **how)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    base, tuned = write_pair(tmp_path, rank=2, sigma=0.1)
    return str(base), str(tuned)


LIGHT = """
import sys
from deltalens.cli.main import main
from deltalens.errors import printable
code = None
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = {"torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 0),
        (["measure", "--help"], 0),
        (["family", "--help"], 0),
        (["family", "list"], 0),
        (["family", "path", "reasoning"], 0),
        (["plan", "family:base", "family:instruct"], 0),
        (["plan", "family:base", "family:nobody"], 2),
        (["measure", "/missing", "family:base", "--out", "never"], 2),
        (["report", "/missing"], 2),
    ],
)
def test_no_torch_for_help_plan_and_errors(args: list[str], code: int, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", LIGHT, *args], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == code, found.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "error", "fix"),
    [
        ([], "expected one of {demo, plan, measure, ", "deltalens --help"),
        (["measur"], "unrecognized options: measur", "available subcommands: demo, plan"),
        (["measure", "a"], "missing from deltalens measure: TUNED --out RUN", "deltalens measure --help"),
        (
            ["measure", "a", "b", "--out", "x", "--tpo", "3"],
            "unrecognized options: --tpo, 3",
            "perhaps you meant: --top",
        ),
        (["measure", "a", "b", "--out", "x", "--top", "many"], "error parsing --top", "--top INT"),
        (["measure", "family:base", "family:instruct", "--out", "x", "--top", "0"], "--top 0", "--top 1 to 4096"),
        (["measure", "family:bas", "family:base", "--out", "x"], "the family has no member 'bas'", "family:base"),
        (["family", "path", "reason"], "the family has no member 'reason'", "reasoning"),
    ],
)
def test_bad_usage_is_two_lines_and_exit_2(args: list[str], error: str, fix: str, tmp_path: Path) -> None:
    found = call(*args, cwd=tmp_path)
    lines = found.stderr.splitlines()
    assert (found.returncode, len(lines)) == (2, 2), found.stderr
    assert lines[0].startswith(f"error: {error}")
    assert lines[1].startswith("fix: ")
    assert fix in lines[1]
    assert list(tmp_path.iterdir()) == []


def test_measure_prints_the_table_and_stores_the_run(pair: tuple[str, str], tmp_path: Path) -> None:
    found = call("measure", *pair, "--out", str(tmp_path / "run"), "--top", "3")
    assert found.returncode == 0, found.stderr
    assert "gate_proj" in found.stdout
    assert "15 matrices hold" in found.stdout
    assert "context: 15 matrices, about" in found.stderr  # the cost comes first
    assert "measure: 49/49 tasks" in found.stderr
    run = dl.Run.open(tmp_path / "run")
    assert run.record["settings"]["top"] == 3
    assert run.record["command"].startswith("deltalens measure ")
    assert run.directions("embed").left.shape[0] == 3


def test_quiet_json(pair: tuple[str, str], tmp_path: Path) -> None:
    args = ("--quiet", "--json", "--verify", "--context", "off")
    found = call("measure", *pair, "--out", str(tmp_path / "run"), *args)
    assert found.stderr == ""
    record = json.loads(found.stdout)
    assert record == dl.Run.open(tmp_path / "run").record
    assert "sha256" in record["pair"]["tuned"]["identity"]["files"][0]


def test_another_pair_is_exit_3(pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["measure", *pair, "--out", run, "--quiet", "--context", "off"]) == 0
    capsys.readouterr()
    assert main(["measure", *pair[::-1], "--out", run, "--quiet", "--context", "off"]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: {run} holds a measurement of another pair\nfix: --out NEW\n"


def test_different_depths_are_exit_3_and_match_is_the_way_out(tmp_path: Path) -> None:
    base = str(write_checkpoint(tmp_path / "a", tiny_tensors(layers=2), tiny_config()))
    tuned = str(write_checkpoint(tmp_path / "b", tiny_tensors(layers=3), tiny_config(num_hidden_layers=3)))
    found = call("measure", base, tuned, "--out", str(tmp_path / "run"))
    assert found.returncode == 3
    assert "different depths" in found.stderr
    assert not (tmp_path / "run").exists()
    found = call("measure", base, tuned, "--out", str(tmp_path / "run"), "--match", "layers.0.*", "--quiet")
    assert found.returncode == 0, found.stderr
    assert {r["layer"] for r in dl.Run.open(tmp_path / "run").matrices.to_pylist()} == {0}


def test_a_read_only_place_is_exit_2(pair: tuple[str, str], tmp_path: Path) -> None:
    found = call("measure", *pair, "--out", "/proc/run", "--quiet")
    assert found.returncode == 2
    assert "cannot be written" in found.stderr


def test_ctrl_c_is_130_and_resumes(tmp_path: Path) -> None:
    w = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(400, 400) for i in range(40)}
    base = str(write_checkpoint(tmp_path / "a", w))
    tuned = str(write_checkpoint(tmp_path / "b", {name: t + 0.1 * torch.randn_like(t) for name, t in w.items()}))
    run = tmp_path / "run"
    args = ["measure", base, tuned, "--out", str(run), "--threads", "1", "--context", "off"]
    process = subprocess.Popen([sys.executable, "-m", "deltalens", *args], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(run.glob("parts/[!.]*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "interrupted" in stderr
    assert not list(run.glob("**/.tmp-*"))
    assert call(*args, "--quiet").returncode == 0
    assert dl.Run.open(run).record["totals"]["matrices"] == 40


def test_a_closed_pipe_is_no_traceback(pair: tuple[str, str], tmp_path: Path) -> None:
    command = f"{sys.executable} -m deltalens measure {pair[0]} {pair[1]} --out {tmp_path / 'run'} --quiet | true"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in found.stderr
    assert "BrokenPipe" not in found.stderr


def test_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    evil = "a\x1b[31m\u202e[bold]b"
    tensors = {f"{evil}.weight": torch.randn(4, 4), "n.weight": torch.full((3, 3), float("nan"))}
    base = str(write_checkpoint(tmp_path / "a", tensors))
    tuned = str(write_checkpoint(tmp_path / "b", {n: t + 1 for n, t in tensors.items()} | {evil: torch.ones(2)}))
    for args in (["plan", base, tuned], ["measure", base, tuned, "--out", str(tmp_path / "run")]):
        found = call(*args)
        assert found.returncode == 0, found.stderr
        assert "\x1b" not in found.stdout + found.stderr
        assert "\u202e" not in found.stdout + found.stderr
    assert printable("σ₁ ok") == "σ₁ ok"


QUICK = "family:base family:instruct --quiet --context off --match *.o_proj --out"


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        (f"{{}} measure {QUICK} run >&-", 0, ""),
        (f"{{}} measure {QUICK} run >/dev/full", 2, "no space left on device"),
        (f"PYTHONUTF8=0 LC_ALL=C {{}} measure {QUICK} run >out; grep -q u2192 out", 0, ""),
        ("{} family list | true; test ${{PIPESTATUS[0]}} = 0", 0, ""),
        ("{} plan family:base family:instruct | head -1; test ${{PIPESTATUS[0]}} = 0", 0, ""),
        (f"{{}} measure {QUICK} ''", 2, "--out is empty"),
        (f"{{}} measure {QUICK} {'x' * 300}", 2, "file name too long"),
        (f"{{}} report {'x' * 300}", 2, "file name too long"),
        (f"{{}} measure {QUICK} run --threads {10**24}", 2, "--threads 1 to 1024"),
        (f"ulimit -f 1; {{}} measure {QUICK} run", 2, "cannot write run/run.json: file too large"),
        (f"mkdir run; echo mine > run/.deltalens; {{}} measure {QUICK} run", 3, "not empty"),
    ],
)
def test_a_hostile_shell(shell: str, code: int, said: str, tmp_path: Path) -> None:
    line = shell.format(f"{sys.executable} -m deltalens")
    found = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == code, found.stderr
    assert said in found.stderr.lower()
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    "key", ["settings", "pair", "totals", "tables", "passes", "warnings", "peak_rss_bytes", "status"]
)
def test_a_record_without_a_part_is_damaged(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["measure", *QUICK.split(), str(tmp_path / "run")]
    assert main(args) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {key: None}))
    for command in (args, ["report", str(tmp_path / "run")]):
        assert main(command) == 2
        assert "is damaged" in capsys.readouterr().err


def test_the_table_fits_eighty_columns(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", *pair, "--out", str(tmp_path / "run"), "--quiet", "--context", "off"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "_proj" in line or line.startswith(" kind")]
    assert len(rows) > 7
    assert max(map(len, rows)) <= 80


def test_units() -> None:
    assert [size(n) for n in (12.0, 1500.0, 2.5e9, 3e12)] == ["12 B", "1.5 kB", "2.5 GB", "3.00 TB"]
    assert [duration(s) for s in (5.0, 300.0, 9000.0)] == ["5 s", "5 min", "2.5 h"]


def test_lazy_names() -> None:
    assert {"Pair", "measure_diff", "Run"} <= set(dir(dl))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dl.nothing
