"""Operators against dense formulas in float64, and selectors against what they say, on stored pairs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_pairs import save_bank, save_pair
from factories import perturb, tiny_config, tiny_tensors, write_checkpoint, write_pair
from safetensors.torch import load_file, save_file
from tiny_models import WIDTH

from deltalens.checkpoint.names import stem
from deltalens.checkpoint.pair import Row
from deltalens.direction.bank import read_direction, write_bank
from deltalens.direction.direction import Direction
from deltalens.edit.adapter import Factors, read_adapter, write_adapter
from deltalens.edit.edit import OPERATORS, from_record
from deltalens.edit.operators import orthonormal
from deltalens.edit.plan import Plan, plan
from deltalens.edit.ranks import spikes
from deltalens.edit.select import editable
from deltalens.edit.shares import change_norm, left_along, touched_shares
from deltalens.edit.tensors import changes, form
from deltalens.errors import BadInput, Refused


def opened(base: Path | str, tuned: Path | str | None, *steps: dict[str, Any]) -> Plan:
    sides = {"base": str(base)} | ({} if tuned is None else {"tuned": str(tuned)})
    return plan(from_record({**sides, "edit": list(steps)}))


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Stored tensors by the name without wrapper, float64."""
    stored = load_file(folder / "model.safetensors")
    return {k.removeprefix("model.").removesuffix(".weight"): v.double().numpy() for k, v in stored.items()}


def made(found: Plan) -> dict[str, np.ndarray]:
    return {row.name.name: form(found, row).dense().astype(float).reshape(row.shape) for row in editable(found.pair)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    base = tiny_tensors(tied=False)
    config = tiny_config(tie_word_embeddings=False)
    return (
        write_checkpoint(folder / "base", base, config),
        write_checkpoint(folder / "tuned", perturb(base, noise=1e-3), config),
    )


def top(delta: np.ndarray, k: int) -> np.ndarray:
    u, s, v = np.linalg.svd(delta, full_matrices=False)
    return u[:, :k] * s[:k] @ v[:k]


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("step", "function", "scope", "rest"),
    [
        ({"operator": "interpolate", "strength": -0.3}, lambda b, t: b - 0.3 * (t - b), "all", "base"),
        ({"operator": "negate", "strength": 0.7}, lambda b, t: b - 0.7 * (t - b), "all", "base"),
        ({"operator": "truncate", "rank": 3}, lambda b, t: b + top(t - b, 3), "linear", "base"),
        ({"operator": "truncate", "rank": 3, "rest": "tuned"}, lambda b, t: b + top(t - b, 3), "linear", "tuned"),
        ({"operator": "revert", "rank": 2, "strength": 0.5}, lambda b, t: t - 0.5 * top(t - b, 2), "linear", "tuned"),
        ({"operator": "lox", "rank": 6, "strength": 1.25}, lambda b, t: t + 1.25 * top(t - b, 6), "2-D", "tuned"),
        ({"operator": "lox", "rank": "full", "strength": 2}, lambda b, t: t + 2 * (t - b), "2-D", "tuned"),
    ],
)
def test_operators_are_the_dense_formula(
    pair: tuple[Path, Path], step: dict[str, Any], function: Any, scope: str, rest: str
) -> None:
    b, t = map(weights, pair)
    found = made(opened(*pair, step))
    home = b if rest == "base" else t
    for name, value in found.items():
        key = "embed_tokens" if name == "embed" else name
        linear = name.rpartition(".")[2] in LINEAR
        touched = {"all": True, "linear": linear, "2-D": value.ndim == 2}[scope]
        expected = function(b[key], t[key]) if touched else home[key]
        assert np.abs(value - expected).max() < 1e-7, name  # float32 of weights near .1


