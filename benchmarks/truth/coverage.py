"""Part `coverage`: how often the intervals of paired differences, means and effect sizes hold the truth.

Paired differences are exact multinomial sums over every table; the rest is drawn, from populations that behave and
from some that do not. Beside each interval stands the textbook one that it was chosen over.
"""

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
from scipy.special import gammaln, ndtri, xlogy

from deltalens.statistics import auc, bootstrap, cohens_d, newcombe_paired
from truth.planted import generator, target

CARD = 1 - 0.05 / 8
"""The level of every interval that a verdict rests on (.05 over eight questions)."""

RATES = [0.1, 0.3, 0.5, 0.7, 0.9]
EXTREMES = [0.01, 0.02]  # .98 and .99 are their mirror images, exactly: successes and failures change places
PHIS = [0.0, 0.3, 0.6, 0.9]
EXPONENTIAL = "exponential"
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
Interval = Callable[..., tuple[float, float]]


def count(trials: int, draw: Callable[[], tuple], truth: float, ours: Interval, rival: Interval) -> dict[str, int]:
    """How many samples give an interval that holds the truth, ours and the one that it was chosen over."""
    held = np.zeros(2, int)
    for _ in range(trials):
        sample = draw()
        held += [low <= truth <= high for low, high in (ours(*sample), rival(*sample))]
    return {"trials": trials, "hits": int(held[0]), "rival": int(held[1])}


