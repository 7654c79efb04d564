"""The experiment as a whole: small runs through the command, what fails, what resumes, and what is repeated."""

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from factories import write_pair

from deltalens.cli.main import main
from deltalens.cli.run import finish
from deltalens.errors import BadInput, Refused
from deltalens.experiment import budget, steps
from deltalens.experiment.config import DEMO, Config, default, read_config
from deltalens.experiment.phases import steps_of
from deltalens.experiment.run import Outcome, Ran, run_all
from deltalens.experiment.verdicts import verdicts
from deltalens.store.experiment import Experiment
from deltalens.sweep import bench, controls

PAIRS = {
    "main": ("family:instruct", "family:reasoning", "main"),
    "sft": ("family:base", "family:instruct", "sft"),
    "safety": ("family:instruct", "family:safe", "safety"),
}
SMALL = """
task = "chain-hard"
n = {n}
max_tokens = 2
alphas = [1.0]
cells = 2
context = false
nulls = "off"
kl = false
skip = [{skip}]
"""
EVERY = (
    "eval",
    "probe",
    "refusal",
    "steer-up",
    "steer-down",
    "transition",
    "rank",
    "negate",
    "lox-reasoning",
    "spectrum-behaviour",
    "contrast",
    "specific",
    "map",
    "atlas",
    "stages",
)


def config(
    folder: Path, keep: tuple[str, ...] = (), n: int = 8, pairs: dict[str, tuple[str, str, str]] = PAIRS
) -> Path:
    """A small experiment of spectra, the direction, and what else is kept."""
    text = SMALL.format(skip=", ".join(f'"{name}"' for name in EVERY if name not in keep), n=n)
    for name, (base, tuned, role) in pairs.items():
        text += f'[[pairs]]\nname = "{name}"\nbase = "{base}"\ntuned = "{tuned}"\nrole = "{role}"\n'
    path = folder / "small.toml"
    path.write_text(text)
    return path


def run(path: Path, exp: Path, *more: str) -> int:
    return main(["run", "--config", str(path), "--out", str(exp), "--quiet", *more])


def tables(exp: Path) -> dict[str, Any]:
    """Every number of an experiment; what it took is left out."""
    found: dict[str, Any] = {}
    for path in sorted([*exp.glob("*.parquet"), *exp.glob("results/*.parquet"), *exp.glob("pairs/*/*.parquet")]):
        table = pq.read_table(path)
        found[str(path.relative_to(exp))] = table.select([c for c in table.column_names if "seconds" not in c])
    for name in ("stages", "atlas", "refusal", "verdicts"):
        if (exp / f"{name}.json").is_file():
            found[name] = json.loads((exp / f"{name}.json").read_text())
    return found


@contextmanager
def one_control() -> Generator[None]:
    """One control of each kind: how many there are matters to other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controls, "SEEDS", 1)
        yield


KEPT = ("eval", "refusal", "specific", "stages", "atlas")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small run, done; and its configuration."""
    folder = tmp_path_factory.mktemp("finished")
    path = config(folder, KEPT)
    with one_control():
        assert run(path, folder / "exp") == 0
    return path, folder / "exp"


def test_a_run_ends_in_tables_verdicts_and_a_page(finished: tuple[Path, Path]) -> None:
    _, exp = finished
    found = Experiment.open(exp)
    assert found.record["kind"] == "run"
    assert [model["source"] for model in found.record["models"][:2]] == ["family:instruct", "family:reasoning"]
    assert found.record["metric"] == "p_think"
    status = {step["name"]: step["status"] for step in found.record["steps"]}
    wanted = {*KEPT, "direction", *(f"pairs/{name}" for name in PAIRS)}
    assert {name for name, word in status.items() if word == "done"} == wanted
    assert set(status.values()) == {"done", "skipped"}
    arms = set(found.arms["arm"].to_pylist())
    assert {"eval: family:safe", "specific: base", "specific: Δ_k of the pair"} <= arms
    summary = found.summary.to_pylist()
    prefixes = {row["arm"].partition(": ")[0] for row in summary}
    assert prefixes == {*KEPT}
    assert {row["reference"].partition(": ")[0] for row in summary if row["reference"]} <= prefixes
    for name in ("eval", "specific"):
        assert found.results(name).num_rows
        assert Experiment.open(exp / "steps" / name).summary.num_rows
    answers = json.loads((exp / "verdicts.json").read_text())["verdicts"]
    assert len(answers) == 9
    assert "verdict" in (exp / "report.html").read_text()
    assert (exp / "spectra.html").is_file()


