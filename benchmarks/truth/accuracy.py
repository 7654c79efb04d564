"""Parts `sigma`, `directions` and `intervals`: numbers that have an exact or a theoretical value to be held against."""

import numpy as np
from scipy.linalg import svdvals
from scipy.stats import binom

from deltalens.spectrum.gram import long_vectors, short_vectors
from deltalens.statistics import wilson
from truth.planted import find, frame, generator, rounded, target, threshold, weights
from truth.svg import Series, chart

SHAPES = [(1, 50), (64, 64), (300, 200), (128, 512), (256, 256), (256, 768), (512, 512)]
SIGMA_GOAL = 1e-6


def spectra(rng: np.random.Generator, m: int, n: int) -> dict[str, np.ndarray]:
    """Matrices of one shape whose spectra are hard in different ways."""
    q = min(m, n)
    ranks = np.arange(q)
    shapes = {
        "geometric to 1e-8": 10.0 ** (-8 * ranks / max(q - 1, 1)),
        "power law": (1.0 + ranks) ** -0.7,
        "four equal, rest 0": (ranks < 4).astype(float),
        "all equal": np.ones(q),
        "pairs, gap 1e-6": 1.0 - ranks // 2 / q + 1e-6 * (ranks % 2),
        "one 1e5 above the rest": np.where(ranks == 0, 1e5, 1.0),
    }
    left, right = frame(rng, m, q), frame(rng, n, q)
    return {"Gaussian": rng.standard_normal((m, n))} | {name: (left * s) @ right.T for name, s in shapes.items()}


def run_sigma(quick: bool) -> dict:
    """Largest |σ − σ_LAPACK|/σ₁ over the whole spectrum, per shape, spectrum and dtype."""
    cells = []
    for m, n in SHAPES[:4] if quick else SHAPES:
        for name, x in spectra(generator("sigma", m, n), m, n).items():
            # Stored pairs get an update of a tenth of the weights, so that the grid shapes it and does not erase it.
            update = x * (0.002 / np.sqrt(np.mean(x**2)))
            for dtype in ("F32", "BF16", "F16"):
                if dtype == "F32":
                    delta = x.astype(np.float32)
                else:
                    base = weights(generator("sigma", m, n, dtype), m, n, dtype)
                    delta = rounded(base + update, dtype) - base
                exact = svdvals(delta.astype(np.float64))
                error = float(np.max(np.abs(find(delta, 0).sigma - exact)) / exact[0])
                cells.append({"m": m, "n": n, "spectrum": name, "dtype": dtype, "error": error})
    return {"cells": cells}


def judge_sigma(data: dict) -> list[dict]:
    """One target: the worst error of all."""
    worst = max(data["cells"], key=lambda c: c["error"])
    place = f"worst: {worst['m']}×{worst['n']}, {worst['spectrum']}, {worst['dtype']}"
    name = "σ against float64 LAPACK, whole spectrum"
    met = worst["error"] <= SIGMA_GOAL
    return [target(name, "≤ 1e-6·σ₁", f"{worst['error']:.1e}·σ₁", met, len(data["cells"]), place)]


def show_sigma(data: dict) -> tuple[str, dict[str, str]]:
    """A table of the worst error per spectrum and dtype."""
    names = list(dict.fromkeys(c["spectrum"] for c in data["cells"]))
    shapes = ", ".join(dict.fromkeys(f"{c['m']}×{c['n']}" for c in data["cells"]))
    lines = [
        f"Largest error over the shapes {shapes}, in units of σ₁. The reference is `scipy.linalg.svdvals` of the same",
        "float32 delta in float64; σ comes from a float64 Gram matrix, which resolves 1e-8·σ₁ and no less: an error of",
        "that size is the square root of float64's ε and stands where the true σ is zero.",
        "",
        "| spectrum | F32 | BF16 pair | F16 pair |",
        "|---|---|---|---|",
    ]
    for name in names:
        worst = [
            max(c["error"] for c in data["cells"] if c["spectrum"] == name and c["dtype"] == dtype)
            for dtype in ("F32", "BF16", "F16")
        ]
        lines.append(f"| {name} | " + " | ".join(f"{w:.1e}" for w in worst) + " |")
    return "\n".join(lines), {}


