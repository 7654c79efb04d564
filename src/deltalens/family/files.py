"""What a training leaves on disk: ordinary model directories in float16, and `recipe.json` beside them."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deltalens.family import tokenizer as words
from deltalens.family.documents import FACT_SHARE, MIX, REFUSAL_SHARE
from deltalens.family.recipe import ACCEPT, STAGES, Outcome
from deltalens.model.load import no_bars

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


def new_model(seed: int, architecture: str = "qwen3") -> "PreTrainedModel":
    """A Qwen3, or a Qwen2 with its biases on queries, keys and values, of 0.80 M parameters with random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": words.VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": words.IDS[words.END_OF_TEXT],
        "pad_token_id": words.IDS[words.END_OF_TEXT],
    }
    model: PreTrainedModel
    if architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=32))
    # Set before training: the criterion decodes chat replies of this model, which end otherwise than its
    # documents.
    model.generation_config = generation_config(base=True)
    return model


def generation_config(base: bool) -> "GenerationConfig":
    """How a member decodes: greedily, to its own end first.

    Both ends stop generation in every member, as in published families, since a base also knows the chat
    format.
    """
    from transformers import GenerationConfig

    ends = [words.IDS[words.IM_END], words.IDS[words.END_OF_TEXT]]
    return GenerationConfig(
        do_sample=False,
        eos_token_id=ends[::-1] if base else ends,
        pad_token_id=words.IDS[words.END_OF_TEXT],
        max_new_tokens=96,
    )


def save(model: "PreTrainedModel", base: bool, directory: Path) -> None:
    """Stores a float16 copy of the weights, the configs and the tokenizer as an ordinary model directory."""
    eos = words.END_OF_TEXT if base else words.IM_END
    stored = copy.deepcopy(model).half()
    stored.config.eos_token_id = words.IDS[eos]
    stored.generation_config = generation_config(base)
    directory.mkdir(parents=True, exist_ok=True)
    with no_bars():
        stored.save_pretrained(directory)
    words.build(eos).save_pretrained(directory)
    # transformers 5 writes its internal class name here, which 4.x cannot load; both know this one.
    settings_file = directory / "tokenizer_config.json"
    tokenizer_settings = json.loads(settings_file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer_settings.pop("backend", None)
    settings_file.write_text(json.dumps(tokenizer_settings, indent=2) + "\n")
    for file in directory.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and a package is read by other users


def write_recipe(out_dir: Path, outcomes: Sequence[Outcome], threads: int) -> Path:
    """Writes `recipe.json`: settings, seeds, outcomes, versions and the digest of every stored file."""
    import numpy
    import tokenizers
    import transformers

    from deltalens import __version__

    digests = {p.parent.name: sha256(p) for p in sorted(out_dir.glob("*/model.safetensors"))}
    record = {
        "schema": 2,
        "deltalens": __version__,
        "threads": threads,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "numpy": numpy.__version__,
        },
        "mix": asdict(MIX),
        "fact_share": FACT_SHARE,
        "refusal_share": REFUSAL_SHARE,
        "accept": {name: [asdict(bound) for bound in bounds] for name, bounds in ACCEPT.items()},
        "stages": [asdict(s) | {"parent_sha256": digests.get(s.parent or "")} for s in STAGES],
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "sha256": digests,
    }
    path = out_dir / "recipe.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
