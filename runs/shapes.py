"""Sparse checkpoints with the shapes of well-known models, so that `deltalens plan` says what measuring them takes.

Usage: python runs/shapes.py DIR       (no weights: the files are holes, and take no room on disk)
"""

import json
import struct
import sys
from pathlib import Path

# hidden, inner, layers, query heads, key-value heads, head size, vocabulary, tied, biases of q, k, v, norms of q and k
MODELS = {
    "Qwen2.5-Math-1.5B": (1536, 8960, 28, 12, 2, 128, 151936, True, True, False),
    "R1-Distill-Qwen-1.5B": (1536, 8960, 28, 12, 2, 128, 151936, False, True, False),
    "Qwen2.5-Math-7B": (3584, 18944, 28, 28, 4, 128, 152064, False, True, False),
    "R1-Distill-Qwen-7B": (3584, 18944, 28, 28, 4, 128, 152064, False, True, False),
    "Qwen3-4B-Instruct-2507": (2560, 9728, 36, 32, 8, 128, 151936, True, False, True),
    "Qwen3-4B-Thinking-2507": (2560, 9728, 36, 32, 8, 128, 151936, True, False, True),
    "Qwen2.5-32B": (5120, 27648, 64, 40, 8, 128, 152064, False, True, False),
    "QwQ-32B": (5120, 27648, 64, 40, 8, 128, 152064, False, True, False),
}


def write(folder: Path, name: str) -> None:
    """config.json and one sparse safetensors file in bfloat16."""
    d, inner, layers, heads, kv, size, vocabulary, tied, biased, normed = MODELS[name]
    shapes = {"model.embed_tokens.weight": [vocabulary, d], "model.norm.weight": [d]}
    if not tied:
        shapes["lm_head.weight"] = [vocabulary, d]
    for i in range(layers):
        at = f"model.layers.{i}."
        rows = {"q": heads * size, "k": kv * size, "v": kv * size}
        shapes |= {f"{at}self_attn.{p}_proj.weight": [n, d] for p, n in rows.items()}
        shapes |= {f"{at}self_attn.{p}_proj.bias": [n] for p, n in rows.items() if biased}
        shapes |= {f"{at}self_attn.{p}_norm.weight": [size] for p in "qk" if normed}
        shapes[f"{at}self_attn.o_proj.weight"] = [d, heads * size]
        shapes |= {f"{at}mlp.{p}_proj.weight": [inner, d] for p in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = [d, inner]
        shapes |= {f"{at}{p}_layernorm.weight": [d] for p in ("input", "post_attention")}
    header, start = {}, 0
    for tensor, shape in sorted(shapes.items()):
        stop = start + 2 * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
        header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, stop]}
        start = stop
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen3ForCausalLM" if normed else "Qwen2ForCausalLM"],
        "model_type": "qwen3" if normed else "qwen2",
        "hidden_size": d,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": size,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }
    (folder / "config.json").write_text(json.dumps(config))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)


if __name__ == "__main__":
    for one in MODELS:
        write(Path(sys.argv[1]) / one, one)
