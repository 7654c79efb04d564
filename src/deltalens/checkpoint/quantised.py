"""Tell a quantised checkpoint, whose numbers are not its weights, by what it says or by what it stores."""

from typing import Any

from deltalens.checkpoint.dtypes import DTYPES
from deltalens.checkpoint.source import Checkpoint

_SIDECARS = (
    (".weight_scale_inv", "fp8 (block scales)"),
    (".g_idx", "gptq"),
    (".qzeros", "gptq or awq"),
    (".qweight", "gptq or awq"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes nf4"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes fp4"),
    (".SCB", "bitsandbytes int8"),
    (".weight_packed", "compressed-tensors"),
    ("_blocks", "mxfp4"),
)


def quantisation(ckpt: Checkpoint) -> str | None:
    """The format that a checkpoint is quantised in, None if its stored numbers are its weights."""
    return _declared(ckpt.setting("quantization_config"), ckpt.config.get("quantization")) or _stored(ckpt)


def _declared(hugging_face: Any, mlx: Any) -> str | None:
    if isinstance(hugging_face, dict) and hugging_face:
        method = hugging_face.get("quant_method")
        if isinstance(method, str) and method:
            return method
        if hugging_face.get("load_in_4bit") is True or hugging_face.get("load_in_8bit") is True:
            return "bitsandbytes"
        return "quantization_config without a method"
    if isinstance(mlx, dict) and mlx:
        bits = mlx.get("bits")
        return f"mlx {bits}-bit" if isinstance(bits, int) else "mlx"
    return None


def _stored(ckpt: Checkpoint) -> str | None:
    tensors = ckpt.tensors
    for suffix, method in _SIDECARS:
        for name in tensors:
            if not name.endswith(suffix):
                continue
            if suffix != "_blocks" or name.removesuffix(suffix) + "_scales" in tensors:
                return method
    for name, info in tensors.items():
        if info.dtype == "U32" and name.endswith(".weight"):
            module = name.removesuffix(".weight")
            if f"{module}.scales" in tensors:
                return "mlx"
        dtype = DTYPES.get(info.dtype)
        if dtype is not None and dtype.floating and dtype.bits <= 8:
            return f"raw {info.dtype}"
    return None