STRENGTHS = [1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0]
WITHIN = 0.02


def cosines(strength: float, m: int, n: int) -> tuple[float, float]:
    """Limits of cos² between the planted and the observed vector, short side and long side.

    Benaych-Georges and Nadakuditi (2012), unit noise, in x = s/√long and β = short/long; 0 below the threshold.
    """
    q, p = min(m, n), max(m, n)
    x, beta = (strength * threshold(m, n)) ** 2 / p, q / p  # x is the square of theirs
    if strength <= 1:
        return 0.0, 0.0
    return 1 - beta * (1 + x) / (x * (x + beta)), 1 - (beta + x) / (x * (x + 1))


def run_directions(quick: bool) -> dict:
    """Mean cos² of the top vectors with the one planted pair, per shape, strength and side."""
    cells = []
    for m, n in [(256, 256)] if quick else [(128, 128), (256, 768), (512, 512)]:
        trials = 12 if quick else 60
        for strength in STRENGTHS:
            rng = generator("directions", m, n, strength)
            got = []
            for trial in range(trials):
                left, right = frame(rng, m, 1), frame(rng, n, 1)
                x = rng.standard_normal((m, n)) + strength * threshold(m, n) * left @ right.T
                found = find(x, trial)
                short = short_vectors(found.form, 1)
                long = long_vectors(found.delta.blocks(), short, found.sigma[:1])
                truth = (right, left) if found.delta.tall else (left, right)
                got.append([float(v[:, 0] @ t[:, 0]) ** 2 for v, t in zip((short, long), truth, strict=True)])
            mean, error = np.mean(got, 0), np.std(got, 0, ddof=1) / trials**0.5
            for i, side in enumerate(("short", "long")):
                theory = cosines(strength, m, n)[i]
                where = {"m": m, "n": n, "strength": strength, "side": side, "trials": trials}
                cells.append(where | {"mean": float(mean[i]), "se": float(error[i]), "theory": theory})
    return {"cells": cells}


def judge_directions(data: dict) -> list[dict]:
    """Agreement with theory where the finite size no longer blurs the transition."""
    strong = [c for c in data["cells"] if c["strength"] >= 1.5]
    worst = max(strong, key=lambda c: abs(c["mean"] - c["theory"]) - 2 * c["se"])
    gap = worst["mean"] - worst["theory"]
    place = (
        f"worst: {worst['side']} side of {worst['m']}×{worst['n']} at {worst['strength']} ×, mean {worst['mean']:.3f} "
        f"against {worst['theory']:.3f}. The goal is ours (no number is promised); theory is the infinite-size limit."
    )
    met = abs(gap) - 2 * worst["se"] <= WITHIN
    name = "cos² of the top vector against spiked-model theory, ≥ 1.5 × threshold"
    return [target(name, f"≤ {WITHIN} beyond 2 SE", f"{gap:+.3f} ± {worst['se']:.3f}", met, worst["trials"], place)]


