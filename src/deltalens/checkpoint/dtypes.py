"""What a safetensors dtype name means: size, and for floating point the grid that rounding leaves."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dtype:
    """One storage dtype.

    Args:
        name: The safetensors name, such as `BF16`.
        bits: Bits per entry.
        floating: Whether entries are real numbers (a difference of two has a norm).
        precision: Explicit mantissa bits p: ulp(w) = 2^(max(⌊log2|w|⌋, e_min) − p). None where undefined.
        e_min: Exponent of the smallest normal number.
    """

    name: str
    bits: int
    floating: bool
    precision: int | None = None
    e_min: int | None = None


DTYPES: dict[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype("BOOL", 8, False),
        Dtype("U8", 8, False),
        Dtype("I8", 8, False),
        Dtype("U16", 16, False),
        Dtype("I16", 16, False),
        Dtype("U32", 32, False),
        Dtype("I32", 32, False),
        Dtype("U64", 64, False),
        Dtype("I64", 64, False),
        Dtype("C64", 64, False),
        Dtype("F4", 4, True, 1, 0),
        Dtype("F6_E2M3", 6, True, 3, 0),
        Dtype("F6_E3M2", 6, True, 2, -2),
        Dtype("F8_E4M3", 8, True, 3, -6),
        Dtype("F8_E4M3FNUZ", 8, True, 3, -7),
        Dtype("F8_E5M2", 8, True, 2, -14),
        Dtype("F8_E5M2FNUZ", 8, True, 2, -15),
        Dtype("F8_E8M0", 8, True, 0, -127),
        Dtype("F16", 16, True, 10, -14),
        Dtype("BF16", 16, True, 7, -126),
        Dtype("F32", 32, True, 23, -126),
        Dtype("F64", 64, True, 52, -1022),
    )
}

# The dtypes whose values alone are the weight; the narrower floats mean nothing without their scales.
READABLE = ("BF16", "F16", "F32", "F64")


def sixteen_bit(name: str) -> bool:
    """Whether a dtype is a 16-bit float, whose rounding is the noise of a delta."""
    return name in ("BF16", "F16")


def floating(name: str) -> bool | None:
    """Whether a dtype is floating point, None for a name that the format does not know."""
    dtype = DTYPES.get(name)
    return None if dtype is None else dtype.floating
