"""Directions from weights: planted ones found, spaces against the models' own norms, folded against a dense oracle."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import perturb, tiny_config, tiny_tensors, write_checkpoint
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Olmo2Config,
    PretrainedConfig,
)

from deltalens.checkpoint.pair import Pair
from deltalens.direction.direction import Direction
from deltalens.direction.weights import from_run, pair_of
from deltalens.errors import BadInput, Refused
from deltalens.model.load import no_bars
from deltalens.spectrum.measure import measure_diff
from deltalens.store.run import Run

SMALL = {
    **{"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False},
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "gemma2": Gemma2Config(**SMALL),
    "olmo2": Olmo2Config(**SMALL),
    "gpt2": GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=32, tie_word_embeddings=False),
}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))


def measured(folder: Path, base: Path | str, tuned: Path | str) -> tuple[Run, Pair]:
    run = measure_diff(Pair.open(base, tuned), folder / "run", top=4, context=False, nulls="off", threads=1)
    return run, pair_of(run)


def by_id(directions: tuple[Direction, ...]) -> dict[str, Direction]:
    return {d.id: d for d in directions}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Pair, Any, Any]]:
    """Of every architecture a random model, a sibling whose every weight moved, gains included, and their RUN."""
    found = {}
    for name, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        models = []
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for side, step in (("base", 0.3), ("tuned", 0.1)):
            for parameter in model.parameters():
                # Gains between .4 and 1.6, so that a wrong one shows; matrices far smaller.
                noise = torch.rand_like(parameter) - 0.5 if parameter.ndim == 1 else 0.1 * torch.randn_like(parameter)
                parameter.data += step * 2 * noise
            with no_bars():
                model.save_pretrained(folder / side)
                models.append(AutoModelForCausalLM.from_pretrained(folder / side, dtype=torch.float32))
        found[name] = (*measured(folder, folder / "base", folder / "tuned"), *models)
    return found


READERS = {  # matrix: the module whose output it multiplies, None where it reads the stream itself
    "llama": {
        "layers.1.self_attn.q_proj": "model.layers.1.input_layernorm",
        "layers.1.self_attn.v_proj": "model.layers.1.input_layernorm",
        "layers.1.mlp.gate_proj": "model.layers.1.post_attention_layernorm",
        "lm_head": "model.norm",
    },
    "gemma2": {
        "layers.1.self_attn.k_proj": "model.layers.1.input_layernorm",
        "layers.1.mlp.up_proj": "model.layers.1.pre_feedforward_layernorm",
        "lm_head": "model.norm",
    },
    "olmo2": {"layers.1.self_attn.q_proj": None, "layers.1.mlp.gate_proj": None, "lm_head": "model.norm"},
    "gpt2": {
        "transformer.h.1.attn.c_attn.weight": "transformer.h.1.ln_1",
        "transformer.h.1.mlp.c_fc.weight": "transformer.h.1.ln_2",
        "lm_head": "transformer.ln_f",
    },
}
WRITERS = {  # matrix: the norm behind it
    "llama": {"layers.1.self_attn.o_proj": None, "layers.1.mlp.down_proj": None},
    "gemma2": {
        "layers.1.self_attn.o_proj": "model.layers.1.post_attention_layernorm",
        "layers.1.mlp.down_proj": "model.layers.1.post_feedforward_layernorm",
    },
    "olmo2": {
        "layers.1.self_attn.o_proj": "model.layers.1.post_attention_layernorm",
        "layers.1.mlp.down_proj": "model.layers.1.post_feedforward_layernorm",
    },
    "gpt2": {"transformer.h.1.attn.c_proj.weight": None, "transformer.h.1.mlp.c_proj.weight": None},
}


def dense(run: Run, models: tuple[Any, Any], name: str) -> np.ndarray:
    """Δ of a matrix as [out, in], from the loaded models."""
    row = next(r for r in run.matrices.to_pylist() if r["name"] == name)
    base, tuned = (m.get_parameter(row["tensor_tuned"]).detach().double().numpy() for m in models)
    delta = tuned - base
    return delta.T if "gpt2" in type(models[0]).__name__.lower() and ".h." in row["tensor_tuned"] else delta


@pytest.mark.parametrize("arch", CONFIGS)
def test_readers_read_the_stream_through_their_norm(trained: dict, arch: str) -> None:
    """What v sees behind the model's own norm is, up to one factor per state, what the mapped direction sees before."""
    run, pair, *models = trained[arch]
    h = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    for name, norm in READERS[arch].items():
        found = by_id(from_run(run, pair, name, 4))[f"{name}.right"]
        assert (found.space, found.source["role"], found.source["input"]) == ("residual", "read", True)
        right = np.linalg.svd(dense(run, (models[0], models[1]), name))[2][:4]
        right *= np.sign(np.sum(run.directions(name).right * right, axis=1))[:, None]
        behind = h
        if norm is not None:
            module = models[1].get_submodule(norm)
            with torch.no_grad():
                behind = module(h) - (module.bias if getattr(module, "bias", None) is not None else 0)
            assert found.source["norm"] == norm.removeprefix("model.").removeprefix("transformer.")
        seen = behind.double().numpy() @ right.T
        for i in range(4):
            before = h.double().numpy() @ found.vectors[i]
            spread = h.double().numpy()
            if arch == "gpt2":
                spread = spread - spread.mean(axis=1, keepdims=True)
            size = np.sqrt(np.mean(spread**2, axis=1)) if norm is not None else 1.0
            ratio = seen[:, i] * size / before
            assert ratio[0] > 0
            np.testing.assert_allclose(ratio, ratio[0], rtol=2e-3)


