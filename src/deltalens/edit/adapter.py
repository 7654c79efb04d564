"""LoRA adapters in PEFT's layout, read and written: ΔW = (α/r)·B·A, never multiplied out."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from deltalens.checkpoint.header import TensorInfo, read_header, read_json
from deltalens.checkpoint.names import stem
from deltalens.checkpoint.read import Reader
from deltalens.checkpoint.write import write_safetensors
from deltalens.errors import BadInput, Refused
from deltalens.store.files import write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.[^.]+)*?(?:\.weight)?")
_MERGE = "merge the adapter into its base model and name that"


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """ΔW = left·right of one module, [out, in]; of an embedding [vocabulary, width].

    Attributes:
        left: [m, r], the scale included.
        right: [r, n].
    """

    left: Float64[np.ndarray, "m r"]
    right: Float64[np.ndarray, "r n"]


def is_adapter(source: str) -> bool:
    """Whether a source is the local directory of an adapter."""
    return (Path(source) / CONFIG).is_file()


def read_adapter(source: str) -> dict[str, Factors]:
    """The factors of every module of an adapter, by the module's name without wrapper.

    Raises:
        BadInput: A file is missing or damaged, or a module has only one of its factors.
        Refused: It changes more than low-rank factors can say (DoRA, trained biases, whole modules).
    """
    folder = Path(source)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("r"), int):
        raise BadInput(f"{folder / CONFIG} does not describe a LoRA adapter")
    _refuse(source, config)
    if not (folder / WEIGHTS).is_file():
        raise BadInput(f"{source} has no {WEIGHTS}", "save the adapter with safetensors")
    parts: dict[tuple[str, bool], dict[str, TensorInfo]] = {}
    for name, info in read_header(folder / WEIGHTS).items():
        found = _KEY.fullmatch(name)
        if found is None or len(info.shape) != 2:
            raise Refused(f"{source} holds {name}, which is no LoRA factor", _MERGE)
        parts.setdefault((found[1], found[2] is not None), {})[found[3]] = info
    made: dict[str, Factors] = {}
    for (module, embedding), pair in parts.items():
        if set(pair) != {"A", "B"}:
            raise BadInput(f"{source} has only one factor of {module}")
        a, b = (_read(pair[which]) for which in "AB")
        if b.shape[1] != a.shape[0]:
            raise BadInput(f"the factors of {module} in {source} do not fit together")
        scale = _scale(config, module)
        made[stem(module)] = Factors(a.T * scale, b.T) if embedding else Factors(b * scale, a)
    return made


def write_adapter(folder: Path, modules: Mapping[str, Factors], embeddings: set[str], base: str, conv1d: bool) -> None:
    """Write factors as an adapter; its scale is 1, so that `lora_B·lora_A` is ΔW.

    Args:
        folder: An existing directory.
        modules: Factors by the module's full name in the model.
        embeddings: Which of them are embeddings.
        base: Name of the model that it is for.
        conv1d: Whether the model keeps its weights as [in, out] (GPT-2).
    """
    tensors: dict[str, np.ndarray] = {}
    for module, f in modules.items():
        key = f"base_model.model.{module}.lora_"
        if module in embeddings:
            pair = {"embedding_A": f.left.T, "embedding_B": f.right.T}
        else:
            pair = {"A.weight": f.right, "B.weight": f.left}
        tensors |= {key + name: np.ascontiguousarray(value, np.float32) for name, value in pair.items()}
    ranks = {module: f.left.shape[1] for module, f in modules.items()}
    entries = [(name, "F32", value.shape) for name, value in tensors.items()]
    write_safetensors(folder / WEIGHTS, entries, tensors.__getitem__, {"format": "pt"})
    largest = max(ranks.values(), default=1)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": conv1d,
        "inference_mode": True,
    }
    write_json(folder / CONFIG, config)


def _refuse(source: str, config: dict[str, Any]) -> None:
    reasons = {
        "peft_type": config.get("peft_type", "LORA") != "LORA",
        "use_dora": bool(config.get("use_dora")),
        "bias": config.get("bias", "none") != "none",
        "modules_to_save": bool(config.get("modules_to_save")),
    }
    for key, wrong in reasons.items():
        if wrong:
            raise Refused(f"{source} is more than a LoRA adapter ({key} = {json.dumps(config[key])})", _MERGE)


def _scale(config: dict[str, Any], module: str) -> float:
    """α/r, or α/√r where the adapter says so, by module."""
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", config["r"]))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """The value for a module: PEFT's keys are the ends of names."""
    found = [value for key, value in (patterns or {}).items() if re.fullmatch(rf"(?:.*\.)?{key}", module)]
    return found[0] if found else default


def _read(info: TensorInfo) -> Float64[np.ndarray, "a b"]:
    with Reader(info) as reader:
        values = reader.all().astype(np.float64)
    if not np.isfinite(values).all():
        raise BadInput(f"{info.name} in {info.file} holds NaN or Inf")
    return values
