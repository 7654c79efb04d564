"""Deltas of a given size: the scale at which a rounded update reaches it."""

from collections.abc import Callable
from math import exp, inf, isfinite, log

from deltalens.store.run import Run


def find_scale(
    reached: Callable[[float], float],
    target: float,
    start: float,
    precision: float,
    steps: int = 24,
    narrow: float = 1e-7,
) -> float:
    """The scale λ at which a size that grows with λ meets a target, by secant steps in log–log inside a bracket (ours).

    Rounding swallows small entries and enlarges others, so a size is not proportional to its scale; 3 or 4 steps are
    usual. Where no scale meets the target (a jump, or a size that rounding alone exceeds) the nearest one tried wins.

    Args:
        reached: Size at a scale; may be 0.
        target: Above zero.
        start: First scale, above zero.
        precision: Relative error that ends the search.
        steps: Most evaluations.
        narrow: Width of the bracket, in log λ, that ends the search: what is left between its ends is a jump.
    """
    low, high = -inf, inf
    at, slope = log(start), 1.0
    best = (inf, at)
    before: tuple[float, float] | None = None
    for _ in range(steps):
        error = log(max(reached(exp(at)), 1e-300) / target)
        best = min(best, (abs(error), at))
        if abs(error) <= precision:
            break
        low, high = (at, high) if error < 0 else (low, at)
        if high - low < narrow:
            break
        if before is not None and (error - before[1]) / (at - before[0]) > 0:
            slope = min(8.0, max(0.05, (error - before[1]) / (at - before[0])))
        before = at, error
        at -= min(2.0, max(-2.0, error / slope))
        if not low < at < high:
            at = (low + high) / 2 if isfinite(high - low) else before[0] + (1.0 if error < 0 else -1.0)
    return exp(best[1])


def size_targets(run: Run) -> dict[str, float]:
    """‖Δ‖ of every measured matrix of a RUN by canonical name: what `--size-matched` scales another pair to."""
    return {r["name"]: r["norm_delta"] for r in run.matrices.to_pylist() if r["status"] == "measured"}
