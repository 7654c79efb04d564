"""The delta pass end to end: truth, identities, resume, refusals and the memory ceiling."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from factories import perturb, tiny_config, tiny_tensors, write_checkpoint, write_pair
from safetensors.numpy import load_file

import deltalens as dl
from deltalens.checkpoint.pair import Pair
from deltalens.spectrum.delta import Delta
from deltalens.spectrum.matrix import Settings, measure_matrix
from deltalens.store.schema import COUNTED, LEDGER, MATRICES, TIMINGS
from deltalens.store.tables import TABLES

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


measure = partial(dl.measure_diff, context=False)  # the delta pass alone; the other passes have tests of their own


def matrix_pair(folder: Path, base: torch.Tensor, tuned: torch.Tensor, name: str = "w.weight") -> Pair:
    return Pair.open(
        str(write_checkpoint(folder / "a", {name: base})), str(write_checkpoint(folder / "b", {name: tuned}))
    )


def tables(run: Path) -> dict[str, object]:
    """Everything a RUN says, timings left out."""
    matrices = pq.read_table(run / "matrices.parquet").drop_columns(list(TIMINGS))
    return {
        "matrices": matrices.to_pylist(),
        "ledger": pq.read_table(run / "ledger.parquet").to_pylist(),
        "spectra": (run / "spectra.parquet").read_bytes(),
        "deadzone": (run / "deadzone.parquet").read_bytes(),
        "directions": (run / "directions.safetensors").read_bytes(),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 50), (50, 1), (1, 1), (40, 90), (90, 40), (64, 64), (600, 530)])
def test_spectrum_against_numpy(tmp_path: Path, dtype: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(shape, generator=generator) * 0.02).to(DTYPES[dtype])
    tuned = (base.float() + 0.01 * torch.randn(shape, generator=generator)).to(DTYPES[dtype])
    run = measure(matrix_pair(tmp_path, base, tuned), tmp_path / "run", top=5)
    exact = (tuned.float() - base.float()).double().numpy()
    oracle = np.linalg.svd(exact, compute_uv=False)
    sigma = run.spectrum("w.weight")
    assert sigma.dtype == np.float64
    assert len(sigma) == min(shape)
    assert np.abs(sigma - oracle).max() <= 1e-6 * oracle[0]
    row = run.matrices.to_pylist()[0]
    assert row["norm_delta"] == pytest.approx(np.linalg.norm(exact), rel=1e-12)
    assert row["relative_change"] == pytest.approx(np.linalg.norm(exact) / float(base.double().norm()), rel=1e-12)
    flat_b, flat_t = base.double().numpy().ravel(), tuned.double().numpy().ravel()
    assert row["cosine"] == pytest.approx(flat_b @ flat_t / np.linalg.norm(flat_b) / np.linalg.norm(flat_t), rel=1e-12)
    assert row["zero_fraction"] == (exact == 0).mean()
    assert row["changed_absolute"] == (np.abs(exact.astype(np.float32)) > np.float32(1e-5)).mean()
    size = np.maximum(np.abs(flat_b), np.abs(flat_t))
    assert row["changed_relative"] == pytest.approx((np.abs(exact.ravel()) > 1e-3 * size).mean(), abs=2 / exact.size)
    energy = exact**2 / (exact**2).sum()
    assert row["row_share_1"] == pytest.approx(energy.sum(axis=1).max())
    assert row["col_share_1"] == pytest.approx(energy.sum(axis=0).max())
    assert row["certificate"] < 1e-6
    found = run.directions("w.weight")
    assert found.left.shape == (min(5, *shape), shape[0])
    assert found.right.shape == (min(5, *shape), shape[1])
    assert np.allclose(found.left @ exact @ found.right.T, np.diag(found.sigma), atol=1e-5 * oracle[0])
    assert row["noise_model"] == ("none" if dtype == "fp32" else "tuned_rounded")


@pytest.mark.parametrize("shape", [(300, 40), (40, 300)])
@pytest.mark.parametrize("transposed", [False, True])
def test_streamed_equals_held(tmp_path: Path, shape: tuple[int, int], transposed: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(shape, generator=generator).bfloat16()
    tuned = perturb({"w": base}, rank=3, sigma=20.0, noise=0.05)["w"]
    row = matrix_pair(tmp_path, base, tuned).rows[0]
    row = type(row)(row.name, row.base, row.tuned, row.status, row.reason, transposed)
    found = []
    for held in (2**27, 0):
        delta = Delta(row, block_bytes=4 * 40 * 16, held_entries=held)
        sums = delta.scan()
        whole = np.concatenate(list(delta.blocks()))
        found.append((delta, sums, whole))
    exact = tuned.float().numpy() - base.float().numpy()
    exact = exact.T if transposed else exact
    long = exact if exact.shape[0] >= exact.shape[1] else exact.T
    for delta, sums, whole in found:
        assert (delta.rows, delta.cols) == exact.shape
        assert np.array_equal(whole, long)
        assert sums.delta_sq == pytest.approx(float((exact.astype(float) ** 2).sum()), rel=1e-12)
        assert np.allclose(sums.row_sq, (exact.astype(float) ** 2).sum(axis=1), rtol=1e-12)
        assert np.array_equal(sums.binades_tuned, found[0][1].binades_tuned)
        assert sums.zeros == (exact == 0).sum()


def test_streamed_run_equals_held_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Pair.open(*map(str, write_pair(tmp_path, rank=2, sigma=0.5))).rows[3]
    held = measure_matrix(row, Settings())
    monkeypatch.setattr(Delta.__init__, "__defaults__", (0, None))
    streamed = measure_matrix(row, Settings(block_bytes=1024))
    assert np.abs(held.arrays["sigma"] - streamed.arrays["sigma"]).max() <= 1e-12 * held.arrays["sigma"][0]
    assert held.row["spikes"] == streamed.row["spikes"]
    assert np.allclose(held.arrays["left"], streamed.arrays["left"], atol=1e-5)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_planted_rank_in_sixteen_bits(tmp_path: Path, dtype: str) -> None:
    generator = torch.Generator().manual_seed(2)
    base = (torch.randn(256, 320, generator=generator) * 0.02).to(DTYPES[dtype])
    tuned = perturb({"w": base}, rank=4, sigma=0.5)["w"]
    row = measure(matrix_pair(tmp_path, base, tuned), tmp_path / "run").matrices.to_pylist()[0]
    assert row["spikes"] == 4
    assert row["denoised_effective_rank"] == pytest.approx(4, abs=0.05)
    assert row["effective_rank"] > 4.2  # rounding alone inflates it
    assert row["spike_energy"] > 0.99


def test_rounding_alone_has_no_spikes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    alarms = 0
    for trial in range(30):
        base = (torch.randn(128, 128, generator=generator) * 0.02).bfloat16()
        _, exponent = torch.frexp(base.float())
        ulp = torch.exp2((exponent - 8).float())
        tuned = (base.float() + 0.25 * ulp * torch.randn(128, 128, generator=generator)).bfloat16()
        row = matrix_pair(tmp_path / str(trial), base, tuned).rows[0]
        alarms += measure_matrix(row, Settings()).row["spikes"] > 0
    assert alarms == 0


def test_two_roundings_of_one_master(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    master = torch.randn(200, 200, generator=generator) * 0.02
    dithered = (master * (1 + 2**-9 * torch.randn(200, 200, generator=generator))).bfloat16()
    pair = matrix_pair(tmp_path, master.bfloat16(), dithered)
    one = measure(pair, tmp_path / "one").matrices.to_pylist()[0]
    both = measure(pair, tmp_path / "both", both_rounded=True).matrices.to_pylist()[0]
    assert both["noise_sigma"] == pytest.approx(one["noise_sigma"] * 2**0.5, rel=1e-3)
    assert both["floor_edge"] == pytest.approx(one["floor_edge"] * 2**0.5, rel=1e-3)
    assert both["predicted_zero_fraction"] is None


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_a_whole_pair(tmp_path: Path, arch: str) -> None:
    base, tuned = write_pair(tmp_path, arch=arch, shards=3, rank=2, sigma=0.2)
    run = measure(Pair.open(str(base), str(tuned)), tmp_path / "run")
    assert run.matrices.schema.equals(MATRICES)
    assert run.ledger.schema.equals(LEDGER)
    rows = run.matrices.to_pylist()
    assert [r["kind"] for r in rows[:4]] == ["embed", "q_proj", "k_proj", "v_proj"]
    assert len(rows) == 1 + 2 * 7
    assert all(r["spikes"] == 2 for r in rows if min(r["rows"], r["cols"]) >= 32)  # two equal ones fill a q of 16
    ledger = run.ledger.to_pylist()
    stored = load_file(base / "model.safetensors") if arch == "fp32" else tiny_tensors(arch=arch)
    assert {r["tensor_base"] for r in ledger} == set(stored)
    assert sum(r["share"] for r in ledger) == pytest.approx(1, abs=1e-12)
    total = sum(r["norm_delta_sq"] for r in ledger if r["status"] in COUNTED)
    assert run.record["totals"]["norm_delta"] == pytest.approx(total**0.5)
    for r in rows:
        assert np.sum(run.spectrum(r["name"]) ** 2) == pytest.approx(r["norm_delta"] ** 2, rel=1e-10)
    assert run.record["peak_rss_bytes"] > 0


def test_identical_sides_are_zeros_with_a_warning(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "a", tiny_tensors(), tiny_config())
    run = measure(Pair.open(str(base), str(base)), tmp_path / "run")
    assert any("every difference is zero" in w for w in run.record["warnings"])
    for r in run.matrices.to_pylist():
        assert (r["norm_delta"], r["sigma_max"], r["effective_rank"], r["spikes"]) == (0, 0, 0, 0)
        assert (r["zero_fraction"], r["predicted_zero_fraction"]) == (1, 1)
        assert r["denoised_effective_rank"] is None
    assert set(run.ledger["share"].to_pylist()) == {0.0}
    assert load_file(run.path / "directions.safetensors") == {}
    with pytest.raises(dl.BadInput, match="no directions"):
        run.directions("embed")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_not_finite_is_refused_and_the_run_goes_on(tmp_path: Path, value: float, side: str) -> None:
    sides = {"base": tiny_tensors(), "tuned": perturb(tiny_tensors())}
    sides[side]["model.layers.0.mlp.up_proj.weight"][3, 5] = value
    sides[side]["model.norm.weight"][0] = value
    paths = [str(write_checkpoint(tmp_path / name, tensors, tiny_config())) for name, tensors in sides.items()]
    run = measure(Pair.open(*paths), tmp_path / "run")
    refused = {r["name"]: r for r in run.ledger.to_pylist() if r["status"] == "refused"}
    assert set(refused) == {"layers.0.mlp.up_proj", "norm"}
    assert side in refused["norm"]["reason"]
    assert refused["norm"]["norm_delta_sq"] is None
    assert sum(run.ledger["share"].to_pylist()) == pytest.approx(1)
    row = next(r for r in run.matrices.to_pylist() if r["name"] == "layers.0.mlp.up_proj")
    assert row["status"] == "refused"
    assert row["norm_delta"] is None
    assert any("refused" in w for w in run.record["warnings"])


def test_all_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    pair = matrix_pair(tmp_path, torch.full((3, 3), float("nan")), torch.ones(3, 3))
    with pytest.raises(dl.BadInput, match="NaN or Inf"):
        measure(pair, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_zero_base(tmp_path: Path) -> None:
    row = measure(
        matrix_pair(tmp_path, torch.zeros(20, 30), torch.randn(20, 30)), tmp_path / "run"
    ).matrices.to_pylist()[0]
    assert row["relative_change"] is None
    assert row["cosine"] is None


def test_three_dimensions_and_buffers_are_in_the_ledger(tmp_path: Path) -> None:
    base = {
        "w.weight": torch.randn(8, 8),
        "experts": torch.randn(3, 4, 5),
        "scalar": torch.tensor(1.0),
        "step": torch.tensor([1, 2]),
        "lonely.weight": torch.randn(2, 2),
    }
    tuned = {name: t + 1 for name, t in base.items() if name != "lonely.weight"}
    pair = Pair.open(str(write_checkpoint(tmp_path / "a", base)), str(write_checkpoint(tmp_path / "b", tuned)))
    ledger = {r["name"]: r for r in measure(pair, tmp_path / "run").ledger.to_pylist()}
    assert {n: r["status"] for n, r in ledger.items()} == {
        "w.weight": "measured",
        "experts": "unmeasured",
        "scalar": "vector",
        "step": "buffer",
        "lonely.weight": "unpaired",
    }
    assert ledger["experts"]["norm_delta_sq"] == pytest.approx(60, rel=1e-5)
    assert ledger["scalar"]["share"] == pytest.approx(1 / 125, rel=1e-5)
    assert ledger["step"]["norm_delta_sq"] is None
    assert sum(r["share"] for r in ledger.values()) == pytest.approx(1)


def test_match_measures_some_and_counts_all(tmp_path: Path) -> None:
    base, tuned = map(str, write_pair(tmp_path))
    run = measure(Pair.open(base, tuned, "*.mlp.*"), tmp_path / "run")
    whole = measure(Pair.open(base, tuned), tmp_path / "whole")
    assert {r["kind"] for r in run.matrices.to_pylist()} == {"gate_proj", "up_proj", "down_proj"}
    assert run.record["totals"]["norm_delta"] == pytest.approx(whole.record["totals"]["norm_delta"])


SETTINGS_BEFORE = {"top": 4, "threads": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"top": 5}, "top = 4"), ({"both_rounded": True}, "both_rounded = False"), ({"threads": 2}, "threads = 1")],
)
def test_other_settings_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    pair = Pair.open(*map(str, write_pair(tmp_path)))
    measure(pair, tmp_path / "run", **SETTINGS_BEFORE)
    before = tables(tmp_path / "run")
    with pytest.raises(dl.Refused, match=message) as caught:
        measure(pair, tmp_path / "run", **(SETTINGS_BEFORE | change))
    assert caught.value.fix == "--out NEW"
    assert tables(tmp_path / "run") == before


def test_another_pair_is_refused(tmp_path: Path) -> None:
    base, tuned = map(str, write_pair(tmp_path))
    measure(Pair.open(base, tuned), tmp_path / "run")
    with pytest.raises(dl.Refused, match="another pair"):
        measure(Pair.open(tuned, base), tmp_path / "run")


def test_a_moved_pair_is_the_same_pair(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path)
    first = measure(Pair.open(str(base), str(tuned)), tmp_path / "run")
    stamp = (tmp_path / "run" / "matrices.parquet").stat().st_mtime_ns
    tuned.rename(tmp_path / "elsewhere")
    again = measure(Pair.open(str(base), str(tmp_path / "elsewhere")), tmp_path / "run")
    assert again.record == first.record
    assert (tmp_path / "run" / "matrices.parquet").stat().st_mtime_ns == stamp


def test_verified_and_plain_runs_are_one_pair(tmp_path: Path) -> None:
    pair = Pair.open(*map(str, write_pair(tmp_path)))
    first = measure(pair, tmp_path / "run", verify=True)
    assert "sha256" in first.record["pair"]["base"]["identity"]["files"][0]
    assert measure(pair, tmp_path / "run").record == first.record


def test_resume_keeps_the_recorded_threads(tmp_path: Path) -> None:
    pair = Pair.open(*map(str, write_pair(tmp_path)))
    measure(pair, tmp_path / "run", threads=1)
    (tmp_path / "run" / "ledger.parquet").unlink()
    assert measure(pair, tmp_path / "run").record["settings"]["threads"] == 1


def test_damaged_tables_are_rebuilt_from_parts(tmp_path: Path) -> None:
    pair = Pair.open(*map(str, write_pair(tmp_path, rank=2, sigma=0.3)))
    one, other = (measure(pair, tmp_path / name, top=top).path for name, top in (("one", 16), ("other", 3)))
    before = tables(one)
    for damage in (b"", b"junk", (other / "spectra.parquet").read_bytes(), (one / "ledger.parquet").read_bytes()):
        (one / "directions.safetensors").write_bytes(damage)
        (one / "ledger.parquet").write_bytes(damage + b"x")
        with pytest.raises(dl.BadInput, match="not what was stored"):
            dl.Run.open(one)
        assert tables(measure(pair, one).path) == before
    same_size = bytearray((one / "spectra.parquet").read_bytes())
    same_size[40] ^= 1
    (one / "spectra.parquet").write_bytes(bytes(same_size))
    assert tables(measure(pair, one).path) == before


def test_context_may_come_later(tmp_path: Path) -> None:
    pair = Pair.open(*map(str, write_pair(tmp_path, rank=2, sigma=0.1)))
    first = measure(pair, tmp_path / "run", threads=1)
    assert first.nulls is None
    assert first.matrices["principal_energy"].null_count == first.matrices.num_rows
    deltas = {path.name: path.stat().st_mtime_ns for path in (first.path / "parts").iterdir()}
    later = dl.measure_diff(pair, tmp_path / "run", context=True, nulls="default")
    assert later.nulls is not None
    assert later.matrices["principal_energy"].null_count == 0
    assert deltas.items() <= {p.name: p.stat().st_mtime_ns for p in (later.path / "parts").iterdir()}.items()
    assert measure(pair, tmp_path / "run").nulls is not None  # what a RUN has is kept


def test_size_matched(tmp_path: Path) -> None:
    small, large = (write_pair(tmp_path / n, rank=2, sigma=s, noise=1e-3) for n, s in (("small", 0.02), ("large", 0.1)))
    run = measure(Pair.open(*map(str, small)), tmp_path / "run")
    pair = Pair.open(*map(str, large))
    matched = dl.measure_diff(pair, tmp_path / "matched", size_matched=run.path, context=True, nulls="off")
    for a, b in zip(run.matrices.to_pylist(), matched.matrices.to_pylist(), strict=True):
        assert b["norm_delta"] == pytest.approx(a["norm_delta"], rel=0.05)
        assert b["principal_energy"] is not None
    assert matched.record["settings"]["size_matched"].startswith(str(small[0]))
    assert matched.heads is None or matched.heads.num_rows == 0  # heads read the stored sides, of another size
    with pytest.raises(dl.Refused, match="size_matched"):
        measure(pair, tmp_path / "matched")


def test_verify_cannot_be_added_afterwards(tmp_path: Path) -> None:
    pair = Pair.open(*map(str, write_pair(tmp_path)))
    measure(pair, tmp_path / "run")
    with pytest.raises(dl.Refused, match="without --verify"):
        measure(pair, tmp_path / "run", verify=True)


def test_what_lies_in_the_directory_is_never_touched(tmp_path: Path) -> None:
    pair = Pair.open(*map(str, write_pair(tmp_path)))
    out, treasure = tmp_path / "out", tmp_path / "treasure"
    out.mkdir()
    treasure.write_text("precious")
    (out / ".deltalens.lock").symlink_to(treasure)
    with pytest.raises(dl.BadInput, match="cannot be written"):
        measure(pair, out)
    assert treasure.read_text() == "precious"
    (out / ".deltalens.lock").unlink()
    (out / ".tmp-left").write_text("a kill inside the first write")
    assert measure(pair, out).record["status"] == "complete"


@pytest.mark.parametrize("scale", [1e-24, 1e-12, 1e-3, 1e9, 1e18])
def test_edges_do_not_depend_on_units(tmp_path: Path, scale: float) -> None:
    generator = torch.Generator().manual_seed(5)
    base = torch.zeros(540, 530)
    tuned = torch.randn(540, 530, generator=generator)
    tuned += 60 * torch.outer(*(v / v.norm() for v in (torch.randn(540), torch.randn(530))))
    tuned *= 2.0 ** round(np.log2(scale))
    row = measure(matrix_pair(tmp_path, base, tuned), tmp_path / "run").matrices.to_pylist()[0]
    assert row["spikes"] == 1
    assert row["bulk_edge"] / row["sigma_max"] == pytest.approx(0.76, abs=0.1)


def test_an_orientation_learnt_later_is_measured_again(tmp_path: Path) -> None:
    tensors = {"transformer.h.0.attn.c_attn.weight": torch.randn(16, 48)}
    sides = [write_checkpoint(tmp_path / s, {n: t + i for n, t in tensors.items()}) for i, s in enumerate("ab")]
    measure(Pair.open(*map(str, sides)), tmp_path / "run")
    for side in sides:
        (side / "config.json").write_text('{"model_type": "gpt2"}')
    run = measure(Pair.open(*map(str, sides)), tmp_path / "run")
    row = run.matrices.to_pylist()[0]
    found = run.directions(row["name"])
    assert (row["rows"], row["cols"]) == (found.left.shape[1], found.right.shape[1]) == (48, 16)


LOOSE = """
import sys
import numpy as np
import deltalens as dl
for call in (
    lambda: dl.measure_diff(("a", "b"), sys.argv[3]),
    lambda: dl.measure_diff("family:base", sys.argv[3]),
    lambda: dl.measure_diff(dl.Pair.open(sys.argv[1], sys.argv[2]), sys.argv[3], top=3.0),
    lambda: dl.Pair.open(3, 4),
):
    try:
        call()
    except dl.BadInput as problem:
        print(problem.error)
