"""Vocabulary tables stored differently: what is compared is exact, what is not is listed, and nothing is lost."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import perturb, tiny_config, tiny_tensors, write_checkpoint

import deltalens as dl
from deltalens.checkpoint.pair import Pair, Row
from deltalens.checkpoint.read import Reader

Tensors = dict[str, torch.Tensor]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UNTIED, TIED = tiny_config(tie_word_embeddings=False), tiny_config(tie_word_embeddings=True)


def make(folder: Path, base: Tensors, tuned: Tensors, *configs: dict[str, Any], match: str | None = None) -> Pair:
    paths = [
        write_checkpoint(folder / side, tensors, config)
        for side, tensors, config in zip(("base", "tuned"), (base, tuned), configs, strict=True)
    ]
    return Pair.open(str(paths[0]), str(paths[1]), match)


def rows(pair: Pair) -> dict[str, Row]:
    return {row.name.name: row for row in pair.rows}


def exact(base: torch.Tensor, tuned: torch.Tensor) -> np.ndarray:
    return tuned.double().numpy() - base.double().numpy()


def check_against_oracle(pair: Pair, folder: Path, oracles: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Measure a pair; its tables have the spectra of the given differences. Returns the ledger by name."""
    run = dl.measure_diff(pair, folder / "run", threads=1)
    matrices = {row["name"]: row for row in run.matrices.to_pylist()}
    ledger = {row["name"]: row for row in run.ledger.to_pylist()}
    assert len(ledger) == len(pair.rows)
    for name, delta in oracles.items():
        sigma = np.linalg.svd(delta, compute_uv=False)
        assert (matrices[name]["rows"], matrices[name]["cols"]) == delta.shape
        assert np.abs(run.spectrum(name) - sigma).max() <= 1e-6 * sigma[0]
        assert ledger[name]["norm_delta_sq"] == pytest.approx((delta**2).sum(), rel=1e-6)
        assert ledger[name]["elements"] == delta.size
        assert run.directions(name).left.shape[1] == len(delta)
    assert sum(row["share"] for row in ledger.values()) == pytest.approx(1)
    for side, ckpt in (("base", pair.base), ("tuned", pair.tuned)):
        assert {row[f"tensor_{side}"] for row in ledger.values()} - {None} == set(ckpt.tensors)
    return ledger


