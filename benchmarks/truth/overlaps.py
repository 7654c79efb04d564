"""Overlap p-values where nothing overlaps: they must be uniform (docs/behaviour.md §4)."""

import numpy as np
from scipy.stats import kstest

from deltalens.direction.compare import energies, isotropic, overlap
from deltalens.direction.estimate import difference, permuted, samples
from deltalens.statistics import permutation_p
from truth.planted import SEED, target

DRAWS = 199  # p is then a multiple of .005: fine enough for the test, cheap enough for a thousand trials
WIDTH, RANK = 48, 4
SPREADS = {"equal": 1.0, "unequal": 16.0}
"""Ratio of the largest to the least standard deviation among the directions of the activations."""


def run_overlaps(quick: bool) -> dict:
    """p-values of unrelated directions, per null and spread."""
    trials = 100 if quick else 1000
    cells = []
    for paired in (True, False):
        for spread, ratio in SPREADS.items():
            found = [_difference(paired, ratio, (SEED, paired, int(ratio), i)) for i in range(trials)]
            cells.append({"null": "permuted", "of": "pairs" if paired else "two groups", "spread": spread, "p": found})
    found = [_subspaces((SEED, 7, i)) for i in range(trials)]
    cells.append({"null": "isotropic", "of": f"ranks {RANK} and 1", "spread": "equal", "p": found})
    return {"cells": [cell | {"ks": float(kstest(cell["p"], "uniform").pvalue)} for cell in cells]}


def judge_overlaps(data: dict) -> list[dict]:
    """One target over all cells."""
    worst = min(data["cells"], key=lambda c: c["ks"])
    trials = sum(len(c["p"]) for c in data["cells"])
    note = f"{len(data['cells'])} cells; worst: {worst['null']} null, {worst['of']}, {worst['spread']} spread"
    return [
        target(
            "overlap p-values uniform under the null",
            "KS p > .01",
            f"{worst['ks']:.3f}",
            worst["ks"] > 0.01,
            trials,
            note,
        )
    ]


def show_overlaps(data: dict) -> tuple[str, dict[str, str]]:
    """One table."""
    lines = [
        "A direction and a subspace that have nothing to do with each other: p of their overlap among draws of a null.",
        "",
        "| null | direction of | spread of activations | trials | p ≤ .05 | KS p |",
        "|---|---|---|---|---|---|",
    ]
    for c in data["cells"]:
        low = np.mean(np.array(c["p"]) <= 0.05)
        lines.append(f"| {c['null']} | {c['of']} | {c['spread']} | {len(c['p'])} | {100 * low:.1f} % | {c['ks']:.3f} |")
    return "\n".join(lines), {}


def _difference(paired: bool, ratio: float, seed: tuple[int, ...]) -> float:
    """A difference of means of two groups that do not differ, against a random subspace."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(ratio**0.5, ratio**-0.5, WIDTH)
    first, second = ((rng.standard_normal((40, WIDTH)) * scale).astype(np.float32) for _ in range(2))
    read = samples(first, second, paired)
    basis = np.linalg.qr(rng.standard_normal((WIDTH, RANK)))[0]
    observed = energies(difference(read)[None], basis)[0]
    return permutation_p(observed, energies(permuted(read, DRAWS, int(rng.integers(2**31))), basis))


def _subspaces(seed: tuple[int, ...]) -> float:
    """A random direction against a random subspace."""
    rng = np.random.default_rng(seed)
    a, b = (np.linalg.qr(rng.standard_normal((WIDTH, k)))[0] for k in (RANK, 1))
    return permutation_p(overlap(a, b), isotropic(WIDTH, RANK, 1, DRAWS, int(rng.integers(2**31))))