run = dl.measure_diff(dl.Pair.open(sys.argv[1], sys.argv[2]), sys.argv[3], top=np.int64(2), context=False)
print(run.record["settings"]["top"])
"""


def test_wrong_types_are_bad_input_where_nothing_checks_them(tmp_path: Path) -> None:
    """In a process of its own: the shape checker of these tests would speak first."""
    command = [sys.executable, "-c", LOOSE, *map(str, write_pair(tmp_path)), str(tmp_path / "run")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [line.split()[0] for line in said[:2]] == ["measure_diff", "measure_diff"]
    assert said[2].startswith("top must be a whole number")
    assert said[3].startswith("a checkpoint is named by a path")
    assert said[4] == "2"


def test_paths_are_welcome(tmp_path: Path) -> None:
    assert Pair.open(*write_pair(tmp_path)).base.source == str(tmp_path / "base")


def test_same_tables_every_time_and_from_damaged_parts(tmp_path: Path) -> None:
    pair = Pair.open(*map(str, write_pair(tmp_path, rank=2, sigma=0.3, noise=1e-3)))
    one = measure(pair, tmp_path / "one", threads=2).path
    two = measure(pair, tmp_path / "two", threads=2).path
    assert tables(one) == tables(two)
    parts = sorted((two / "parts").iterdir())
    parts[0].write_bytes(b"not a part")
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    parts[2].unlink()
    (two / "parts" / ".tmp-left").write_bytes(b"x")
    (two / "matrices.parquet").unlink()
    measure(pair, two)
    assert tables(one) == tables(two)
    assert not list((two / "parts").glob(".tmp-*"))


SLOW = """
import sys, time
import deltalens as dl
from deltalens.spectrum import passes
plain = passes._delta
def slow(*args):
    time.sleep(0.05)
    return plain(*args)