def test_the_ends_are_the_two_sides_bit_by_bit(pair: tuple[Path, Path]) -> None:
    def same(step: dict[str, Any], side: str) -> bool:
        found = opened(*pair, step)
        return all(form(found, row).same == found.stored(row, side) for row in editable(found.pair))

    assert same({"operator": "interpolate", "strength": 0}, "base")
    assert same({"operator": "interpolate", "strength": 1}, "tuned")
    assert same({"operator": "revert", "rank": "full", "kinds": ["all"]}, "base")
    assert same({"operator": "truncate", "rank": "full", "kinds": ["all"]}, "tuned")
    assert same({"operator": "truncate", "rank": "full", "kinds": ["all"], "strength": 0}, "base")
    assert same({"operator": "revert", "rank": 2, "strength": 0}, "tuned")
    assert not list(changes(opened(*pair, {"operator": "interpolate", "strength": 0})))


def test_contrast_of_a_pair_with_itself_is_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = map(str, pair)
    step = {"operator": "contrast", "plus": tuned, "minus": tuned, "strength": 3}
    assert not list(changes(opened(base, None, step)))
    swapped = made(opened(base, None, {**step, "minus": base}))
    b, t = weights(pair[0]), weights(pair[1])
    assert np.allclose(swapped["norm"], b["norm"] + 3 * (t["norm"] - b["norm"]), atol=1e-6)
    elsewhere = write_checkpoint(tmp_path / "x", {"norm.weight": torch.ones(32)}, {})
    with pytest.raises(Refused, match="no tensor"):
        list(changes(opened(base, None, {**step, "minus": str(elsewhere)})))


def test_operations_act_in_order_on_what_is_there(pair: tuple[Path, Path], tmp_path: Path) -> None:
    b, t = map(weights, pair)
    bank = save_bank(tmp_path / "bank.safetensors")
    q = read_direction(bank).basis
    name, other = "layers.0.mlp.down_proj", "layers.1.mlp.down_proj"
    half = {"operator": "interpolate", "strength": 0.5, "kinds": ["down_proj"], "layers": "0"}
    cut = {"operator": "cut", "direction": bank, "kinds": ["down_proj"]}
    back = {"operator": "revert", "rank": 1, "kinds": ["down_proj"]}
    found = made(opened(*pair, half, cut, back))
    middle = b[name] + 0.5 * (t[name] - b[name])
    middle = middle - q @ (q.T @ middle)
    assert np.abs(found[name] - (middle - top(t[name] - b[name], 1))).max() < 1e-7
    # What nothing came before starts at the revert's own side; a cut has none of its own and takes the edit's home.
    start = b[other] - q @ (q.T @ b[other])
    assert np.abs(found[other] - (start - top(t[other] - b[other], 1))).max() < 1e-7
    untouched = made(opened(*pair, half, back))[other]
    assert np.abs(untouched - (t[other] - top(t[other] - b[other], 1))).max() < 1e-7
    with pytest.raises(Refused, match=r"would undo an earlier one on layers\.0\.mlp\.down_proj"):
        opened(*pair, cut, half)


# A writer, its bias, a reader, the norm before it, and the norm behind the writer, without wrappers.
CUTS = {
    "llama": ("layers.1.self_attn.o_proj", None, "layers.1.mlp.up_proj", "layers.1.post_attention_layernorm", None),
    "qwen2": ("layers.1.mlp.down_proj", None, "layers.1.self_attn.q_proj", "layers.1.input_layernorm", None),
    "gemma2": (
        "layers.1.self_attn.o_proj",
        None,
        "layers.1.mlp.up_proj",
        "layers.1.pre_feedforward_layernorm",
        "layers.1.post_attention_layernorm",
    ),
    "olmo2": (
        "layers.1.mlp.down_proj",
        None,
        "layers.1.mlp.gate_proj",
        None,  # reads the stream itself
        "layers.1.post_feedforward_layernorm",
    ),
    "gpt2": ("h.1.attn.c_proj.weight", "h.1.attn.c_proj.bias", "h.1.mlp.c_fc.weight", "h.1.ln_2", None),
    "phi": (
        "layers.1.self_attn.dense.weight",
        "layers.1.self_attn.dense.bias",
        "layers.1.mlp.fc1.weight",
        "layers.1.input_layernorm",
        None,
    ),
}