@pytest.mark.parametrize("arch", CONFIGS)
def test_writers_write_through_the_norm_behind_them(trained: dict, arch: str) -> None:
    run, pair, *models = trained[arch]
    for name, norm in WRITERS[arch].items():
        found = by_id(from_run(run, pair, name, 4))
        left, right = found[f"{name}.left"], found[f"{name}.right"]
        assert (left.space, left.source["role"], left.source["input"]) == ("residual", "write", False)
        u, _, v = np.linalg.svd(dense(run, (models[0], models[1]), name))
        assert left.source["norm"] == (norm and norm.removeprefix("model."))
        for i in range(4):
            written = torch.from_numpy(u[:, i]).float()
            if norm is not None:
                with torch.no_grad():
                    written = models[1].get_submodule(norm)(written)
            assert abs(cosine(left.vectors[i], written.numpy())) > 1 - 1e-4
            assert abs(cosine(right.vectors[i], v[i])) > 1 - 1e-5
        assert right.space == ("neurons" if "mlp" in name else "head space")
        assert left.layer == 1


def test_spaces_of_the_tables(trained: dict) -> None:
    run, pair, *models = trained["llama"]
    found = by_id(from_run(run, pair, "*", 4))
    expected = {
        **{"embed.left": "vocabulary", "embed.right": "residual", "lm_head.left": "vocabulary"},
        **{"layers.0.self_attn.q_proj.left": "heads", "layers.0.mlp.gate_proj.left": "neurons"},
    }
    assert {name: found[name].space for name in expected} == expected
    v = np.linalg.svd(dense(run, (models[0], models[1]), "embed"), full_matrices=False)[2]
    assert abs(cosine(found["embed.right"].vectors[0], v[0])) > 1 - 1e-5  # it writes: no gain
    assert found["embed.right"].source["input"] is False


@pytest.mark.parametrize("arch", CONFIGS)
def test_folded_is_the_dense_oracle(trained: dict, arch: str) -> None:
    """SVD of W_t·diag(γ_t) − W_b·diag(γ_b) (and of diag(γ)W behind an output norm) in float64."""
    run, pair, *models = trained[arch]
    for name, norm in {**READERS[arch], **WRITERS[arch]}.items():
        row = next(r for r in run.matrices.to_pylist() if r["name"] == name)
        sides = []
        for model in models:
            w = model.get_parameter(row["tensor_tuned"]).detach().double().numpy()
            w = w.T if arch == "gpt2" and ".h." in name else w
            if norm is not None:
                gamma = model.get_submodule(norm).weight.detach().double().numpy() + (arch == "gemma2")
                w = gamma[:, None] * w if name in WRITERS[arch] else w * gamma
                if arch == "gpt2":
                    w = w - w.mean(axis=1, keepdims=True)
            sides.append(w)
        u, s, v = np.linalg.svd(sides[1] - sides[0], full_matrices=False)
        found = by_id(from_run(run, pair, name, 6, folded=True))
        left, right = found[f"{name}.left"], found[f"{name}.right"]
        np.testing.assert_allclose(left.sigma, s[:6], rtol=1e-9)
        np.testing.assert_allclose(np.abs(np.sum(left.vectors * u.T[:6], axis=1)), 1, atol=1e-5)
        np.testing.assert_allclose(np.abs(np.sum(right.vectors * v[:6], axis=1)), 1, atol=1e-5)
        assert left.source["certificate"] < 1e-9
        assert left.source["folded"] is True


@pytest.mark.parametrize("arch", ["gemma2", "gpt2"])
def test_writers_of_a_layer_are_both_together(trained: dict, arch: str) -> None:
    run, pair, *models = trained[arch]
    top = 4
    columns = []
    for name, norm in WRITERS[arch].items():
        u, s, _ = np.linalg.svd(dense(run, (models[0], models[1]), name))
        gamma = 1.0
        if norm is not None:
            gamma = (models[1].get_submodule(norm).weight.detach().double().numpy() + 1)[:, None]
        columns.append(gamma * u[:, :top] * s[:top])
    left, sigma, _ = np.linalg.svd(np.concatenate(columns, axis=1), full_matrices=False)
    writers = by_id(from_run(run, pair, "*", top))["layers.1.writers"]
    np.testing.assert_allclose(writers.sigma, sigma[:top], rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(writers.vectors * left.T[:top], axis=1)), 1, atol=1e-4)
    np.testing.assert_allclose(writers.vectors @ writers.vectors.T, np.eye(top), atol=1e-5)
    assert len(writers.source["matrices"]) == 2
    assert not [d for d in from_run(run, pair, next(iter(WRITERS[arch])), top) if d.kind == "writers"]