passes._delta = slow
dl.measure_diff(dl.Pair.open(sys.argv[1], sys.argv[2]), sys.argv[3], threads=1, context=False)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_kill_and_resume_give_identical_tables(tmp_path: Path, how: signal.Signals) -> None:
    base, tuned = map(str, write_pair(tmp_path, rank=2, sigma=0.3, noise=1e-3))
    whole = measure(Pair.open(base, tuned), tmp_path / "whole", threads=1).path
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", SLOW, base, tuned, str(run)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(run.glob("parts/[!.]*"))) < 5:
        assert time.monotonic() < deadline, "no parts appeared"
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait() != 0
    done = set(run.glob("parts/[!.]*"))
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    with pytest.raises(dl.Refused, match="unfinished"):
        dl.Run.open(run)
    stamps = {path: path.stat().st_mtime_ns for path in done}
    measure(Pair.open(base, tuned), run)
    assert tables(run) == tables(whole)
    assert {path: path.stat().st_mtime_ns for path in done} == stamps  # finished parts were not done again


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    base, tuned = map(str, write_pair(tmp_path))
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", SLOW, base, tuned, str(run)])
    while not (run / "run.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    with pytest.raises(dl.Refused, match="another process"):
        measure(Pair.open(base, tuned), run)
    assert process.wait() == 0
    assert dl.Run.open(run).record["status"] == "complete"


def test_foreign_directories_and_files_are_left_alone(tmp_path: Path) -> None:
    pair = Pair.open(*map(str, write_pair(tmp_path)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(dl.Refused, match="not empty"):
        measure(pair, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(dl.BadInput, match="cannot be written"):
        measure(pair, tmp_path / "mine" / "thesis.tex")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "status": "weird", "pair": {}, "settings": {}}', "\xff"]
)
def test_a_damaged_record_is_said(tmp_path: Path, text: str) -> None:
    pair = Pair.open(*map(str, write_pair(tmp_path)))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(dl.BadInput):
        measure(pair, tmp_path / "run")


def test_another_schema_is_refused(tmp_path: Path) -> None:
    pair = Pair.open(*map(str, write_pair(tmp_path)))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"schema": 999}')
    with pytest.raises(dl.Refused, match="schema 999"):
        measure(pair, tmp_path / "run")


@pytest.mark.parametrize("bad", [{"top": 0}, {"threads": 0}])
def test_bad_numbers(tmp_path: Path, bad: dict) -> None:
    with pytest.raises(dl.BadInput):
        measure(Pair.open(*map(str, write_pair(tmp_path))), tmp_path / "run", **bad)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path)
    file = tuned / "model.safetensors"

    def touch(step: object) -> None:
        os.utime(file, ns=(1, 1))

    with pytest.raises(dl.Refused, match="changed on disk"):
        measure(Pair.open(str(base), str(tuned)), tmp_path / "run", progress=touch)


