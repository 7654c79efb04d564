"""An experiment's directory: one writer, one record, whole tables, and refusals that lose nothing."""

import json
from pathlib import Path

import pytest

from deltalens.errors import BadInput, Refused
from deltalens.store.experiment import Experiment, experiment, write_results, write_summary

RECORD = {"kind": "eval", "settings": {"n": 3, "seeds": (0,)}, "command": "deltalens eval a"}


def finish(out: Path) -> None:
    with experiment(out, RECORD):
        write_results(out, "eval", [{"arm": "a", "item": "t/1", "correct": True, "p_think": 0.5}])
        write_summary(out, [{"arm": "a", "role": "baseline"}], [{"arm": "a", "metric": "accuracy", "value": 1.0}])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    finish(tmp_path / "e")
    found = Experiment.open(tmp_path / "e")
    assert found.record["settings"] == {"n": 3, "seeds": [0]} and found.record["status"] == "complete"
    (row,) = found.results("eval").to_pylist()
    assert row["correct"] is True and row["p_think"] == 0.5 and row["kl"] is None
    assert found.arms.to_pylist()[0]["role"] == "baseline"
    assert found.summary.to_pylist()[0]["value"] == 1.0


def test_the_same_experiment_resumes_and_another_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "e"
    finish(out)
    with experiment(out, RECORD | {"command": "another spelling"}) as parts:
        assert parts == out / "parts"
    with (
        pytest.raises(Refused, match=r"settings\.n was 3, not 4") as refusal,
        experiment(out, RECORD | {"settings": {"n": 4, "seeds": (0,)}}),
    ):
        pass
    assert refusal.value.fix == "--out NEW"
    assert Experiment.open(out).results("eval").num_rows == 1
    with pytest.raises(Refused, match="its kind differs"), experiment(out, RECORD | {"kind": "steer"}):
        pass


def test_an_unfinished_experiment_is_not_read(tmp_path: Path) -> None:
    out = tmp_path / "e"
    with pytest.raises(RuntimeError), experiment(out, RECORD):
        raise RuntimeError("killed")
    with pytest.raises(Refused, match="unfinished"):
        Experiment.open(out)
    finish(out)
    assert Experiment.open(out).record["status"] == "complete"


def test_foreign_directories_and_damaged_records_are_refused(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("x")
    with pytest.raises(Refused, match="not empty"), experiment(tmp_path / "foreign", RECORD):
        pass
    with pytest.raises(BadInput, match="not an experiment"):
        Experiment.open(tmp_path / "foreign")
    out = tmp_path / "e"
    finish(out)
    (out / "results" / "eval.parquet").write_bytes(b"no table")
    with pytest.raises(BadInput, match=r"eval\.parquet cannot be read"):
        Experiment.open(out).results("eval")
    with pytest.raises(BadInput, match=r"steer\.parquet cannot be read"):
        Experiment.open(out).results("steer")
    record = json.loads((out / "experiment.json").read_text())
    (out / "experiment.json").write_text(json.dumps(record | {"schema": 2}))
    with pytest.raises(Refused, match="schema 2"):
        Experiment.open(out)
    (out / "experiment.json").write_text("[]")
    with pytest.raises(BadInput, match="not the record"):
        Experiment.open(out)
    (out / "experiment.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be read"), experiment(out, RECORD):
        pass


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "e"
    with experiment(out, RECORD), pytest.raises(Refused, match="another process is writing"), experiment(out, RECORD):
        pass