@pytest.mark.parametrize("architecture", CUTS)
def test_a_cut_leaves_nothing_to_write_or_to_read(architecture: str, tmp_path: Path) -> None:
    """QᵀW′ = 0 of writers, their biases and output norms; W′(γ∘r) = 0 of readers, the mean out for LayerNorms."""
    base, _ = save_pair(tmp_path / "pair", architecture)
    bank = save_bank(tmp_path / "bank.safetensors", vectors=2)
    r, gains = read_direction(bank).basis, {stem(k): v for k, v in _raw(base).items()}
    writer, bias, reader, before, behind = CUTS[architecture]

    def cut(*kinds: str) -> dict[str, np.ndarray]:
        found = made(opened(base, None, {"operator": "cut", "direction": bank, "kinds": list(kinds)}))
        return {stem(name): value for name, value in found.items()}

    def seen(norm: str | None, rows: np.ndarray) -> np.ndarray:
        return rows if norm is None else rows * (gains[f"{norm}.weight"] + (architecture == "gemma2"))[:, None]

    written = cut("o_proj", "down_proj")
    assert np.abs(seen(behind, r).T @ written[writer]).max() < 1e-5 * np.linalg.norm(written[writer], 2)
    assert bias is None or np.abs(r.T @ written[bias]).max() < 1e-5
    centred = r - r.mean(axis=0) if architecture in ("gpt2", "phi") else r
    read = cut("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj") if architecture != "gpt2" else cut("up_proj")
    assert np.abs(read[reader] @ seen(before, centred)).max() < 1e-5 * np.linalg.norm(read[reader], 2)


def test_a_cut_takes_no_axis_that_the_direction_does_not_span(tmp_path: Path) -> None:
    """A LayerNorm takes an all-ones direction out by itself; of (ones, r) it leaves r alone."""
    base, _ = save_pair(tmp_path / "pair", "gpt2")
    ones = np.ones((1, WIDTH), np.float32)
    r = np.random.default_rng(0).standard_normal((1, WIDTH)).astype(np.float32)
    vectors = {"ones": ones, "r": r, "both": np.concatenate([ones, r])}
    bank = tmp_path / "bank.safetensors"
    write_bank(bank, [Direction(name, v, 1, "difference", "residual", "resid_post") for name, v in vectors.items()])

    def cut(name: str, kind: str) -> dict[str, np.ndarray]:
        return made(opened(base, None, {"operator": "cut", "direction": f"{bank}#{name}", "kinds": [kind]}))

    reader = "transformer.h.1.mlp.c_fc.weight"
    np.testing.assert_allclose(cut("both", "up_proj")[reader], cut("r", "up_proj")[reader], atol=1e-6)
    with pytest.raises(Refused, match=r"nothing of direction ones passes h\.0\.ln_2"):
        cut("ones", "up_proj")
    assert cut("ones", "down_proj")  # writers have no norm before the stream


@pytest.mark.parametrize(
    ("columns", "rank"),
    [([[1, 0, 0], [1, 0, 0]], 1), ([[1, 0, 0], [0, 0, 0]], 1), ([[1e-9, 0, 0]], 0), ([[1, 2, 3]], 1)],
)
def test_a_basis_spans_its_columns_and_no_more(columns: list[list[float]], rank: int) -> None:
    given = np.array(columns, np.float64).T
    q = orthonormal(given, 1.0)
    assert q.shape == (3, rank)
    np.testing.assert_allclose(q.T @ q, np.eye(rank), atol=1e-12)
    np.testing.assert_allclose(q @ (q.T @ given), given, atol=1e-8)


def _raw(folder: Path) -> dict[str, np.ndarray]:
    return {k: v.double().numpy() for k, v in load_file(folder / "model.safetensors").items()}