MEMORY = """
import sys
import deltalens as dl
run = dl.measure_diff(dl.Pair.open(sys.argv[1], sys.argv[2]), sys.argv[3], threads=1, context=False)
print(run.record["peak_rss_bytes"])
"""


def peak_of(folder: Path) -> tuple[int, int]:
    """Peak memory of a process that measures folder/a → folder/b, and the bytes of the pair."""
    command = [sys.executable, "-c", MEMORY, *(str(folder / name) for name in ("a", "b", "run"))]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return peak, sum(f.stat().st_size for f in folder.glob("[ab]/*.safetensors"))


def write_large(folder: Path, shape: tuple[int, int], count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for side in ("a", "b"):
        w = {f"model.layers.{i}.mlp.down_proj.weight": torch.empty(shape, dtype=torch.bfloat16) for i in range(count)}
        for t in w.values():
            t.normal_(0, 0.02, generator=generator)
        write_checkpoint(folder / side, w, shards=2)


def test_peak_memory_is_far_below_the_pair(tmp_path: Path) -> None:
    write_large(tmp_path, (128, 65536), 24)
    peak, pair = peak_of(tmp_path)
    assert pair > 800e6
    assert peak < 350e6, f"peak {peak / 1e6:.0f} MB"


@pytest.mark.slow
def test_peak_memory_of_one_matrix_too_large_to_hold(tmp_path: Path) -> None:
    write_large(tmp_path, (2**18 + 2**13, 512), 1)  # just above 2**27 entries
    peak, pair = peak_of(tmp_path)
    assert pair > 550e6
    assert peak < 400e6, f"peak {peak / 1e6:.0f} MB"  # Δ alone in float32 would be 554 MB


def test_names_that_are_not_there(tmp_path: Path) -> None:
    run = measure(Pair.open(*map(str, write_pair(tmp_path))), tmp_path / "run")
    with pytest.raises(dl.BadInput, match="no matrix") as caught:
        run.spectrum("layers.0.self_attn.q_prj")
    assert "layers.0.self_attn.q_proj" in (caught.value.fix or "")
    for name in [name for name in TABLES if (run.path / name).exists()]:
        (run.path / name).rename(run.path / "hidden")
        with pytest.raises(dl.BadInput, match=name):
            dl.Run.open(run.path)
        (run.path / "hidden").rename(run.path / name)
