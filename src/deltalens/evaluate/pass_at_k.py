"""pass@k, unbiased: the chance that at least one of k samples is right, from n ≥ k samples."""

from math import comb


def pass_at_k(n: int, correct: int, k: int) -> float:
    """1 − C(n − c, k)/C(n, k), the unbiased estimate for one item (2107.03374, §2.1).

    Args:
        n: Samples drawn.
        correct: How many were right, 0 to n.
        k: Samples that may be tried, 1 to n.

    Raises:
        ValueError: The counts do not satisfy 0 ≤ correct ≤ n and 1 ≤ k ≤ n.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} samples with {correct} right is not defined")
    return 1.0 - comb(n - correct, k) / comb(n, k)
