"""Part `zeros`: what the dead-zone fit says of updates whose scale and sparsity are known, traps included."""

from collections.abc import Callable

import numpy as np

from deltalens.spectrum.deadzone import DENSE, Cells, fit
from truth.planted import WEIGHT, frame, generator, rate, rounded, steps, target, weights
from truth.svg import Series, chart

SCALE_GOAL = 0.03
SHARE_GOAL = 0.03
"""Largest error of a stated sparsity that does not count as wrong: what the module promises of it."""

Update = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def _gaussian(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    return rng.standard_normal(base.shape)


def _masked(share: float, law: Update = _gaussian) -> Update:
    """An update that leaves `share` of the entries alone."""
    return lambda rng, base: law(rng, base) * (rng.random(base.shape) >= share)


def _rows_masked(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    return _gaussian(rng, base) * (np.arange(len(base)) % 2)[:, None]


def _product(rank: int) -> Update:
    """Low rank: entries are sums of products, peaked at 0 and heavy-tailed."""
    return lambda rng, base: frame(rng, base.shape[0], rank) @ frame(rng, base.shape[1], rank).T


def _row_scaled(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    return _gaussian(rng, base) * np.exp(rng.normal(0, 0.5, (len(base), 1)))


LAWS: dict[str, tuple[Update, float]] = {
    "Gaussian": (_gaussian, 0.0),
    "Laplace": (lambda rng, base: rng.laplace(size=base.shape), 0.0),
    "Student t₃": (lambda rng, base: rng.standard_t(3, base.shape), 0.0),
    "row-scaled": (_row_scaled, 0.0),
    "rank 4": (_product(4), 0.0),
    "50 % sparse": (_masked(0.5), 0.5),
    "80 % sparse": (_masked(0.8), 0.8),
    "95 % sparse": (_masked(0.95), 0.95),
    "50 % sparse Laplace": (_masked(0.5, lambda rng, base: rng.laplace(size=base.shape)), 0.5),
    "every other row": (_rows_masked, 0.5),
    "trap: ∝ |w|": (lambda rng, base: _gaussian(rng, base) * np.abs(base), 0.0),
    "trap: ∝ √|w|": (lambda rng, base: _gaussian(rng, base) * np.sqrt(np.abs(base)), 0.0),
    "trap: rank 1": (_product(1), 0.0),
    "trap: ± one size": (lambda rng, base: rng.choice([-1.0, 1.0], base.shape), 0.0),
    "trap: uniform": (lambda rng, base: rng.uniform(-1, 1, base.shape), 0.0),
}
"""Updates and the share of entries that they never move."""

HISTORIES = ["trap: base rounded too", "trap: trained in 16 bits"]
"""Pairs that break the assumption that a float32 master left the base's grid once and was rounded once."""

SCALES = [1e-6, 1e-5, 1e-4, 1e-3]
STEPS_TRAINED = 30


def pair(rng: np.random.Generator, law: str, scale: float, d: int, dtype: str) -> tuple[np.ndarray, np.ndarray, float]:
    """(base, tuned, true rms over the entries that moved) with the update scaled to rms `scale` there."""
    base = weights(rng, d, d, dtype)
    if law == "trap: base rounded too":
        master = (WEIGHT * rng.standard_normal((d, d))).astype(np.float32)
        return rounded(master, dtype), rounded(master + scale * rng.standard_normal((d, d)), dtype), scale
    if law == "trap: trained in 16 bits":
        tuned = base
        for _ in range(STEPS_TRAINED):
            tuned = rounded(tuned + scale / STEPS_TRAINED**0.5 * rng.standard_normal((d, d)), dtype)
        return base, tuned, scale
    update = LAWS[law][0](rng, base)
    moved = update[update != 0]
    update *= scale / np.sqrt(np.mean(moved**2))
    return base, rounded(base + update, dtype), scale


def run_zeros(quick: bool) -> dict:
    """Verdict, scale and sparsity against the truth, per law, size of update and dtype."""
    cells = []
    d, trials = (512, 1) if quick else (1024, 4)
    for dtype in ("BF16",) if quick else ("BF16", "F16"):
        for law in [*LAWS, *HISTORIES]:
            for scale in SCALES[1:3] if quick else SCALES:
                rng = generator("zeros", dtype, law, scale)
                share = LAWS[law][1] if law in LAWS else 0.0
                for _ in range(trials):
                    base, tuned, true = pair(rng, law, scale, d, dtype)
                    delta = tuned - base
                    counted = Cells.empty()
                    counted.add(base, delta, delta.astype(np.float64) ** 2)
                    found = fit(counted, dtype)
                    cells.append(
                        {
                            "dtype": dtype,
                            "law": law,
                            "scale": scale,
                            "share": share,
                            "zeros": float(np.mean(delta == 0)),
                            "steps": float(scale / np.median(steps(base, dtype))),
                            "verdict": found.verdict,
                            "reason": found.reason,
                            "found_share": found.sparsity,
                            "ratio": None if found.scale is None else float(found.scale / true),
                        }
                    )
    return {"cells": cells, "d": d}


def wrong(cell: dict) -> str | None:
    """Why a verdict is wrong, None when it is right or none was given."""
    if cell["verdict"] not in ("dense", "sparse"):
        return None
    if cell["verdict"] == "dense" and cell["share"] > DENSE:
        return f"called dense, {100 * cell['share']:.0f} % never moved"
    if cell["verdict"] == "sparse" and abs(cell["found_share"] - cell["share"]) > SHARE_GOAL:
        return f"sparsity {cell['found_share']:.2f} stated, {cell['share']:.2f} true"
    return None


def judge_zeros(data: dict) -> list[dict]:
    """Never conclusive and wrong; the scale within 3 % where one is stated."""
    cells = data["cells"]
    sure = [c for c in cells if c["verdict"] in ("dense", "sparse")]
    bad = [c for c in sure if wrong(c)]
    stated = [c for c in cells if c["ratio"] is not None]
    off = [c for c in stated if abs(c["ratio"] - 1) > SCALE_GOAL]
    trap = [c for c in cells if c["law"].startswith("trap")]
    caught = [c for c in trap if not wrong(c) and (c["ratio"] is None or abs(c["ratio"] - 1) <= SCALE_GOAL)]
    out = [
        target(
            "dead zone: conclusive and wrong about sparsity",
            "never",
            f"{len(bad)} of {len(sure)}",
            not bad,
            len(sure),
            "; ".join(dict.fromkeys(f"{c['law']}, {c['dtype']}, {c['scale']:.0e}: {wrong(c)}" for c in bad[:6]))
            or f"{len(sure)} of {len(cells)} fits were conclusive",
        ),
        target(
            "dead zone: stated scale within 3 % of the truth",
            "always",
            f"{len(stated) - len(off)} of {len(stated)}",
            not off,
            len(stated),
            "; ".join(
                dict.fromkeys(
                    f"{c['law']}, {c['dtype']}, {c['scale']:.0e}: off by {c['ratio'] - 1:+.1%}" for c in off[:6]
                )
            )
            or f"largest miss {max((abs(c['ratio'] - 1) for c in stated), default=0):.1%}",
        ),
        target(
            "dead zone: traps not fallen for", "all", rate(len(caught), len(trap)), len(caught) == len(trap), len(trap)
        ),
    ]
    return out


def show_zeros(data: dict) -> tuple[str, dict[str, str]]:
    """Per law and size: how often conclusive, the sparsity found and the scale's ratio to the truth."""
    cells = data["cells"]
    scales = sorted({c["scale"] for c in cells})
    lines = [
        f"Updates with a known share of untouched entries and a known rms over the others, on {data['d']}×{data['d']}",
        f"weights N(0, {WEIGHT}²). Per size of update: observed zeros → verdict (share of trials when they differ),",
        "sparsity found, scale found ÷ truth. *inconclusive* is an answer, not a miss. A stated sparsity further than",
        ".03 from the truth, or a stated scale off by more than 3 %, is **bold** and counts as wrong.",
        "",
        "| dtype | update | true sparsity | " + " | ".join(f"rms {s:.0e}" for s in scales) + " |",
        "|---|---|---|" + "---|" * len(scales),
    ]
    for dtype, law in dict.fromkeys((c["dtype"], c["law"]) for c in cells):
        row = []
        for scale in scales:
            here = [c for c in cells if (c["dtype"], c["law"], c["scale"]) == (dtype, law, scale)]
            row.append(_cell(here))
        share = next(c["share"] for c in cells if c["law"] == law)
        lines.append(f"| {dtype} | {law.replace('|', '&#124;')} | {share:g} | " + " | ".join(row) + " |")
    lines += [
        "",
        "The last two traps break the model itself: a base that was rounded as well (`both_rounded`, for which",
        f"`measure` does not ask the question), and training that rounds after each of {STEPS_TRAINED} steps, so that",
        "small updates are lost one by one. For both the truth is the update that was intended.",
    ]
    series = []
    for law in ("Gaussian", "50 % sparse", "80 % sparse", "95 % sparse", "rank 4", "trap: ∝ |w|"):
        here = [c for c in cells if c["law"] == law and c["dtype"] == "BF16"]
        zeros = [float(np.mean([c["zeros"] for c in here if c["scale"] == s])) for s in scales]
        series.append(Series(law, np.log10(scales).tolist(), zeros))
    plot = chart(
        "Zeros that the fit has to explain, bf16 weights of 0.02",
        "log₁₀ of the update's rms",
        "share of entries with Δ = 0",
        series,
        (-6.2, -2.8),
        (0, 1),
    )
    return "\n".join(lines), {"zeros": plot}


def _cell(here: list[dict]) -> str:
    """One table cell: all trials of a law at one size."""
    if not here:
        return ""
    words = [c["verdict"] for c in here]
    word = max(dict.fromkeys(words), key=words.count)
    text = f"{np.mean([c['zeros'] for c in here]):.2f} → {word}"
    if words.count(word) < len(words):
        text += f" ({words.count(word)}/{len(words)})"
    shares = [c["found_share"] for c in here if c["found_share"] is not None]
    ratios = [c["ratio"] for c in here if c["ratio"] is not None]
    if shares:
        text += f", π₀ {np.mean(shares):.2f}"
    if ratios:
        text += f", scale × {np.mean(ratios):.3f}"
    bad = any(wrong(c) or (c["ratio"] is not None and abs(c["ratio"] - 1) > SCALE_GOAL) for c in here)
    return f"**{text}**" if bad else text