def test_a_cut_behind_an_edited_norm_uses_the_norm_as_edited(pair: tuple[Path, Path], tmp_path: Path) -> None:
    bank = save_bank(tmp_path / "bank.safetensors")
    steps = {"operator": "interpolate", "strength": 3}, {"operator": "cut", "direction": bank, "kinds": ["gate_proj"]}
    found = made(opened(*pair, *steps))
    read = found["layers.1.post_attention_layernorm"] * read_direction(bank).basis[:, 0]
    gate = found["layers.1.mlp.gate_proj"]
    assert np.abs(gate @ read).max() < 1e-6 * np.linalg.norm(gate)


def test_an_embedding_is_cut_on_the_side_that_writes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    bank = save_bank(tmp_path / "bank.safetensors")
    step = {"operator": "cut", "direction": bank}
    cut = opened(pair[0], None, step)
    q = read_direction(bank).basis
    assert "embed" in cut.steps and np.abs(made(cut)["embed"] @ q).max() < 1e-7
    assert left_along(cut, cut.edit.operations[0]) == {}
    tied, _ = write_pair(tmp_path / "tied")
    kept = opened(tied, None, step)
    assert "embed" not in kept.steps and not kept.notes
    w = weights(tied)
    energies = {k: np.sum((q.T @ v) ** 2) for k, v in w.items() if k.endswith(("o_proj", "down_proj"))}
    embed = np.sum((w["embed_tokens"] @ q) ** 2)
    assert left_along(kept, kept.edit.operations[0]) == {
        "embed": pytest.approx(embed / (embed + sum(energies.values())))
    }
    asked = opened(tied, None, {**step, "kinds": ["embed"]})
    assert "lm_head" in asked.notes[0] and np.abs(made(asked)["embed"] @ q).max() < 1e-7


def test_restore_brings_back_a_block_of_the_reference(pair: tuple[Path, Path], tmp_path: Path) -> None:
    b, t = map(weights, pair)
    name = "layers.0.mlp.up_proj"
    u, _, v = np.linalg.svd(b[name], full_matrices=False)
    p, q = u[:, :4] @ u[:, :4].T, v[:4].T @ v[:4]
    missing = b[name] - t[name]
    step = {"operator": "restore", "rank": 4, "kinds": ["up_proj"], "strength": 0.5}
    for side, expected in (("both", p @ missing @ q), ("left", p @ missing), ("right", missing @ q)):
        found = made(opened(*pair, {**step, "side": side}))
        assert np.abs(found[name] - (t[name] + 0.5 * expected)).max() < 1e-7
    bank = save_bank(tmp_path / "bank.safetensors")
    r = read_direction(bank).basis
    along = made(opened(*pair, {"operator": "restore", "direction": bank, "kinds": ["down_proj"]}))
    name = "layers.0.mlp.down_proj"
    assert np.abs(r.T @ along[name] - r.T @ b[name]).max() < 1e-7


def test_add_is_folded_into_a_bias_or_refused(tmp_path: Path) -> None:
    base, _ = save_pair(tmp_path / "gpt2", "gpt2")
    bank = save_bank(tmp_path / "b.safetensors", site="mlp_out")
    found = opened(base, None, {"operator": "add", "direction": bank, "strength": 2})
    (name, values), before = next(iter({n: made(found)[n] for n in found.steps}.items())), _raw(base)
    assert name.endswith("h.1.mlp.c_proj.bias") and len(found.steps) == 1
    stored = next(v for k, v in before.items() if k.endswith("h.1.mlp.c_proj.bias"))
    assert np.allclose(values, stored + 2 * read_direction(bank).vectors[0], atol=1e-6)
    llama, _ = save_pair(tmp_path / "llama", "llama")
    gemma, _ = save_pair(tmp_path / "gemma", "gemma2")
    for model, error in ((llama, "llama has no bias of down_proj"), (gemma, "no bias of down_proj")):
        with pytest.raises(Refused, match=error) as caught:
            opened(model, None, {"operator": "add", "direction": bank, "strength": 2})
        assert "steer" in (caught.value.fix or "")
    with pytest.raises(Refused, match="nothing of a checkpoint is added at resid_pre"):
        opened(base, None, {"operator": "add", "direction": bank, "strength": 2, "site": "resid_pre"})
    two = save_bank(tmp_path / "two.safetensors", vectors=2, site="mlp_out")
    with pytest.raises(BadInput, match="needs one vector"):
        opened(base, None, {"operator": "add", "direction": two, "strength": 2})