@pytest.mark.parametrize("longer", ["base", "tuned"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_padded_vocabulary_is_measured_over_the_common_rows(longer: str, shards: int, tmp_path: Path) -> None:
    short = tiny_tensors(tied=False, vocab=50)
    extra = {name: torch.cat([short[name], torch.full((14, 32), 9.0).bfloat16()]) for name in (EMBED, HEAD)}
    long = perturb(short, sigma=0.5) | {
        name: torch.cat([perturb({"w": short[name]}, sigma=0.3, seed=7)["w"], extra[name][50:]]) for name in extra
    }
    base, tuned = (short, long) if longer == "tuned" else (long, short)
    configs = [UNTIED | {"vocab_size": len(tensors[EMBED])} for tensors in (base, tuned)]
    write_checkpoint(tmp_path / "base", base, configs[0], shards)
    write_checkpoint(tmp_path / "tuned", tuned, configs[1], shards)
    pair = Pair.open(str(tmp_path / "base"), str(tmp_path / "tuned"))
    oracles = {
        name: exact(base[stored][:50], tuned[stored][:50]) for name, stored in (("embed", EMBED), ("lm_head", HEAD))
    }
    ledger = check_against_oracle(pair, tmp_path, oracles)
    assert ledger["embed"]["reason"] == "the first 50 rows, which both sides have"
    for name, stored in (("embed[50:]", EMBED), ("lm_head[50:]", HEAD)):
        row = ledger[name]
        assert (row["status"], row["reason"]) == ("unpaired", f"extra vocabulary rows of the {longer} side")
        assert (row["norm_delta_sq"], row["share"], row["elements"]) == (None, 0.0, 14 * 32)
        assert (row[f"tensor_{longer}"], row["tensor_tuned"] is None) == (stored, longer == "base")
        info = rows(pair)[name].base or rows(pair)[name].tuned
        assert info is not None
        with Reader(info) as reader:
            assert (reader.all() == 9.0).all()
    for side, tensors in (("base", base), ("tuned", tuned)):  # every entry of a side is in exactly one row
        elements = sum(row["elements"] for row in ledger.values() if row[f"tensor_{side}"])
        assert elements == sum(t.numel() for t in tensors.values())
    counts = (50, 64) if longer == "tuned" else (64, 50)
    for name in ("embed", "lm_head"):
        assert any(
            f"{name} has {counts[0]} rows in the base and {counts[1]} in the tuned side; the common 50 are compared, "
            f"the extra vocabulary rows of the {longer} side are listed as {name}[50:]" in warning
            for warning in pair.warnings
        )


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("tied_side", ["base", "tuned"])
def test_one_side_tied_reads_its_embed_as_its_head(tied_side: str, stored: bool, tmp_path: Path) -> None:
    shared = tiny_tensors(tied=True)
    own = perturb(shared, sigma=0.3) | {HEAD: perturb(shared, sigma=0.4, seed=5)[EMBED]}
    if stored:  # a copy beside the tie, which no model uses
        shared[HEAD] = torch.full((50, 32), 7.0).bfloat16()
    base, tuned, configs = (shared, own, (TIED, UNTIED)) if tied_side == "base" else (own, shared, (UNTIED, TIED))
    pair = make(tmp_path, base, tuned, *configs)
    heads = (shared[EMBED], own[HEAD]) if tied_side == "base" else (own[HEAD], shared[EMBED])
    oracles = {"embed": exact(base[EMBED], tuned[EMBED]), "lm_head": exact(*heads)}
    ledger = check_against_oracle(pair, tmp_path, oracles)
    assert ledger["lm_head"]["reason"] == "tied on one side"
    assert ledger["lm_head"][f"tensor_{tied_side}"] == EMBED
    assert ledger["embed"]["reason"] is None
    assert pair.rows[-1].name.kind == "lm_head"
    if stored:
        row = ledger[HEAD]
        assert (row["status"], row["reason"]) == ("tied", f"the {tied_side} side ties it to embed")
        assert (row[f"tensor_{tied_side}"], row["share"]) == (HEAD, 0.0)
    assert any(f"only the {tied_side} side ties lm_head to embed" in warning for warning in pair.warnings)


@pytest.mark.parametrize("longer", ["tied", "own"])
def test_tied_on_one_side_and_padded(longer: str, tmp_path: Path) -> None:
    counts = {"tied": (64, 50), "own": (50, 64)}[longer]
    shared, own = tiny_tensors(tied=True, vocab=counts[0]), tiny_tensors(tied=False, seed=3, vocab=counts[1])
    pair = make(tmp_path, shared, own, TIED, UNTIED)
    oracles = {
        name: exact(shared[EMBED][:50], own[stored][:50]) for name, stored in (("embed", EMBED), ("lm_head", HEAD))
    }
    ledger = check_against_oracle(pair, tmp_path, oracles)
    assert ledger["lm_head"]["reason"] == "tied on one side; the first 50 rows, which both sides have"
    # The extra rows of a borrowed embed are the embed's, and listed once.
    extra = {"embed[50:]"} if longer == "tied" else {"embed[50:]", "lm_head[50:]"}
    assert {name for name, row in ledger.items() if row["status"] == "unpaired"} == extra


def test_both_sides_tied_and_padded(tmp_path: Path) -> None:
    base, tuned = tiny_tensors(vocab=64), tiny_tensors(vocab=50, seed=2)
    stored = base | {HEAD: base[EMBED].clone()}
    pair = make(tmp_path, stored, tuned, TIED, TIED)
    ledger = check_against_oracle(pair, tmp_path, {"embed": exact(base[EMBED][:50], tuned[EMBED])})
    assert (ledger["lm_head"]["status"], ledger["lm_head"]["share"]) == ("tied", 0.0)
    assert Counter(row["status"] for row in ledger.values())["unpaired"] == 1


def test_match_counts_the_norm_of_a_cut_table(tmp_path: Path) -> None:
    base, tuned = tiny_tensors(vocab=64), tiny_tensors(vocab=50, seed=2)
    pair = make(tmp_path, base, tuned, TIED, TIED, match="layers.*")
    row = rows(pair)["embed"]
    assert (row.status, row.reason, row.shape) == ("unmeasured", "not matched by layers.*", (50, 32))
    assert pair.vocabulary is None
    ledger = {r["name"]: r for r in dl.measure_diff(pair, tmp_path / "run").ledger.to_pylist()}
    delta = exact(base[EMBED][:50], tuned[EMBED])
    assert ledger["embed"]["norm_delta_sq"] == pytest.approx((delta**2).sum(), rel=1e-6)


def test_a_name_that_is_taken_is_not_taken_twice(tmp_path: Path) -> None:
    base, tuned = tiny_tensors(vocab=64), tiny_tensors(vocab=50)
    pair = make(tmp_path, base | {"embed[50:]": torch.ones(3, 3)}, tuned, TIED, TIED)
    assert {"embed[50:]", "embed[50:]'"} <= rows(pair).keys()
    assert len({row.name.name for row in pair.rows}) == len(pair.rows)


def test_tables_without_common_rows_or_of_integers_stay_whole(tmp_path: Path) -> None:
    base = tiny_tensors()
    empty = make(tmp_path / "a", base, base | {EMBED: torch.ones(0, 32).bfloat16()}, TIED, TIED)
    assert rows(empty)["embed"].reason == "shapes differ: [50, 32] and [0, 32]"
    assert any("1 unpaired (shapes differ): embed" in warning for warning in empty.warnings)
    whole = make(tmp_path / "b", base, base | {EMBED: torch.ones(40, 32, dtype=torch.int32)}, TIED, TIED)
    assert rows(whole)["embed"].reason == "floating point on one side only (BF16 and I32)"


def test_another_width_is_no_padding(tmp_path: Path) -> None:
    base = tiny_tensors()
    with pytest.raises(dl.Refused, match="different widths: embed"):
        make(tmp_path, base, base | {EMBED: torch.ones(60, 48).bfloat16()}, TIED, TIED)