def test_orientation_is_the_mean_write(trained: dict) -> None:
    """⟨u, ΔW·E[x]⟩ > 0 for every vector, and the pair (u, v) turns together."""
    for arch in ("llama", "gpt2"):
        run, pair, *models = trained[arch]
        rng = np.random.default_rng(0)
        names = [*READERS[arch], *WRITERS[arch]]
        inputs = {r["name"]: rng.standard_normal(r["cols"]) for r in run.matrices.to_pylist() if r["name"] in names}
        plain, turned = (by_id(from_run(run, pair, "*", 4, inputs=x)) for x in (None, inputs))
        flips = 0
        for name in names:
            write = dense(run, (models[0], models[1]), name) @ inputs[name]
            left = turned[f"{name}.left"]
            assert left.sign == "oriented"
            assert plain[f"{name}.left"].sign == "arbitrary"
            assert np.all(left.vectors @ write > 0)
            for side in ("left", "right"):
                products = np.sum(plain[f"{name}.{side}"].vectors * turned[f"{name}.{side}"].vectors, axis=1)
                np.testing.assert_allclose(np.abs(products), 1, atol=1e-5)
                flips += int(np.sum(products < 0)) * (1 if side == "left" else -1)
        assert flips == 0
        total = sum(dense(run, (models[0], models[1]), name) @ inputs[name] for name in WRITERS[arch])
        assert np.all(turned["layers.1.writers"].vectors @ total > 0)
        assert turned["layers.0.writers"].sign == "arbitrary"
        folded = by_id(from_run(run, pair, "*", 4, folded=True, inputs=inputs))
        for name in names:
            write = dense(run, (models[0], models[1]), name) @ inputs[name]
            assert np.all(folded[f"{name}.left"].vectors @ write > 0)


def test_planted_direction_is_found_and_noise_is_flagged(tmp_path: Path) -> None:
    base = tiny_tensors()
    name = "model.layers.1.self_attn.o_proj.weight"
    planted = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(3)), dim=0)
    fires = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(4)), dim=0)
    tuned = perturb(base, rank=0, noise=1e-4)
    tuned[name] = (tuned[name].float() + 0.1 * torch.outer(planted, fires)).to(torch.bfloat16)
    sides = [write_checkpoint(tmp_path / side, t, tiny_config()) for side, t in (("base", base), ("tuned", tuned))]
    run, pair = measured(tmp_path, *sides)
    found = by_id(from_run(run, pair, "layers.1.*", 4))
    left = found["layers.1.self_attn.o_proj.left"]
    assert abs(cosine(left.vectors[0], planted.numpy())) > 0.95
    assert abs(cosine(found["layers.1.self_attn.o_proj.right"].vectors[0], fires.numpy())) > 0.95
    assert abs(cosine(found["layers.1.writers"].vectors[0], planted.numpy())) > 0.95
    assert left.source["above_edge"] == 1
    assert found["layers.1.writers"].source["above_edge"] == 1
    assert found["layers.1.mlp.up_proj.left"].source["above_edge"] == 0
    spectrum = run.spectrum("layers.1.self_attn.o_proj")
    assert left.source["gap"] == pytest.approx((spectrum[3] - spectrum[4]) / spectrum[0])
    only = by_id(from_run(run, pair, "*o_proj", 1))["layers.1.self_attn.o_proj.left"]
    assert only.source["gap"] == pytest.approx((spectrum[0] - spectrum[1]) / spectrum[0])
    assert only.source["gap"] > 0.9


def test_mistakes(tmp_path: Path, trained: dict) -> None:
    run, pair, *_ = trained["llama"]
    with pytest.raises(BadInput, match=r"matches no measured matrix.*self_attn.o_proj"):
        from_run(run, pair, "layers.0.self_attn.o_prj", 4)
    with pytest.raises(BadInput, match=r"kept 4 vectors.*--folded"):
        from_run(run, pair, "*", 5)
    with pytest.raises(BadInput, match="--top 0"):
        from_run(run, pair, "*", 0)
    base = tiny_tensors()
    sides = [write_checkpoint(tmp_path / name, base, tiny_config()) for name in ("base", "tuned")]
    same, same_pair = measured(tmp_path, *sides)
    with pytest.raises(BadInput, match="is zero"):
        from_run(same, same_pair, "*o_proj", 1)
    write_checkpoint(tmp_path / "tuned", perturb(base), tiny_config())
    with pytest.raises(Refused, match="has changed since"):
        pair_of(same)
    bare = {name: t for name, t in base.items() if "layernorm" not in name}
    sides = [write_checkpoint(tmp_path / f"bare_{i}", t, tiny_config()) for i, t in enumerate((bare, perturb(bare)))]
    run = measure_diff(Pair.open(*sides), tmp_path / "bare", top=4, context=False, nulls="off", threads=1)
    with pytest.raises(BadInput, match="no norm before"):
        from_run(run, pair_of(run), "*q_proj", 1)
    assert from_run(run, pair_of(run), "*down_proj", 1)
