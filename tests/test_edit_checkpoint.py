"""An edited checkpoint loads with the promised logits, differs only where it should, and is whole or absent."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_pairs import save_bank, save_pair
from factories import perturb, tiny_config, tiny_tensors, write_checkpoint, write_pair
from safetensors.torch import load_file
from tiny_models import texts

from deltalens.checkpoint.header import read_header
from deltalens.checkpoint.source import open_checkpoint
from deltalens.edit.checkpoint import _claim
from deltalens.edit.checkpoint import write_checkpoint as write_edited
from deltalens.edit.edit import from_record, read_edit
from deltalens.edit.plan import Plan, plan
from deltalens.edit.prove import logits
from deltalens.edit.rounding import Gap, generator, rounded, to_bytes
from deltalens.edit.select import editable
from deltalens.edit.swap import swap
from deltalens.edit.tensors import form
from deltalens.errors import BadInput, DeltalensError, Refused
from deltalens.model.load import load

REVERT = {"operator": "revert", "rank": 1}
HALF = {"operator": "interpolate", "strength": 0.5}


def opened(base: Path | str, tuned: Path | str | None, *steps: dict[str, Any]) -> Plan:
    sides = {"base": str(base)} | ({} if tuned is None else {"tuned": str(tuned)})
    return plan(from_record({**sides, "edit": list(steps)}))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "gpt2", "mixtral"])
def test_plain_transformers_loads_it_with_the_promised_logits(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base, tuned = save_pair(tmp_path, architecture, shard="30KB")
    found = opened(base, tuned, REVERT)
    written = write_edited(found, tmp_path / "out")
    model, _ = load(str(tuned))
    with swap(model, found):
        promised = logits(model, texts())
    plain: Any = AutoModelForCausalLM.from_pretrained(written.path, dtype=torch.float32)
    assert torch.equal(logits(plain.eval(), texts()), promised)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_untouched_bytes_order_shards_and_dtypes_are_those_of_the_source(
    dtype: torch.dtype, shards: int, tmp_path: Path
) -> None:
    weights = tiny_tensors(dtype=dtype)
    base = write_checkpoint(tmp_path / "base", weights, tiny_config())
    tuned = write_checkpoint(tmp_path / "tuned", perturb(weights), tiny_config(), shards)
    before = {p.name: p.read_bytes() for p in tuned.iterdir()}
    found = opened(base, tuned, {**REVERT, "layers": "1", "kinds": ["mlp"]})
    out = write_edited(found, tmp_path / "out").path
    assert {p.name for p in out.iterdir()} == set(before) | {"README.md", "reproduce"}
    assert {p.name: p.read_bytes() for p in tuned.iterdir()} == before  # the source
    for path in sorted(tuned.glob("*.safetensors")):
        old, new = path.read_bytes(), (out / path.name).read_bytes()
        assert len(old) == len(new)
        header = read_header(path)
        touched = [t for t in header.values() if ".layers.1.mlp." in t.name]
        for info in touched:
            assert old[info.start : info.end] != new[info.start : info.end]
            old = old[: info.start] + new[info.start : info.end] + old[info.end :]
        assert old == new
    if shards > 1:
        assert (out / "model.safetensors.index.json").read_bytes() == before["model.safetensors.index.json"]
    rows = {row.name.name: row for row in editable(found.pair)}
    for name in found.steps:
        value = torch.from_numpy(form(found, rows[name]).dense()).to(dtype)
        assert torch.equal(tensors(out)[f"model.{name}.weight"], value)


def test_whole_edits_give_the_bytes_of_the_other_side(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path, noise=1e-3)
    for i, (step, side) in enumerate(
        [
            ({"operator": "revert", "rank": "full", "kinds": ["all"]}, base),
            ({"operator": "truncate", "rank": "full", "kinds": ["all"]}, tuned),
            ({**HALF, "strength": 0}, base),
            ({**HALF, "strength": 1}, tuned),
        ]
    ):
        out = write_edited(opened(base, tuned, step), tmp_path / str(i)).path
        assert (out / "model.safetensors").read_bytes() == (side / "model.safetensors").read_bytes()


def test_a_base_start_keeps_its_storage_and_speaks_as_the_tuned_side(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "b", tiny_tensors(dtype=torch.float32), tiny_config(torch_dtype="float32"))
    changed = tiny_config(rope_theta=5e5, tie_word_embeddings=False)
    tuned = write_checkpoint(tmp_path / "t", tiny_tensors(seed=3, tied=False), changed, shards=2)
    (tuned / "chat_template.jinja").write_text("think")
    (tuned / "pytorch_model.bin").write_bytes(b"pickle")
    (base / "chat_template.jinja").write_text("plain")
    out = write_edited(opened(base, tuned, {"operator": "truncate", "rank": 1}), tmp_path / "out").path
    assert json.loads((out / "config.json").read_text()) == {
        **changed,
        "torch_dtype": "float32",
        "tie_word_embeddings": True,
    }
    assert (out / "chat_template.jinja").read_text() == "think"
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "chat_template.jinja", "config.json", "model.safetensors", "reproduce"
    ]  # fmt: skip
    assert {t.dtype for t in open_checkpoint(out).tensors.values()} == {"F32"}


def test_a_longer_vocabulary_keeps_the_rows_that_only_it_has(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "b", tiny_tensors(vocab=50), tiny_config())
    tuned = write_checkpoint(tmp_path / "t", tiny_tensors(vocab=56, seed=2), tiny_config(vocab_size=56))
    whole = {"operator": "revert", "rank": "full", "kinds": ["all"]}
    out = write_edited(opened(base, tuned, whole), tmp_path / "out").path
    name = "model.embed_tokens.weight"
    assert torch.equal(tensors(out)[name][:50], tensors(base)[name])
    assert torch.equal(tensors(out)[name][50:], tensors(tuned)[name][50:])


KILLED = """
import os, signal, sys
from pathlib import Path
from deltalens.edit import checkpoint
from deltalens.edit.edit import from_record
from deltalens.edit.plan import plan

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