def test_the_same_command_again_does_nothing(finished: tuple[Path, Path], tmp_path: Path, monkeypatch: Any) -> None:
    path, exp = finished
    again = tmp_path / "exp"
    shutil.copytree(exp, again)
    for name in ("measured", "evaluated", "directed", "probed", "steered", "specifically", "decomposed", "related"):
        monkeypatch.setattr(steps, name, lambda *_, **__: pytest.fail("a finished step was repeated"))
    assert run(path, again) == 0
    assert tables(again) == tables(exp)


def test_what_was_damaged_is_done_again(finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, exp = finished
    again = Path(shutil.copytree(exp, tmp_path / "exp"))
    for name in ("steps/eval/summary.parquet", "steps/specific/experiment.json", "pairs/sft/run.json", "stages.json"):
        (again / name).write_bytes((exp / name).read_bytes()[:100])
    with one_control():
        assert run(path, again) == 0
    assert tables(again) == tables(exp)


def test_interrupted_anywhere_it_ends_in_the_same_tables(finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, exp = finished
    again = tmp_path / "exp"
    left = 0

    @contextmanager
    def stopping(_: str) -> Generator[Any]:
        def sink(_: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        yield sink

    for parts in (7, 31, 53):  # parts until it is stopped: within measurements, eval, or what stands there by then
        left = parts
        with pytest.raises(KeyboardInterrupt), one_control():
            run_all(read_config(path), again, stopping, lambda _: None, "")
        assert json.loads((again / "experiment.json").read_text())["status"] == "running"
    with one_control():
        assert run(path, again) == 0
    assert tables(again).keys() == tables(exp).keys()
    for name, table in tables(exp).items():
        assert tables(again)[name] == table, name


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs from here on; the steps themselves do nothing but leave a mark."""
    found: list[str] = []
    for name in ("measured", "evaluated", "directed", "probed", "compared", "steered", "swept", "mapped", "related"):

        def stand_in(work: steps.Work, *_: Any, **__: Any) -> None:
            found.append(str(work.place.relative_to(work.exp)).removeprefix("steps/"))
            if work.place.suffix:
                work.place.write_text('{"rows": []}')
            else:
                work.place.mkdir(parents=True)

        monkeypatch.setattr(steps, name, stand_in)
    return found


@contextmanager
def silent(_: str) -> Generator[None]:
    yield None


def ran(path: Path, exp: Path) -> Any:
    return run_all(read_config(path), exp, silent, lambda _: None, "deltalens run")


def test_only_what_uses_a_changed_setting_is_repeated(called: list[str], tmp_path: Path) -> None:
    kept = ("eval", "probe", "map", "atlas")
    assert not ran(config(tmp_path, kept), tmp_path / "exp").missing
    pairs = [f"pairs/{name}" for name in PAIRS]
    assert called == [pairs[0], "eval", *pairs[1:], "direction.safetensors", "probe", "map", "atlas.json"]
    called.clear()
    ran(config(tmp_path, kept), tmp_path / "exp")
    assert called == []
    ran(config(tmp_path, kept, n=60), tmp_path / "exp")
    assert called == ["eval", "map"]
    called.clear()
    fewer = {name: pair for name, pair in PAIRS.items() if name != "sft"}
    ran(config(tmp_path, kept, n=60, pairs=fewer), tmp_path / "exp")
    assert called == ["atlas.json"]  # eval asks the same models: sft's tuned side is the main base


def test_what_is_skipped_later_stays_unless_its_inputs_changed(called: list[str], tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    ran(config(tmp_path, ("map",)), exp)
    status = {outcome.step.name: outcome.status for outcome in ran(config(tmp_path), exp).outcomes}
    assert status["map"] == "done"
    status = {outcome.step.name: outcome.status for outcome in ran(config(tmp_path, n=60), exp).outcomes}
    assert status["map"] == "skipped"
    assert not (exp / "steps" / "map").exists()  # no page may show it beside numbers of other settings


def test_another_pair_in_the_same_place_is_refused(called: list[str], tmp_path: Path) -> None:
    ran(config(tmp_path), tmp_path / "exp")
    other = {"main": ("family:base", "family:reasoning-rl", "main")}
    with pytest.raises(Refused, match="is about family:instruct → family:reasoning"):
        ran(config(tmp_path, pairs=other), tmp_path / "exp")


def test_a_failing_step_is_told_and_the_rest_goes_on(
    called: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: steps.Work) -> None:
        raise Refused("the residual streams are of two models", "another base")

    working = steps.directed
    monkeypatch.setattr(steps, "directed", fails)
    path, exp = config(tmp_path, ("probe", "map")), tmp_path / "exp"
    assert run(path, exp) == 3
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "error: missing: direction, probe (direction: the residual streams are of two models)",
        "fix: another base",
    ]
    assert "map" in called
    record = json.loads((exp / "experiment.json").read_text())
    missing = {one["step"]: one for one in record["missing"]}
    assert missing["direction"]["fix"] == "another base"
    assert missing["probe"]["error"] == "it needs direction, which is missing"
    assert (exp / "report.html").is_file()
    monkeypatch.setattr(steps, "directed", working)
    called.clear()
    assert run(path, exp) == 0
    assert called == ["direction.safetensors", "probe"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_ends_the_run_with_what_it_has(
    wrapped: bool, called: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: steps.Work) -> None:
        problem = OSError(errno.ENOSPC, "No space left on device")
        if wrapped:
            raise BadInput("cannot write x: no space left on device", "make room") from problem
        raise problem

    monkeypatch.setattr(steps, "probed", fails)
    path, exp = config(tmp_path, ("probe", "map")), tmp_path / "exp"
    assert run(path, exp) == 3
    assert "map" not in called
    record = json.loads((exp / "experiment.json").read_text())
    missing = {one["step"]: one["error"] for one in record["missing"]}
    assert "no space left on device" in missing["probe"]
    assert missing["map"] == "the disk is full"
    assert (exp / "report.html").is_file()


def test_without_a_think_format_the_weight_side_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = write_pair(tmp_path, rank=2, sigma=0.1)
    path = config(tmp_path, ("eval", "rank", "map"), pairs={"main": (str(base), str(tuned), "main")})
    assert run(path, tmp_path / "exp", "--dry-run") == 0
    assert re.search(r"\brank +\S+ has no tokenizer", capsys.readouterr().out)
    assert run(path, tmp_path / "exp", "--minutes", "30") == 3
    record = json.loads((tmp_path / "exp" / "experiment.json").read_text())
    status = {step["name"]: step["status"] for step in record["steps"]}
    assert status["pairs/main"] == "done"
    assert status["eval"] == status["rank"] == status["map"] == "missing"
    assert record["metric"] is None
    assert "error: missing: eval, " in capsys.readouterr().err
    assert (tmp_path / "exp" / "report.html").is_file()


def test_a_swapped_pair_is_told_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, ("eval",), pairs={"main": ("family:reasoning", "family:instruct", "main")})
    path.write_text(path.read_text().replace("max_tokens = 2", "max_tokens = 0"))
    assert run(path, tmp_path / "exp") == 0
    told = json.loads((tmp_path / "exp" / "verdicts.json").read_text())["notes"]
    assert told == [
        "wrong base: family:reasoning was trained from family:instruct: are the sides swapped?",
        "the base already thinks, in 100% of its completions of a task",
        "the tuned model thinks in no more than 0% of its completions of any task",
    ]
    said = capsys.readouterr().err
    page = (tmp_path / "exp" / "report.html").read_text()
    assert all(f"warning: {text}" in said and text in page for text in told)


def test_what_is_missing_does_not_hide_that_the_page_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("deltalens.cli.run.write_pages", fails)
    step = steps_of(default("family:instruct", "family:reasoning"), tmp_path)[0]
    assert finish(Ran(tmp_path, (Outcome(step, "missing", error="the disk is full", fix="make room"),))) == 3
    assert capsys.readouterr().err.splitlines() == [
        "error: missing: pairs/main (pairs/main: the disk is full); [Errno 28] No space left on device",
        "fix: make room",
    ]


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for name in ("pairs/seed-b", "eval", "steer-down", "specific", "map", "stages", "atlas", "in all about"):
        assert name in said
    assert list(tmp_path.iterdir()) == []


def test_fewer_minutes_leave_out_more() -> None:
    def plan(minutes: float) -> tuple[Config, list[str]]:
        return budget.fitted(replace(demo, minutes=minutes), of, planned, 6)

    demo = read_config(DEMO)
    of, planned = replace(budget.scale(demo), per_pass=0.15), steps_of(demo, Path("exp"))
    told = [plan(minutes)[1] for minutes in (0.0, 60.0, 3.0, 1.0)]
    assert told[0] == told[1] == []
    assert told[3][: len(told[2])] == told[2]
    assert len(told[3]) > len(told[2]) > 0
    with pytest.raises(BadInput, match=r"0\.01 minutes are not enough"):
        plan(0.01)


def planned(config: Config) -> dict[str, int]:
    """Arms that write completions, by step, at most."""
    of, planned = budget.scale(config), steps_of(config, Path("exp"))
    models = len(next(step.models for step in planned if step.name == "eval"))
    costs = {step.name: budget.cost(config, of, step, models).arms for step in planned}
    return {name: arms for name, arms in costs.items() if name not in config.skip and arms}


def test_the_demo_writes_completions_of_no_more_than_40_arms() -> None:
    demo = read_config(DEMO)
    assert sum(planned(demo).values()) <= 40
    few = replace(demo, generate="few")
    assert planned(few) == {"eval": 2, "rank": 4}
    assert sum(planned(replace(demo, generate="all")).values()) > 60


def written(exp: Path) -> dict[str, dict[str, set[str]]]:
    """Items that were completed, by step and arm."""
    found: dict[str, dict[str, set[str]]] = {}
    for path in (exp / "results").glob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            if row.get("text") is not None:  # a probe's tokens have none
                found.setdefault(path.stem, {}).setdefault(row["arm"], set()).add(row["item"])
    return found


@pytest.mark.parametrize("generate", ["points", "few"])
def test_as_many_arms_write_as_planned_and_the_sides_once(
    generate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, exp = config(tmp_path, ("eval", "transition", "rank")), tmp_path / "exp"
    path.write_text(f'generate = "{generate}"\ngenerated = 5\nparts = false\n{path.read_text()}')
    calls = 0

    def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return completions(*args)

    completions = bench.completions
    monkeypatch.setattr(bench, "completions", counted)
    with one_control():
        assert run(path, exp) == 0
    found = written(exp)
    arms, most = {step: len(of) for step, of in found.items()}, planned(read_config(path))
    assert arms.keys() == most.keys()
    assert all(arms[step] <= most[step] for step in arms)
    assert all(len(items) == 5 for of in found.values() for items in of.values())
    sides = 2 * (len(arms.keys() - {"eval"}) - 1)  # shown by every step, written by the first
    assert calls == 2 * (sum(arms.values()) - arms["eval"] - sides)  # free and forced
    if generate == "few":
        assert found["rank"].keys() >= {"base", "tuned"}
        answers = json.loads((exp / "verdicts.json").read_text())["verdicts"]
        why = {one["question"]: one["why"] for one in answers}
        assert why["choice rather than skill?"] == "5 items, 200 are needed"


def test_a_damaged_refusal_is_told_and_done_again(finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, exp = finished
    again = Path(shutil.copytree(exp, tmp_path / "exp"))
    for text in ('{"model": "x"}', '{"rows": [{}]}', '{"rows": [1'):
        (again / "refusal.json").write_text(text)
        answer = next(a for a in verdicts(again) if a.question.startswith("distinct"))
        assert (answer.word, answer.why) == ("undecided", "refusal.json is damaged")
    (again / "refusal.json").write_text('{"model": "x"}')
    assert run(path, again) == 0
    assert tables(again) == tables(exp)


def test_a_plain_pair_has_no_steps_that_need_controls() -> None:
    found = {step.name: step for step in steps_of(default("family:instruct", "family:reasoning"), Path("exp"))}
    assert {name for name, step in found.items() if step.absent} == {"specific", "stages", "atlas"}
    assert found["rank"].command(Path("exp"), "whole").startswith("deltalens sweep --recipe rank family:instruct ")
    assert found["map"].command(Path("exp"), "whole") == "whole"


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["run", "--out", "x"], "run takes a pair"),
        (["run", "a", "--out", "x"], "run takes a pair"),
        (["run", "family:instruct", "family:reasoning"], "run keeps what it finds"),
        (["run", "family:instruct", "family:reasonin", "--out", "x"], "the family has no member 'reasonin'"),
        (["run", "family:instruct", "family:reasoning", "--out", "x", "--minutes", "0"], "--minutes 0"),
        (["run", "family:instruct", "family:reasoning", "--out", "x", "--minutes", "0.001"], "0.001 minutes"),
    ],
)
def test_mistakes_come_before_any_work(
    args: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert error in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_step_to_skip_that_is_none(tmp_path: Path) -> None:
    path = config(tmp_path)
    path.write_text(path.read_text().replace('"eval"', '"evla"'))
    with pytest.raises(BadInput, match="skip names a step 'evla'") as found:
        steps_of(read_config(path), tmp_path)
    assert found.value.fix is not None
    assert found.value.fix.startswith("eval; there are pairs/main, eval")


@pytest.mark.slow
def test_every_step_runs(tmp_path: Path) -> None:
    pairs = PAIRS | {"sibling": ("family:base", "family:instruct-sibling", "sibling")}
    path, exp = config(tmp_path, EVERY, n=50, pairs=pairs), tmp_path / "exp"
    assert run(path, exp) == 0
    steps_done = {step["name"] for step in json.loads((exp / "experiment.json").read_text())["steps"]}
    assert {*EVERY, "direction"} <= steps_done
    prefixes = {arm.partition(": ")[0] for arm in Experiment.open(exp).summary["arm"].to_pylist()}
    assert prefixes == {*EVERY}
    most = planned(read_config(path))
    assert all(len(arms) <= most[step] for step, arms in written(exp).items())


@pytest.mark.slow
def test_the_demo_gives_the_known_verdicts(tmp_path: Path) -> None:
    """What the family was made to show: a choice, low in rank, in its own place (about four minutes).

    A process of its own, as users run it: checks of every type take it half an hour.
    """
    command = [sys.executable, "-m", "deltalens", "demo", "--out", str(tmp_path / "demo"), "--quiet"]
    subprocess.run(command, check=True)
    arms = {step: len(of) for step, of in written(tmp_path / "demo").items()}
    most = planned(read_config(DEMO))
    assert all(arms[step] <= most[step] for step in arms)
    assert 20 < sum(arms.values()) <= 40
    answers = json.loads((tmp_path / "demo" / "verdicts.json").read_text())["verdicts"]
    words = {one["question"].partition(" (")[0].rstrip("?"): one["word"] for one in answers}
    assert words["low-rank above noise"] == "supported"
    assert words["causal for thinking"] == "supported"
    assert words["sufficient"] == words["necessary"] == "supported"
    assert words["choice rather than skill"] == "supported"
    assert words["specific to reasoning"] == "supported"
    assert words["sparse beyond precision"] == "contradicted"
