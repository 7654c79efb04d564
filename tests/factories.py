"""Tiny checkpoints for every test: real safetensors directories with planted low-rank deltas."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TEXT = {
    "llama": ("LlamaForCausalLM", False),
    "qwen2": ("Qwen2ForCausalLM", True),
    "qwen3": ("Qwen3ForCausalLM", False),
}


def tiny_config(arch: str = "qwen3", **changes: Any) -> dict[str, Any]:
    """A config.json that fits the defaults of `tiny_tensors`; keyword arguments change it."""
    config: dict[str, Any] = {
        "architectures": [TEXT[arch][0]],
        "model_type": arch,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 50,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    return config | changes


def tiny_tensors(
    seed: int = 0,
    layers: int = 2,
    hidden: int = 32,
    ff: int = 64,
    heads: int = 4,
    kv: int = 2,
    vocab: int = 50,
    dtype: torch.dtype = torch.bfloat16,
    tied: bool = True,
    arch: str = "qwen3",
) -> dict[str, torch.Tensor]:
    """Random weights under the names that transformers stores for one architecture."""
    generator = torch.Generator().manual_seed(seed)
    head = hidden // heads

    def matrix(rows: int, cols: int) -> torch.Tensor:
        return (torch.randn(rows, cols, generator=generator) * 0.02).to(dtype)

    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden)}
    for n in range(layers):
        at = f"model.layers.{n}."
        tensors[at + "input_layernorm.weight"] = torch.ones(hidden, dtype=dtype)
        for part, rows in (("q", heads * head), ("k", kv * head), ("v", kv * head)):
            tensors[at + f"self_attn.{part}_proj.weight"] = matrix(rows, hidden)
            if TEXT[arch][1]:
                tensors[at + f"self_attn.{part}_proj.bias"] = matrix(1, rows)[0]
        tensors[at + "self_attn.o_proj.weight"] = matrix(hidden, heads * head)
        if arch == "qwen3":
            tensors[at + "self_attn.q_norm.weight"] = torch.ones(head, dtype=dtype)
            tensors[at + "self_attn.k_norm.weight"] = torch.ones(head, dtype=dtype)
        tensors[at + "post_attention_layernorm.weight"] = torch.ones(hidden, dtype=dtype)
        tensors[at + "mlp.gate_proj.weight"] = matrix(ff, hidden)
        tensors[at + "mlp.up_proj.weight"] = matrix(ff, hidden)
        tensors[at + "mlp.down_proj.weight"] = matrix(hidden, ff)
    tensors["model.norm.weight"] = torch.ones(hidden, dtype=dtype)
    if not tied:
        tensors["lm_head.weight"] = matrix(vocab, hidden)
    return tensors


def perturb(
    tensors: dict[str, torch.Tensor],
    rank: int = 2,
    sigma: float = 0.1,
    noise: float = 0.0,
    seed: int = 1,
    dtype: torch.dtype | None = None,
) -> dict[str, torch.Tensor]:
    """The tuned side: every matrix plus a delta of `rank` equal singular values `sigma` and Gaussian `noise`.

    Sums are taken in float32 and rounded once, to `dtype` (else the tensor's own). Vectors get the noise only.
    """
    generator = torch.Generator().manual_seed(seed)
    tuned = {}
    for name, tensor in tensors.items():
        wide = tensor.float() + noise * torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 2 and rank:
            k = min(rank, *tensor.shape)
            left, right = (torch.linalg.qr(torch.randn(n, k, generator=generator))[0] for n in tensor.shape)
            wide = wide + sigma * left @ right.T
        tuned[name] = wide.to(dtype or tensor.dtype)
    return tuned


def write_checkpoint(
    folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None, shards: int = 1
) -> Path:
    """Write a checkpoint directory: one `model.safetensors`, or `shards` of them with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_pair(folder: Path, arch: str = "qwen3", shards: int = 1, **planted: Any) -> tuple[Path, Path]:
    """A tiny base and its tuned sibling in one folder; keyword arguments go to `perturb`."""
    base = tiny_tensors(arch=arch)
    config = tiny_config(arch)
    tuned = perturb(base, **planted)
    return (
        write_checkpoint(folder / "base", base, config),
        write_checkpoint(folder / "tuned", tuned, config, shards),
    )


def write_tokenizer(
    folder: Path, tokens: list[str] | dict[str, int], added: dict[int, str] | None = None, kind: str = "BPE"
) -> Path:
    """A tokenizer.json beside a checkpoint: a list of tokens counts from 0, `kind` Unigram stores pairs."""
    ids = {token: i for i, token in enumerate(tokens)} if isinstance(tokens, list) else tokens
    vocab: Any = [[token, -1.0] for token in ids] if kind == "Unigram" else ids
    content = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": token, "special": True} for i, token in (added or {}).items()],
        "model": {"type": kind, "vocab": vocab},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder
