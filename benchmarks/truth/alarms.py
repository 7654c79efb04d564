"""Part `alarms`: how often does a delta without structure show a spike?"""

import numpy as np

from deltalens.spectrum.edge import MARGIN, signs
from deltalens.spectrum.gram import gram, singular_values, tridiagonalise
from deltalens.statistics import wilson
from truth.planted import NOISES, find, generator, rate, target
from truth.svg import Series, chart

GOAL = 0.01
TRIALS = {128: 600, 512: 400}
"""Per noise; without an alarm Wilson's upper bound then lies below the goal."""


def run_alarms(quick: bool) -> dict:
    """Count matrices with at least one spike, per noise and size."""
    cells = []
    for d, trials in ({128: 60} if quick else TRIALS).items():
        for name, draw in NOISES.items():
            rng = generator("alarms", name, d)
            alarms, over_floor, single, ratios = 0, 0, 0, []
            for trial in range(trials):
                x, floor = draw(rng, d, d)
                found = find(x, trial, floor)
                single += found.sigma[0] > max(floor, (1 + MARGIN / d**0.5) * flipped_top(x, trial))
                alarms += found.spikes > 0
                over_floor += bool(found.sigma[0] > floor)
                ratios.append(found.sigma[0] / found.edge)
            cells.append(
                {
                    "noise": name,
                    "d": d,
                    "trials": trials,
                    "alarms": alarms,
                    "above_floor": over_floor,
                    "single": int(single),
                    "median": float(np.median(ratios)),
                    "q99": float(np.quantile(ratios, 0.99)),
                }
            )
    return {"cells": cells}


def flipped_top(x: np.ndarray, seed: int) -> float:
    """σ₁ under the first of the three sign flips."""
    flipped = x.astype(np.float32) * signs(0, *x.shape, seed)
    return float(singular_values(tridiagonalise(gram([flipped], x.shape[1])))[0])


def judge_alarms(data: dict) -> list[dict]:
    """One target per noise and size."""
    out = []
    for c in data["cells"]:
        note = f"upper bound {100 * wilson(c['alarms'], c['trials'])[1]:.2f} %"
        name = f"false alarms, {c['noise']}, {c['d']}×{c['d']}"
        met = c["alarms"] / c["trials"] <= GOAL
        out.append(target(name, "≤ 1 %", rate(c["alarms"], c["trials"]), met, c["trials"], note))
    for d in sorted({c["d"] for c in data["cells"]}):
        here = [c for c in data["cells"] if c["d"] == d]
        alarms, trials = sum(c["alarms"] for c in here), sum(c["trials"] for c in here)
        note = f"upper bound {100 * wilson(alarms, trials)[1]:.2f} %; one noise alone may be worse, see its own row"
        out.append(
            target(f"false alarms, all noises pooled, {d}×{d}", "reported", rate(alarms, trials), None, trials, note)
        )
    return out


def show_alarms(data: dict) -> tuple[str, dict[str, str]]:
    """Rates, with how near the noise comes to the edge."""
    lines = [
        "Matrices without structure, each with the rounding floor that `measure` would give it (none for float32).",
        "*Above the floor*: share with σ₁ > `floor_edge` alone: what a reader of the floor alone would call structure.",
        "The last columns are σ₁/`bulk_edge`, median and 99 % quantile: the headroom under the edge. *Exported twice*",
        "is two stochastic roundings of one float32 master, judged under `both_rounded` (rounding to nearest twice",
        "would give Δ = 0); their errors have twice the variance that `noise_sigma` assumes, so that only the",
        "sign-flip edge holds.",
        "",
        "*One E*: what the same margin over one sign flip instead of the largest of three would do.",
        "",
        "| noise | size | trials | with a spike | upper bound | one E | above the floor | median | 99 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in data["cells"]:
        upper = 100 * wilson(c["alarms"], c["trials"])[1]
        share, single = 100 * c["above_floor"] / c["trials"], 100 * c["single"] / c["trials"]
        lines.append(
            f"| {c['noise']} | {c['d']}×{c['d']} | {c['trials']} | {rate(c['alarms'], c['trials'])} | {upper:.2f} % | "
            f"{single:.1f} % | {share:.0f} % | {c['median']:.3f} | {c['q99']:.3f} |"
        )
    sizes = sorted({c["d"] for c in data["cells"]})
    series = []
    for d in sizes:
        row = [c for c in data["cells"] if c["d"] == d]
        bars = [wilson(c["alarms"], c["trials"]) for c in row]
        at = [i + 1 + 0.12 * (2 * sizes.index(d) - len(sizes) + 1) for i in range(len(row))]
        rates = [100 * c["alarms"] / c["trials"] for c in row]
        low, high = zip(*((100 * a, 100 * b) for a, b in bars), strict=True)
        series.append(Series(f"{d}×{d}", at, rates, low=low, high=high, points=True))
    names = list(dict.fromkeys(c["noise"] for c in data["cells"]))
    plot = chart(
        "False alarms per noise (bars: Wilson 95 %)",
        "noise",
        "% of matrices with a spike",
        series,
        (0.5, len(names) + 0.5),
        (0, 3),
        (100 * GOAL, "1 %"),
        [f"{i + 1}  {_short(name)}" for i, name in enumerate(names)],
    )
    return "\n".join(lines), {"alarms": plot}


def _short(name: str) -> str:
    """A noise's name for the axis."""
    for long, brief in (("i.i.d. Gaussian", "i.i.d."), ("row- and column-scaled", "scaled"), ("Student t₃", "t₃")):
        name = name.replace(long, brief)
    name = name.replace("(W + N(0, (ulp/4)²))", " ¼ ulp").replace("(W + N(0, ulp²))", " 1 ulp")
    return name.replace(", master exported twice", " twice")