def show_directions(data: dict) -> tuple[str, dict[str, str]]:
    """Table and plot over strength."""
    lines = [
        "One planted pair in i.i.d. noise: mean cos² (± standard error) between the observed top vector and the",
        "planted one. At 1 × theory says 0 in the limit; at finite size the transition is soft.",
        "",
        "| shape | side | " + " | ".join(f"{s:g} ×" for s in STRENGTHS) + " |",
        "|---|---|" + "---|" * len(STRENGTHS),
    ]
    series = []
    for m, n in dict.fromkeys((c["m"], c["n"]) for c in data["cells"]):
        for side in ("short", "long"):
            row = [c for c in data["cells"] if (c["m"], c["n"], c["side"]) == (m, n, side)]
            numbers = [f"{c['mean']:.3f} ± {c['se']:.3f} (theory {c['theory']:.3f})" for c in row]
            lines.append(f"| {m}×{n} | {side} | " + " | ".join(numbers) + " |")
            if m == n and side == "long":
                continue  # the two sides of a square matrix share one theory
            label = f"{m}×{n}" + ("" if m == n else f", {side} side")
            series.append(Series(label, [c["strength"] for c in row], [c["mean"] for c in row]))
            fine = np.linspace(1, 6, 101).tolist()
            index = 0 if side == "short" else 1
            series.append(Series("", fine, [cosines(s, m, n)[index] for s in fine], curve=True))
    plot = chart(
        "Top vector: observed (marks) and theory (lines)",
        "planted strength / detection threshold σ(mn)^¼",
        "cos² with the planted vector",
        series,
        (1, 6),
        (0, 1),
    )
    return "\n".join(lines), {"directions": plot}


POINTS = [0.01, 0.02, 0.98, 0.99]
SIZES = [10, 20, 30, 50, 100, 200, 500, 1000]


def coverage(n: int, rates: np.ndarray) -> np.ndarray:
    """Exact chance that Wilson's interval of k ~ Binomial(n, p) holds p, for each p."""
    low, high = np.array([wilson(k, n) for k in range(n + 1)]).T
    k = np.arange(n + 1)
    return np.array([float(binom.pmf(k, n, p)[(low <= p) & (p <= high)].sum()) for p in rates])


def run_intervals(quick: bool) -> dict:
    """Mean coverage over p in [.1, .9] per n, and the least coverage at extreme p over every n from 50 up."""
    grid = np.linspace(0.1, 0.9, 81 if quick else 321)
    cells = []
    for n in SIZES:
        inside = coverage(n, grid)
        cells.append({"n": n, "mean": float(inside.mean()), "least": float(inside.min())})
    sizes = range(50, 301, 10) if quick else range(50, 1001)
    table = np.array([coverage(n, np.array(POINTS)) for n in sizes])
    worst = [[float(table[:, i].min()), int(sizes[int(table[:, i].argmin())])] for i in range(len(POINTS))]
    return {"cells": cells, "extreme": worst, "sizes": [sizes[0], sizes[-1], len(sizes)]}


def judge_intervals(data: dict) -> list[dict]:
    """Both clauses of the target."""
    means = [c["mean"] for c in data["cells"]]
    least, at = min(data["extreme"])
    p = POINTS[data["extreme"].index([least, at])]
    first, last, count = data["sizes"]
    return [
        target(
            "Wilson coverage averaged over p in [.1, .9]",
            "93–97 %",
            f"{100 * min(means):.2f}–{100 * max(means):.2f} %",
            min(means) >= 0.93 and max(means) <= 0.97,
            None,
            f"n in {', '.join(map(str, SIZES))}; exact binomial sums, no simulation",
        ),
        target(
            "Wilson coverage at p in {.01, .02, .98, .99}, n ≥ 50",
            "≥ 88 %",
            f"{100 * least:.2f} %",
            least >= 0.88,
            None,
            f"the least of {count} sizes from {first} to {last}, at n = {at}, p = {p}; exact",
        ),
    ]


def show_intervals(data: dict) -> tuple[str, dict[str, str]]:
    """Both tables."""
    lines = ["| n | mean coverage, p in [.1, .9] | least coverage there |", "|---|---|---|"]
    lines += [f"| {c['n']} | {100 * c['mean']:.2f} % | {100 * c['least']:.2f} % |" for c in data["cells"]]
    lines += ["", "| p | least coverage over the sizes from 50 | at n |", "|---|---|---|"]
    lines += [f"| {p} | {100 * c:.2f} % | {n} |" for p, (c, n) in zip(POINTS, data["extreme"], strict=True)]
    return "\n".join(lines), {}
