"""What two configs say differently, and which of it makes the same weights compute another function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deltalens.checkpoint.embedding import tied
from deltalens.checkpoint.source import Checkpoint

SETTINGS = (
    "model_type",
    "architectures",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "norm_type",
    "use_qk_norm",
    "sliding_window",
    "use_sliding_window",
    "partial_rotary_factor",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A config value in which the sides differ."""

    setting: str
    base: Any
    tuned: Any


def differences(base: Checkpoint, tuned: Checkpoint) -> list[Difference]:
    """Every setting in which the sides differ, as their configs have it; none where a side has no config."""
    read: dict[str, Callable[[Checkpoint], Any]] = {key: _named(key) for key in SETTINGS}
    read |= {"rope_theta": rope_theta, "rope_scaling": rope_scaling, "dtype": _dtype, "tied embeddings": tied}
    return _differing(read, base, tuned)


def function_differences(base: Checkpoint, tuned: Checkpoint) -> list[Difference]:
    """The differences that change what the same weights compute, with the values that models take by default."""
    keys = ("hidden_act", "rms_norm_eps", "layer_norm_eps", "norm_type", "use_qk_norm", "partial_rotary_factor")
    keys += ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "num_attention_heads")
    read: dict[str, Callable[[Checkpoint], Any]] = {key: _named(key) for key in keys}
    read |= {
        "num_key_value_heads": lambda c: _or(c.setting("num_key_value_heads"), c.setting("num_attention_heads")),
        "head_dim": _head_dim,
        "rope_theta": lambda c: _or(rope_theta(c), 10000.0),  # the default of every architecture that rotates
        "rope_scaling": rope_scaling,
        "sliding_window": _window,
    }
    return _differing(read, base, tuned)


def rope_theta(ckpt: Checkpoint) -> Any:
    """The base of the rotation's wavelengths; newer configs keep it in `rope_parameters`."""
    inner = ckpt.setting("rope_parameters")
    return _or(inner.get("rope_theta") if isinstance(inner, dict) else None, ckpt.setting("rope_theta"))


def rope_scaling(ckpt: Checkpoint) -> dict[str, Any] | None:
    """How the rotation is stretched, None where it is not; old and new spellings read alike."""
    value = _or(ckpt.setting("rope_parameters"), ckpt.setting("rope_scaling"))
    if not isinstance(value, dict):
        return None
    value = {("rope_type" if key == "type" else key): entry for key, entry in value.items() if key != "rope_theta"}
    if value.get("rope_type") == "default":
        del value["rope_type"]
    return value or None


def _differing(read: dict[str, Callable[[Checkpoint], Any]], base: Checkpoint, tuned: Checkpoint) -> list[Difference]:
    if not base.config or not tuned.config:
        return []
    found = [Difference(key, value(base), value(tuned)) for key, value in read.items()]
    return [entry for entry in found if entry.base != entry.tuned]


def _named(key: str) -> Callable[[Checkpoint], Any]:
    return lambda ckpt: ckpt.setting(key)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _dtype(ckpt: Checkpoint) -> Any:
    """Newer configs call `torch_dtype` `dtype`."""
    return _or(ckpt.setting("dtype"), ckpt.setting("torch_dtype"))


def _head_dim(ckpt: Checkpoint) -> Any:
    said, width, heads = (ckpt.setting(key) for key in ("head_dim", "hidden_size", "num_attention_heads"))
    return width // heads if said is None and type(width) is int and type(heads) is int and heads > 0 else said


def _window(ckpt: Checkpoint) -> Any:
    """The sliding window that is in force: Qwen configs name one that they switch off."""
    switch = ckpt.setting("use_sliding_window")
    qwen = str(ckpt.setting("model_type")).startswith("qwen")
    return None if switch is False or (switch is None and qwen) else ckpt.setting("sliding_window")
