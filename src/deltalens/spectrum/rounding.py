"""Round float32 numbers to the grid of a stored dtype, as writing a checkpoint would."""

import numpy as np
from jaxtyping import Float32

from deltalens.checkpoint.dtypes import READABLE


def to_grid(x: Float32[np.ndarray, "*shape"], dtype: str) -> Float32[np.ndarray, "*shape"]:
    """The float32 values that a tensor stored as `dtype` would be read back with; rounds to nearest, ties to even.

    Args:
        x: Values; left as they are (float32 and float64 storage return the same array).
        dtype: BF16, F16, F32 or F64 (which is read as float32).

    Raises:
        ValueError: Another dtype, whose values mean nothing without scales.
    """
    if dtype not in READABLE:
        raise ValueError(f"{dtype} is not a dtype that weights are written in")
    if dtype == "F16":
        with np.errstate(over="ignore", under="ignore"):  # beyond 65504 fp16 holds Inf, as torch's cast does
            return x.astype(np.float16).astype(np.float32)
    if dtype == "BF16":
        # A bfloat16 is the upper half of a float32: add just under half a step, and the kept half's last bit for ties.
        bits = x.view(np.uint32)
        rounded = bits >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded &= 0xFFFF0000
        return rounded.view(np.float32)
    return x