base, tuned, out, where = sys.argv[1:]
opened = plan(from_record({"base": base, "tuned": tuned, "edit": [{"operator": "revert", "rank": 1}]}))
if where != "tensor":
    setattr(checkpoint, where, die)
checkpoint.write_checkpoint(opened, out, progress=die if where == "tensor" else None)
"""


@pytest.mark.parametrize("where", ["tensor", "write_companions", "_write_reproduce", "_settle"])
def test_a_killed_write_leaves_nothing_that_loads(where: str, tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path / "pair", shards=2)
    out = tmp_path / "made" / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(base), str(tuned), str(out), where], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = list(out.parent.iterdir())
    assert len(left) == 1 and left[0].name == ".tmp-out" and not out.exists()
    assert not list(left[0].rglob("*.safetensors"))
    with pytest.raises(DeltalensError):
        open_checkpoint(left[0])
    write_edited(opened(base, tuned, REVERT), out)
    assert [p.name for p in out.parent.iterdir()] == ["out"] and open_checkpoint(out)


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = write_pair(tmp_path / "pair")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(BadInput, match="no space left on device") as said:
        write_edited(opened(base, tuned, REVERT), tmp_path / "made" / "out")
    assert not list((tmp_path / "made").iterdir()) and "room" in str(said.value.fix)


def test_a_place_that_cannot_be_written_is_no_want_of_room(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path / "pair")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write") as said:
        write_edited(opened(base, tuned, REVERT), tmp_path / "file" / "out")
    assert "directory you may write" in str(said.value.fix)


def test_a_name_that_is_not_utf8_is_bad_input_and_the_card_shows_no_control_characters(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path / "pair")
    with pytest.raises(BadInput, match="UTF-8"):
        write_edited(opened(base, tuned, REVERT), tmp_path / "made" / "o\udcff", command="--out o\udcff")
    assert not list((tmp_path / "made").iterdir())
    odd = tuned.rename(tuned.with_name("t\n\x1b"))
    out = write_edited(opened(base, odd, REVERT), tmp_path / "out").path
    assert "\x1b" not in (out / "README.md").read_text(encoding="utf-8")


def test_a_target_that_would_harm_something_is_refused(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path / "pair")
    found = opened(base, tuned, REVERT)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tuned)
    for target in (base, tuned, tuned / "inner", tmp_path / "pair", tmp_path / "link"):
        with pytest.raises(Refused, match="would overwrite or enter the source"):
            write_edited(found, target)
    for target in ("full", "file"):
        with pytest.raises(Refused, match="is not an empty directory"):
            write_edited(found, tmp_path / target)
    (tmp_path / "empty").mkdir()
    assert write_edited(found, tmp_path / "empty").path == tmp_path / "empty"


def test_values_beyond_the_dtype_are_refused(tmp_path: Path) -> None:
    weights = tiny_tensors(dtype=torch.float16)
    base = write_checkpoint(tmp_path / "b", weights, tiny_config())
    tuned = write_checkpoint(tmp_path / "t", perturb(weights), tiny_config())
    with pytest.raises(Refused, match="would hold NaN or values beyond F16"):
        write_edited(opened(base, tuned, {**HALF, "strength": 1e8}), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "t"]


def test_reproduce_makes_it_again(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path / "pair")
    bank = save_bank(tmp_path / "bank.safetensors")
    found = opened(base, tuned, REVERT, {"operator": "cut", "direction": bank})
    first = write_edited(found, tmp_path / "one", seed=7, share=0.25, command="deltalens edit x").path
    inner = first / "reproduce"
    assert sorted(p.name for p in inner.iterdir()) == ["bank-0-bank.safetensors", "edit.toml", "record.json"]
    record = json.loads((inner / "record.json").read_text())
    assert from_record(record["edit"]) == found.edit
    cut = replace(found.edit.operations[1], direction="bank-0-bank.safetensors#d")
    assert read_edit(inner / "edit.toml") == replace(found.edit, operations=(found.edit.operations[0], cut))
    assert record["banks"] == {bank.partition("#")[0]: "bank-0-bank.safetensors"}
    assert record["edit_hash"] == found.edit.edit_hash and record["starts_from"] == "tuned"
    assert set(record["rounding"]) == set(found.steps)
    card = (first / "README.md").read_text()
    assert "25.0%" in card and "deltalens edit x" in card and "seed 7" in card
    other = write_edited(found, tmp_path / "three", seed=8).path
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_reproduce_names_models_by_commit_or_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub as hub

    weights, commit = tiny_tensors(), "0123456789abcdef0123456789abcdef01234567"
    cached = write_checkpoint(tmp_path / "hub" / "snapshots" / commit, weights, tiny_config())
    write_checkpoint(tmp_path / "tuned", perturb(weights), tiny_config())
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(cached))
    monkeypatch.chdir(tmp_path)
    contrast = {"operator": "contrast", "plus": "tuned", "minus": "other/name@main"}
    restore = {"operator": "restore", "rank": 1, "reference": "other/name", "kinds": ["o_proj"]}
    inner = write_edited(opened("owner/model", "tuned", contrast, restore), tmp_path / "out").path / "reproduce"
    found = read_edit(inner / "edit.toml")
    assert (found.base, found.tuned) == (f"owner/model@{commit}", str(tmp_path / "tuned"))
    assert (found.operations[0].plus, found.operations[0].minus) == ("tuned", f"other/name@{commit}")
    assert found.operations[1].reference == f"other/name@{commit}"
    record = json.loads((inner / "record.json").read_text())
    assert record["edit"]["base"] == "owner/model" and record["sources"]["base"]["identity"] == {"commit": commit}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_rounding_is_torchs_and_bytes_are_safetensors(dtype: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32) * np.float32(1e-3)
    x.flat[:4] = (0.0, -0.0, 1e-7, -3e-8)
    kind = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    expected = torch.from_numpy(x).to(kind)
    found = rounded(x, dtype)
    assert found.tobytes() == expected.float().numpy().tobytes()
    raw = expected if dtype == "F32" else expected.view(torch.int16)
    assert to_bytes(found, dtype) == raw.numpy().tobytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_stochastic_rounding_is_right_on_average_and_never_far(dtype: str) -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((20, 30)) * rng.choice([1e-7, 1e-3, 1.0, 100.0], (20, 30))).astype(np.float32)
    draws = np.stack([rounded(x, dtype, generator("t", seed)) for seed in range(400)]).astype(float)
    precision, least = {"BF16": (7, -126), "F16": (10, -14)}[dtype]
    step = np.exp2(np.maximum(np.floor(np.log2(np.abs(x))), least) - precision)
    nearest = rounded(x, dtype)
    assert (np.abs(draws - x) < step).all() and (np.abs(nearest - x) <= step / 2).all()
    assert (np.abs(draws.mean(axis=0) - x) < 5 * step * 0.5 / 400**0.5).all()  # five standard errors at most
    on_grid = rounded(nearest, dtype, generator("t", 0))
    assert np.array_equal(on_grid, nearest)  # what lies on the grid stays
    assert not np.array_equal(rounded(x, dtype, generator("t", 0)), rounded(x, dtype, generator("u", 0)))


def test_the_gap_is_what_16_bits_leave_of_a_small_change(tmp_path: Path) -> None:
    """The dead zone: a change below half a step of the grid is lost to nearest rounding, not to stochastic."""
    rng = torch.Generator().manual_seed(0)
    weights = {"w.weight": (torch.randn(400, 300, generator=rng) * 0.02).bfloat16()}
    base = write_checkpoint(tmp_path / "b", weights, {})
    moved = weights["w.weight"].float() + 6e-4 * torch.randn(400, 300, generator=rng)
    tuned = write_checkpoint(tmp_path / "t", {"w.weight": moved}, {})
    step = {"operator": "interpolate", "strength": 0.02}
    lost = write_edited(opened(base, tuned, step), tmp_path / "one").gaps["w.weight"]
    kept = write_edited(opened(base, tuned, step), tmp_path / "two", seed=0).gaps["w.weight"]
    assert lost.strength < 0.5 and kept.strength == pytest.approx(1.0, abs=0.05)  # .0067 of .02 in the literature's toy
    whole = write_edited(opened(base, tuned, {**step, "strength": 0.5}), tmp_path / "three").gaps["w.weight"]
    assert whole.strength == pytest.approx(1.0, abs=0.02) and whole.cosine > 0.98
    written = tensors(tmp_path / "one")["w.weight"].double() - weights["w.weight"].double()
    asked = 0.02 * (moved.double() - weights["w.weight"].double())
    assert lost.strength == pytest.approx(float((written * asked).sum() / (asked**2).sum()), rel=1e-4)
    assert lost.cosine == pytest.approx(float((written * asked).sum() / written.norm() / asked.norm()), rel=1e-4)
    assert Gap().strength == 1.0 and Gap().cosine == 1.0 and Gap(wanted=1.0).cosine == 0.0


def test_two_architectures_are_no_pair() -> None:
    with pytest.raises(Refused, match="is a qwen2 model"):
        opened("family:b-instruct", "family:reasoning", HALF)


def test_a_second_writer_of_a_target_is_refused_and_neighbours_are_left_alone(tmp_path: Path) -> None:
    edit = opened("family:instruct", "family:reasoning", HALF)
    (tmp_path / ".tmp-m-2").mkdir()
    (tmp_path / ".tmp-m-2" / "busy.part").write_bytes(b"another edit's work")
    folder, lock = _claim(tmp_path / "m")
    with pytest.raises(Refused, match="another process is writing"):
        write_edited(edit, tmp_path / "m")
    os.close(lock)
    (folder / "stale.part").write_bytes(b"left by a killed run")
    write_edited(edit, tmp_path / "m")
    assert (tmp_path / ".tmp-m-2" / "busy.part").exists() and (tmp_path / "m" / "model.safetensors").exists()
    assert not (tmp_path / "m" / "stale.part").exists() and not folder.exists()