def tables(n: int, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every table of n pairs [tables, 4], and the bounds of its interval."""
    cells = [(e, f, g, n - e - f - g) for e in range(n + 1) for f in range(n + 1 - e) for g in range(n + 1 - e - f)]
    low, high = np.array([newcombe_paired(*cell, level)[1:] for cell in cells]).T
    return np.array(cells), low, high


def run_paired(n: int, level: float) -> dict:
    """Exact coverage over pairs of rates and correlations φ: mean and least within [.1, .9], least near the ends."""
    counts, low, high = tables(n, level)
    ways = gammaln(n + 1) - gammaln(counts + 1).sum(1)
    inside, ends = [], []
    for first in RATES + EXTREMES:
        for second in RATES if first in RATES else [*EXTREMES, *RATES, 0.98, 0.99]:
            for phi in PHIS:
                both = first * second + phi * (first * (1 - first) * second * (1 - second)) ** 0.5
                p = np.array([both, first - both, second - both, 1 - first - second + both])
                if p.min() < -1e-12:
                    continue  # two rates so different cannot be so correlated
                chance = np.exp(ways + xlogy(counts, p.clip(0)).sum(1))
                truth = second - first
                held = float(chance[(low <= truth + 1e-12) & (truth - 1e-12 <= high)].sum())
                (inside if first in RATES else ends).append([held, first, second, phi])
    mean = float(np.mean([cell[0] for cell in inside]))
    return {"n": n, "level": level, "mean": mean, "least": min(inside), "ends": min(ends), "pairs": len(inside)}


def one_per_prompt(draw: Callable[[np.random.Generator, int], np.ndarray]) -> Draw:
    """A population of prompts with one item each."""
    return lambda rng, count: (draw(rng, count), np.arange(count))


def clustered(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """One to five samples per prompt, about an exponential mean of the prompt."""
    prompts = np.repeat(np.arange(count), rng.integers(1, 6, count))
    return rng.exponential(1, count)[prompts] + rng.standard_normal(len(prompts)), prompts


MEANS: dict[str, tuple[float, Draw]] = {
    "normal": (0.0, one_per_prompt(lambda rng, n: rng.standard_normal(n))),
    EXPONENTIAL: (1.0, one_per_prompt(lambda rng, n: rng.exponential(1, n))),
    "log-normal": (np.exp(0.5), one_per_prompt(lambda rng, n: np.exp(rng.standard_normal(n)))),
    "beta(.1, .9), as p_think": (0.1, one_per_prompt(lambda rng, n: rng.beta(0.1, 0.9, n))),
    "beta(.1, .1)": (0.5, one_per_prompt(lambda rng, n: rng.beta(0.1, 0.1, n))),
    "80 % zeros, rest exponential": (0.2, one_per_prompt(lambda rng, n: rng.exponential(1, n) * (rng.random(n) < 0.2))),
    "t₃, as differences": (0.0, one_per_prompt(lambda rng, n: rng.standard_t(3, n))),
    "clustered, 1–5 a prompt": (1.0, clustered),
}


def bca(values: np.ndarray, prompts: np.ndarray, seed: int) -> tuple[float, float]:
    """Ours, on a thousand draws."""
    return bootstrap(values, prompts, draws=1000, seed=seed)[1:]


def percentile(values: np.ndarray, prompts: np.ndarray, seed: int) -> tuple[float, float]:
    """The percentile bootstrap, on as many draws."""
    sums, sizes = np.bincount(prompts, values), np.bincount(prompts)
    chosen = np.random.default_rng(seed).integers(len(sums), size=(1000, len(sums)))
    low, high = np.quantile(sums[chosen].sum(1) / sizes[chosen].sum(1), [0.025, 0.975])
    return low, high


def run_means(prompts: int, trials: int) -> list[dict]:
    """How often either bootstrap holds the mean of each population."""
    cells = []
    for name, (truth, draw) in MEANS.items():
        rng = generator("means", name, prompts)
        counted = count(trials, lambda r=rng, d=draw: (*d(r, prompts), int(r.integers(2**31))), truth, bca, percentile)
        cells.append({"population": name, "size": [prompts], "at": 0.0} | counted)
    return cells


def delong(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """AUC ± 1.96 standard errors of DeLong."""
    wins = (positive[:, None] > negative).astype(float)
    half = 1.96 * (wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative)) ** 0.5
    return wins.mean() - half, wins.mean() + half


def hedges_olkin(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """D ± 1.96 standard errors of normal scores with equal spreads."""
    m, n = len(positive), len(negative)
    pooled = (((m - 1) * positive.var(ddof=1) + (n - 1) * negative.var(ddof=1)) / (m + n - 2)) ** 0.5
    d = (positive.mean() - negative.mean()) / pooled
    half = 1.96 * ((m + n) / (m * n) + d**2 / (2 * (m + n - 2))) ** 0.5
    return d - half, d + half


def apart(rng: np.random.Generator, population: str, measure: str, at: float, m: int, n: int) -> tuple:
    """Scores of both sides, so far apart that the AUC or Cohen's d of their populations is `at`."""
    if population == EXPONENTIAL:
        positive, negative, one, other = rng.exponential(1, m), rng.exponential(1, n), 1.0, 1.0
    elif population == "t₅":
        positive, negative, one, other = rng.standard_t(5, m), rng.standard_t(5, n), (5 / 3) ** 0.5, (5 / 3) ** 0.5
    else:
        one, other = SPREADS[population], 1.0
        positive, negative = one * rng.standard_normal(m), rng.standard_normal(n)
    if measure == "effects":
        return positive + at * (((m - 1) * one**2 + (n - 1) * other**2) / (m + n - 2)) ** 0.5, negative
    if population == EXPONENTIAL:
        return positive * at / (1 - at), negative  # the chance that one exponential exceeds another
    return positive + (one**2 + other**2) ** 0.5 * ndtri(at), negative


SPREADS = {"normal": 1.0, "normal, spreads 2 : 1": 2.0, "normal, spreads 3 : 1": 3.0}
SIZES = [(50, 50), (30, 150), (150, 30), (200, 200)]
TWO_SIDED = {
    "areas": (
        ["normal", "normal, spreads 3 : 1", EXPONENTIAL],
        [0.5, 0.7, 0.8, 0.9, 0.95, 0.99],
        lambda positive, negative: auc(positive, negative)[1:],
        delong,
    ),
    "effects": (
        ["normal", "normal, spreads 2 : 1", "t₅", EXPONENTIAL],
        [0.0, 0.5, 1.0, 2.0, 4.0],
        lambda positive, negative: cohens_d(positive, negative)[1:],
        hedges_olkin,
    ),
}


def run_two_sided(measure: str, sizes: list[tuple[int, int]], trials: int) -> list[dict]:
    """How often either interval holds the AUC, or Cohen's d."""
    populations, values, ours, rival = TWO_SIDED[measure]
    cells = []
    for population, (m, n), at in product(populations, sizes, values):
        draw = partial(apart, generator(measure, population, m, n, at), population, measure, at, m, n)
        where = {"population": population, "size": [m, n], "at": at}
        cells.append(where | count(trials, draw, at, ours, rival))
    return cells


def run_coverage(quick: bool) -> dict:
    """All four kinds."""
    trials, sizes = (60, SIZES[:1]) if quick else (1000, SIZES)
    pairs = [(24, 0.95)] if quick else [(50, 0.95), (100, 0.95), (200, 0.95), (200, CARD)]
    return {
        "paired": [run_paired(n, level) for n, level in pairs],
        "means": [c for prompts in ((50,) if quick else (50, 200)) for c in run_means(prompts, min(trials, 500))],
    } | {measure: run_two_sided(measure, sizes, trials) for measure in TWO_SIDED}


DRAWN = {
    "means": ("BCa bootstrap of a mean by prompt", "the percentile bootstrap"),
    "areas": ("AUC", "DeLong's"),
    "effects": ("Cohen's d", "normal theory"),
}


def judge_coverage(data: dict) -> list[dict]:
    """Means within 93–97 %, nowhere below 88 %: promised for rates, and held against the others too."""
    paired = [c for c in data["paired"] if c["level"] == 0.95]
    means = [c["mean"] for c in paired]
    least, first, second, phi = min(c["ends"] for c in paired)
    sizes = ", ".join(str(c["n"]) for c in paired)
    goals = [
        target(
            "Newcombe's paired coverage averaged over rates in [.1, .9] and φ",
            "93–97 %",
            f"{100 * min(means):.2f}–{100 * max(means):.2f} %",
            min(means) >= 0.93 and max(means) <= 0.97,
            None,
            f"n in {sizes}; φ in {', '.join(map(str, PHIS))} where the rates allow it; exact multinomial sums",
        ),
        target(
            "Newcombe's paired coverage with a rate in {.01, .02, .98, .99}",
            "≥ 88 %",
            f"{100 * least:.2f} %",
            least >= 0.88,
            None,
            f"the least is at rates {first} and {second}, φ = {phi}; exact, by symmetry for .98 and .99",
        ),
    ]
    for key, (name, rival) in DRAWN.items():
        cells = data[key]
        trials = sum(c["trials"] for c in cells)
        mean, other = (sum(c[kind] for c in cells) / trials for kind in ("hits", "rival"))
        worst = min(cells, key=lambda c: c["hits"] / c["trials"])
        low, rival_low = worst["hits"] / worst["trials"], min(c["rival"] / c["trials"] for c in cells)
        place = f"{worst['population']}, n = {' + '.join(map(str, worst['size']))}"
        place += f", true value {worst['at']}" if key != "means" else ""
        note = f"over {len(cells)} cells; {rival}: {100 * other:.1f} %. The goal of rates, held against drawn data"
        met = 0.93 <= mean <= 0.97
        goals.append(target(f"{name}: mean coverage", "93–97 %", f"{100 * mean:.2f} %", met, trials, note))
        note = f"worst: {place}; {rival}: {100 * rival_low:.1f} % at its worst"
        goals.append(
            target(f"{name}: least coverage of a cell", "≥ 88 %", f"{100 * low:.1f} %", low >= 0.88, None, note)
        )
    return goals


def show_coverage(data: dict) -> tuple[str, dict[str, str]]:
    """One table per kind."""
    lines = [
        "Difference of two paired rates, Newcombe's interval:",
        "",
        "| n | level | mean | least, rates in [.1, .9] | least with a rate of .01 or .02 |",
        "|---|---|---|---|---|",
    ]
    for c in data["paired"]:
        row = [f"{100 * held:.2f} % ({p}, {q}, φ {phi})" for held, p, q, phi in (c["least"], c["ends"])]
        lines.append(f"| {c['n']} | {100 * c['level']:g} % | {100 * c['mean']:.2f} % | " + " | ".join(row) + " |")
    for key, (name, rival) in DRAWN.items():
        cells = data[key]
        heads = list(dict.fromkeys(c["at"] for c in cells))
        columns = [f"{at:g}" for at in heads] if key != "means" else ["coverage"]
        trials = cells[0]["trials"]
        lines += ["", f"{name}, at level 95 %, {trials} trials a cell; in brackets {rival}:", ""]
        lines += ["| population | n | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
        for where in dict.fromkeys((c["population"], " + ".join(map(str, c["size"]))) for c in cells):
            row = [c for c in cells if (c["population"], " + ".join(map(str, c["size"]))) == where]
            numbers = [f"{100 * c['hits'] / trials:.1f} % ({100 * c['rival'] / trials:.1f})" for c in row]
            lines.append(f"| {' | '.join(where)} | " + " | ".join(numbers) + " |")
    return "\n".join(lines), {}
