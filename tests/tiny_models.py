"""Tiny random transformers of several architectures, one per way in which blocks differ."""

import functools
from typing import Any

import torch

ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "olmo2", "gpt2", "opt", "gpt_neox"]
GROUPED = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "olmo2"]
"""Those with four query heads on two key-value heads."""

VOCABULARY, WIDTH, LAYERS, HEADS, HEAD = 128, 32, 3, 4, 8


def tiny(architecture: str, **changes: Any) -> Any:
    """A random causal language model away from ties; every eighth id ends a text, so that rows stop apart."""
    import transformers

    torch.manual_seed(5)
    common = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": None}
    match architecture:
        case "gpt2":
            sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 128}
            config: Any = transformers.GPT2Config(vocab_size=VOCABULARY, **sizes, **special, **changes)
        case "opt":
            sizes = {"ffn_dim": 64, "word_embed_proj_dim": WIDTH, "max_position_embeddings": 128}
            config = transformers.OPTConfig(**common, **sizes, **changes)
        case "gpt_neox":
            sizes = {"intermediate_size": 64, "max_position_embeddings": 128}
            config = transformers.GPTNeoXConfig(**common, **sizes, **special, **changes)
        case _:
            names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral", "gemma2": "Gemma2"}
            names |= {"olmo2": "Olmo2", "phi": "Phi", "granite": "Granite", "mixtral": "Mixtral"}
            sizes = {"intermediate_size": 64, "num_key_value_heads": 2, **special}
            sizes |= {"head_dim": HEAD} if architecture in ("qwen3", "gemma2") else {}
            # Shorter than the texts: one layer in two (Gemma 2) or every one slides.
            sizes |= {"sliding_window": 8} if architecture in ("mistral", "gemma2") else {}
            sizes |= {"attn_logit_softcapping": 1.0} if architecture == "gemma2" else {}  # low enough to be felt
            kind = getattr(transformers, f"{names[architecture]}Config")
            config = kind(**common, **sizes | changes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0 if p.ndim == 2 else 1.0)
    model.generation_config.eos_token_id = list(range(1, VOCABULARY, 8))
    return model.eval()


@functools.cache
def shared(architecture: str) -> Any:
    """The same model for every test that leaves it as it was."""
    return tiny(architecture)


def texts(n: int = 5, seed: int = 0) -> list[list[int]]:
    """Rows of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in (9, 4, 12, 7, 3)[:n]]