@pytest.mark.parametrize(
    ("selectors", "names"),
    [
        ({"layers": "0"}, {0}),
        ({"layers": "1-2"}, {1, 2}),
        ({"layers": [2, 0]}, {0, 2}),
        ({"layers": "0, 2"}, {0, 2}),
        ({"layers": "50%-100%"}, {2}),
        ({"layers": "0%-50%"}, {0, 1}),
        ({"layers": "0%-100%"}, {0, 1, 2}),
    ],
)
def test_layers(selectors: dict[str, Any], names: set[int], tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "b", tiny_tensors(layers=3), tiny_config(num_hidden_layers=3))
    tuned = write_checkpoint(tmp_path / "t", perturb(tiny_tensors(layers=3)), tiny_config(num_hidden_layers=3))
    found = opened(base, tuned, {"operator": "interpolate", "strength": 0.5, **selectors})
    rows = {row.name.name: row for row in editable(found.pair)}
    assert {rows[name].name.layer for name in found.steps} == names  # no table of embeddings, no last norm


def test_kinds_and_groups(pair: tuple[Path, Path]) -> None:
    def touched(kinds: Any) -> set[str]:
        steps = opened(*pair, {"operator": "interpolate", "strength": 0.5, "kinds": kinds, "layers": "0"}).steps
        return {name.rpartition(".")[2] for name in steps}

    assert touched("q_proj") == {"q_proj"}
    assert touched(["attention"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert touched(["mlp"]) == {"gate_proj", "up_proj", "down_proj"}
    assert touched(["vector"]) == {"input_layernorm", "post_attention_layernorm", "q_norm", "k_norm"}
    assert touched(["all"]) == touched(["attention", "mlp", "vector"])


def test_heads_bring_their_group_along(pair: tuple[Path, Path]) -> None:
    b, t = map(weights, pair)
    found = made(opened(*pair, {"operator": "revert", "rank": "full", "heads": [3], "layers": "0"}))
    rows = {"q_proj": slice(24, 32), "k_proj": slice(8, 16), "v_proj": slice(8, 16)}
    for kind, chosen in rows.items():
        name = f"layers.0.self_attn.{kind}"
        expected = t[name].copy()
        expected[chosen] = b[name][chosen]
        assert np.array_equal(found[name], expected)
    name = "layers.0.self_attn.o_proj"
    expected = t[name].copy()
    expected[:, 24:] = b[name][:, 24:]
    assert np.array_equal(found[name], expected)
    part = made(opened(*pair, {"operator": "revert", "rank": 1, "heads": [0, 1], "kinds": ["o_proj"]}))[name]
    expected = t[name].copy()
    expected[:, :16] -= top((t[name] - b[name])[:, :16], 1)
    assert np.abs(part - expected).max() < 1e-7


def test_experts_packed_or_apart(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, "mixtral")
    found = opened(base, tuned, {"operator": "revert", "rank": 1, "experts": [1], "layers": "0"})
    assert set(found.steps) == {f"layers.0.mlp.experts.1.{kind}" for kind in ("gate_proj", "up_proj", "down_proj")}
    packed = {"model.layers.0.mlp.experts.down_proj": torch.randn(3, 8, 6), "model.norm.weight": torch.ones(8)}
    folder = write_checkpoint(tmp_path / "p", packed, {})
    moved = write_checkpoint(tmp_path / "q", {k: v + 1 for k, v in packed.items()}, {})
    step = {"operator": "interpolate", "strength": 1, "kinds": ["down_proj"], "experts": [2]}
    one = made(opened(folder, moved, step))["layers.0.mlp.experts.down_proj"]
    before = packed["model.layers.0.mlp.experts.down_proj"].numpy()
    assert np.array_equal(one[:2], before[:2]) and np.array_equal(one[2], (before + np.float32(1))[2])
    with pytest.raises(Refused, match="is a stack of 3 matrices, which revert cannot take"):
        opened(folder, moved, {"operator": "revert", "rank": 1})
    with pytest.raises(BadInput, match="no expert 3"):
        opened(folder, moved, {**step, "experts": [3]})


@pytest.mark.parametrize(
    ("step", "error", "fix"),
    [
        ({"operator": "restore", "rank": 2}, "restore has no default scope", "kinds"),
        ({"layers": "7"}, "no layer 7", "0 to 1"),
        ({"layers": "a-b"}, "layers = 'a-b'", "0-13"),
        ({"layers": "1-0"}, "layers = '1-0'", "0-13"),
        ({"layers": "1.2.3%-100%"}, "layers = '1.2.3%-100%'", "0-13"),
        ({"layers": "0-99999999999999"}, "no layer 2", "0 to 1"),
        ({"layers": "10%-20%"}, "matches none of the 2 layers", "wider"),
        ({"kinds": ["mpl"]}, "no kind is called 'mpl'", "mlp"),
        ({"kinds": ["router"]}, "revert matches no tensor", "q_proj"),
        ({"experts": [0]}, "revert matches no tensor", "q_proj"),
        ({"heads": [4]}, "no query head 4", "0 to 3"),
        ({"heads": [0], "kinds": ["up_proj"]}, "heads are those of", "attention"),
        ({"rank": 33}, "rank 33 is above 32", "full"),
        ({"kinds": ["k_proj"], "rank": 17}, "rank 17 is above 16", "full"),
    ],
)
def test_a_selection_of_nothing_says_what_there_is(
    pair: tuple[Path, Path], step: dict[str, Any], error: str, fix: str
) -> None:
    with pytest.raises(BadInput) as caught:
        opened(*pair, {"operator": "revert", "rank": 1, **step})
    assert error in caught.value.error and fix in (caught.value.fix or "")


def test_a_fused_tensor_is_taken_whole_or_refused_by_name(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, "gpt2")
    whole = opened(base, tuned, {"operator": "revert", "rank": 1})
    assert any(name.endswith("h.0.attn.c_attn.weight") for name in whole.steps)
    with pytest.raises(Refused, match=r"c_attn\.weight holds q_proj and k_proj and v_proj in one tensor") as caught:
        opened(base, tuned, {"operator": "revert", "rank": 1, "kinds": ["q_proj"]})
    assert "k_proj" in (caught.value.fix or "")
    with pytest.raises(Refused, match="its heads cannot be told apart"):
        opened(base, tuned, {"operator": "revert", "rank": 1, "heads": [0]})


def test_a_direction_that_cannot_be_cut_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    cut = {"operator": "cut"}
    narrow = save_bank(tmp_path / "narrow.safetensors", width=31)
    with pytest.raises(BadInput, match=r"has 31 entries, .* has 32"):
        opened(pair[0], None, {**cut, "direction": narrow})
    neurons = save_bank(tmp_path / "neurons.safetensors", space="neurons")
    with pytest.raises(BadInput, match="is of the space neurons"):
        opened(pair[0], None, {**cut, "direction": neurons})
    with pytest.raises(BadInput, match=r"cannot read|no such file"):
        opened(pair[0], None, {**cut, "direction": str(tmp_path / "gone#x")})


def test_an_adapter_is_a_task_vector_kept_factored(tmp_path: Path) -> None:
    base, _ = write_pair(tmp_path)
    rng = np.random.default_rng(0)
    name = "model.layers.0.mlp.up_proj"
    b, a = 0.1 * rng.standard_normal((64, 3)), rng.standard_normal((3, 32))
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_adapter(folder, {name: Factors(b, a)}, set(), "base", conv1d=False)
    found = read_adapter(str(folder))
    assert np.allclose(found["layers.0.mlp.up_proj"].left @ found["layers.0.mlp.up_proj"].right, b @ a, atol=1e-6)
    w = weights(base)["layers.0.mlp.up_proj"]
    for step, expected in (
        ({"operator": "interpolate", "strength": 0.5}, w + 0.5 * b @ a),
        ({"operator": "negate"}, w - b @ a),
        ({"operator": "truncate", "rank": 1}, w + top(b @ a, 1)),
        ({"operator": "revert", "rank": 2}, w + b @ a - top(b @ a, 2)),
        ({"operator": "contrast", "plus": str(folder), "minus": str(base), "strength": 2}, w + 3 * b @ a),
    ):
        opened_plan = opened(base, folder, step)
        row = _row(opened_plan, "layers.0.mlp.up_proj")
        made_form = form(opened_plan, row)
        assert len(made_form.terms) == 1 and made_form.left.shape[1] <= 9  # never multiplied out
        assert np.abs(made_form.dense() - expected).max() < 1e-5
        assert {r.name.name for r, _ in changes(opened_plan)} == {"layers.0.mlp.up_proj"}
    with pytest.raises(Refused, match="not for an adapter"):
        list(changes(opened(base, folder, {"operator": "revert", "rank": "spikes"})))
    (folder / "adapter_config.json").write_text(json.dumps({"r": 3, "peft_type": "LORA", "use_dora": True}))
    with pytest.raises(Refused, match="more than a LoRA adapter"):
        read_adapter(str(folder))


def test_alpha_over_rank_or_its_root_by_module(tmp_path: Path) -> None:
    tensors = {
        f"base_model.model.model.layers.{n}.mlp.up_proj.lora_{p}.weight": torch.ones(*s)
        for n in (0, 1)
        for p, s in (("A", (4, 8)), ("B", (8, 4)))
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"r": 4, "lora_alpha": 8, "peft_type": "LORA", "alpha_pattern": {"layers.1.mlp.up_proj": 16}}
    for rooted, scale in ((False, 2.0), (True, 4.0)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": rooted}))
        found = read_adapter(str(tmp_path))
        assert (found["layers.0.mlp.up_proj"].left == scale).all()
        assert (found["layers.1.mlp.up_proj"].left == 2 * scale).all()


def _row(found: Plan, name: str) -> Row:
    return next(row for row in editable(found.pair) if row.name.name == name)


def test_spikes_are_those_that_measure_counts(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path, rank=2, sigma=1.0, noise=1e-3)
    found = opened(base, tuned, {"operator": "truncate", "rank": "spikes", "kinds": ["down_proj"]})
    row = _row(found, "layers.0.mlp.down_proj")
    assert spikes(row) == 2 and form(found, row).left.shape[1] == 2
    with pytest.raises(Refused, match="not for some heads"):
        list(changes(opened(base, tuned, {"operator": "revert", "rank": "spikes", "heads": [0]})))


def test_energy_takes_what_it_says(pair: tuple[Path, Path]) -> None:
    b, t = map(weights, pair)
    found = opened(*pair, {"operator": "truncate", "rank": {"energy": 0.8}, "kinds": ["up_proj"]})
    for name in found.steps:
        s = np.linalg.svd(t[name] - b[name], compute_uv=False)
        k = form(found, _row(found, name)).left.shape[1]
        shares = np.cumsum(s**2) / np.sum(s**2)
        assert shares[k - 1] >= 0.8 and (k == 1 or shares[k - 2] < 0.8)


def test_triples_are_found_once_for_plans_that_share_them(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltalens.edit import ranks

    asked: list[int] = []
    real = ranks.triples
    monkeypatch.setattr(ranks, "triples", lambda delta, k: asked.append(k) or real(delta, k))
    kept: dict[Any, Any] = {}
    record = {"base": str(pair[0]), "tuned": str(pair[1])}
    for rank in (4, 2, 4):
        step = {"operator": "revert", "rank": rank, "kinds": ["up_proj"], "layers": "0"}
        list(changes(plan(from_record({**record, "edit": [step]}), kept)))
    assert asked == [4]


def test_shares_of_the_change_are_those_of_what_is_touched(pair: tuple[Path, Path]) -> None:
    b, t = map(weights, pair)
    sizes = {name: np.sum((t[name] - b[name]) ** 2) for name in b}
    total = sum(sizes.values())
    mlp = {"operator": "interpolate", "strength": 0.5, "kinds": ["mlp"]}
    down = {"operator": "lox", "rank": 1, "kinds": ["down_proj"], "layers": "0"}
    everything = {"operator": "interpolate", "strength": 0.5}
    shares = touched_shares(opened(*pair, mlp, down))
    wanted = sum(v for k, v in sizes.items() if ".mlp." in k) / total
    assert shares == [
        pytest.approx(wanted),
        pytest.approx(sizes["layers.0.mlp.down_proj"] / total),
        pytest.approx(wanted),
    ]
    assert touched_shares(opened(*pair, everything)) == [pytest.approx(1.0)] * 2
    heads = touched_shares(
        opened(*pair, {"operator": "revert", "rank": 1, "heads": [0], "kinds": ["q_proj"], "layers": "0"})
    )
    name = "layers.0.self_attn.q_proj"
    assert heads[0] == pytest.approx(np.sum((t[name] - b[name])[:8] ** 2) / total)
    assert touched_shares(opened(pair[0], pair[0], everything)) == [None, None]


def test_how_far_an_edit_moves_the_model(pair: tuple[Path, Path]) -> None:
    b, t = map(weights, pair)
    whole = float(np.sqrt(sum(np.sum((t[name] - b[name]) ** 2) for name in b)))
    half = opened(*pair, {"operator": "interpolate", "strength": 0.5})
    assert change_norm(half) == pytest.approx(whole / 2) == change_norm(half, "tuned")


def test_a_vision_stack_and_stacks_of_filters_are_not_the_language_models(tmp_path: Path) -> None:
    extra = {"visual.blocks.0.mlp.fc1.weight": torch.ones(8, 4), "visual.patch.weight": torch.ones(2, 3, 4, 4)}
    base = write_checkpoint(tmp_path / "b", {**tiny_tensors(), **extra}, tiny_config())
    moved = {**perturb(tiny_tensors()), **{name: 2 * value for name, value in extra.items()}}
    tuned = write_checkpoint(tmp_path / "t", moved, tiny_config())

    def seen(step: dict[str, Any]) -> set[str]:
        return {name for name in opened(base, tuned, step).steps if name.startswith("visual")}

    assert seen({"operator": "revert", "rank": 1}) == set()
    assert seen({"operator": "lox", "rank": 1}) == {"visual.blocks.0.mlp.fc1.weight"}  # every 2-D tensor
    assert seen({"operator": "interpolate", "strength": 0.5, "layers": "0"}) == set()
    assert len(seen({"operator": "interpolate", "strength": 0.5})) == 2


def test_one_tied_head_is_not_given_weights_of_its_own(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "b", tiny_tensors(), tiny_config())
    tuned = write_checkpoint(tmp_path / "t", tiny_tensors(tied=False, seed=2), tiny_config(tie_word_embeddings=False))
    with pytest.raises(Refused, match="the base side ties lm_head to embed"):
        list(changes(opened(base, tuned, {"operator": "interpolate", "strength": 0.5})))
    assert list(changes(opened(base, tuned, {"operator": "interpolate", "strength": 0.5, "kinds": ["linear"]})))


def test_every_operator_is_carried_out() -> None:
    from deltalens.edit import operators

    assert {"cut"} == {name for name in OPERATORS if not hasattr(operators, name)}  # which is cut_output or cut_input
