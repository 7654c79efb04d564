"""A whole run as `deltalens run` leaves it, written from the schemas alone: what its page is tested on."""

import json
from pathlib import Path
from typing import Any

from experiment_factory import N, Row, a_probe, a_steer, a_sweep, result, store, summary_row
from run_factory import make_run

from deltalens.evaluate.scores import summarise
from deltalens.store.files import write_json

BASE, TUNED = "org/start@main", "/srv/alice/checkpoints/tuned"
QUESTIONS = (
    ("low-rank above noise?", "spectra", "supported"),
    ("causal for thinking?", "rank", "supported"),
    ("sufficient (put in)?", "rank", "supported"),
    ("necessary (left out)?", "rank", "contradicted"),
    ("choice rather than skill?", "choice", "undecided"),
    ("specific to reasoning?", "specific", "undecided"),
    ("distinct from refusal?", "refusal", "supported"),
    ("sharp transition?", "transition", "contradicted"),
    ("sparse beyond precision?", "zeros", "contradicted"),
)
STEPS = ("eval", "probe", "rank", "transition", "steer-up", "steer-down", "negate", "specific", "map")


def a_run(out: Path, text: str = "", base: str = BASE, tuned: str = TUNED, better: bool = True, **more: Any) -> Path:
    """A finished run of one pair and a safety pair; `text` is part of everything that has words of others."""
    steps = out / "steps"
    for name, pair in (("main", (base, tuned)), ("safety", (base, f"org/safe{text}"))):
        make_run(out / "pairs" / name, sides=pair)
    an_evaluation(steps / "eval", base, tuned, better)
    a_probe(steps / "probe", name=f"v{text}")
    a_sweep(steps / "rank", name=f"Δ_k{text}", text=text)
    a_transition(steps / "transition")
    a_steer(steps / "steer-up", name=f"v{text}", text=text)
    a_steer(steps / "steer-down", claim=0.05, name=f"v{text}")
    a_sweep(steps / "negate", claim=0.05, name=f"τ{text}")
    a_specific(steps / "specific", f"safety{text}")
    a_map(steps / "map", text)
    numbers = [
        {"name": f"F{text}", "value": 0.88, "low": 0.87, "high": 0.89, "n": 200, "step": "rank", "arm": "a"},
        {"name": "not to be had", "value": None, "low": None, "high": None, "n": 200, "step": "map"},
    ]  # fmt: skip
    verdicts = [
        {"question": question, "word": word, "why": f"it is so -0.5{text}", "numbers": numbers, "figure": figure}
        for question, figure, word in QUESTIONS
    ]
    claim = {"paper": f"arXiv 1234.5678{text}", "title": f"Some claim{text}", "says": f"low rank{text}",
             "here": f"84 %{text}", "word": f"agrees{text}", "difference": f"the null{text}"}  # fmt: skip
    write_json(out / "verdicts.json", {"verdicts": verdicts, "claims": [claim], "level": 1 - 0.05 / 8})
    write_json(out / "stages.json", stages(f"org/root{text}", base, tuned))
    write_json(out / "atlas.json", atlas(text))
    write_json(out / "refusal.json", refusal(text))
    (out / "spectra.html").write_text("<html></html>")
    pairs = [{"name": "main", "base": base, "tuned": tuned, "role": "main"},
             {"name": "safety", "base": base, "tuned": f"org/safe{text}", "role": "safety"}]  # fmt: skip
    command = f"deltalens run {base} {tuned} --out {out}"
    folder = out / "steps"
    told = [{"name": name, "phase": "x", "title": f"{name}{text}", "status": "done", "seconds": 3.5,
             "command": f"deltalens sweep {name} {base} --out {folder / name}{text}"} for name in STEPS]  # fmt: skip
    record = {
        "schema": 1, "kind": "run", "status": "complete", "metric": "p_think", "template": "cafe0123",
        "models": [{"source": name, "identity": {"files": [name[:1]]}} for name in (base, tuned, f"org/safe{text}")],
        "settings": {"n": 200, "seeds": [0]}, "config": {"pairs": pairs, "n": 200, "task": text},
        "command": command, "steps": told,
        "missing": [{"step": "contrast", "error": f"needs a sibling{text}", "fix": f"a pair{text}"}],
    }  # fmt: skip
    write_json(out / "experiment.json", record | more)
    return out


def an_evaluation(out: Path, base: str, tuned: str, better: bool) -> None:
    """The tuned model thinks and is right, if `better`."""
    rows = []
    for i in range(N):
        for arm, thinks in ((base, False), (tuned, better)):
            rows.append(result(arm, f"i{i}", "free", thinks or i % 10 == 0, thinks, "<think>so it goes</think>4"))
            rows.append(result(arm, f"i{i}", "forced", True, True, "so</think>4"))
    store(out, "eval", [{"arm": base}, {"arm": tuned}], summarise(rows, base), rows, models=[base, tuned])


def a_transition(out: Path) -> None:
    """Eleven λ, completions at all."""
    arms, summary = [], []
    for i in range(11):
        arm, x = f"λ = {i / 10:g}", i / 10
        arms.append({"arm": arm, "role": "edit" if i else "baseline", "edit": json.dumps({"edit": [{"strength": x}]})})
        summary += [summary_row(arm, "strength", x, group="all"), summary_row(arm, "p_think", x, x - 0.01, x + 0.01),
                    summary_row(arm, "think_ratio", float(i > 4), 0.0, 1.0)]  # fmt: skip
    summary += [summary_row("all", "lambda50_p_think", 0.5, 0.49, 0.51),
                summary_row("all", "lambda50_think_ratio", 0.45, 0.44, 0.46),
                summary_row("all", "sharpness", 0.275, 0.27, 0.28, method="contradicted: smooth")]  # fmt: skip
    store(out, "sweep", arms, summary, [], metric="p_think", recipe="transition", models=["base", "tuned"])


def a_specific(out: Path, other: str) -> None:
    """The pair's Δ_k moves p(think) by .85, the other's by .1."""
    arms = [{"arm": "base", "role": "baseline"}, {"arm": "tuned", "role": "model"}]
    summary = [summary_row("base", "p_think", 0.05, 0.04, 0.06), summary_row("tuned", "p_think", 0.95, 0.94, 0.96)]
    for name, moved in (("Δ_k of the pair", 0.85), (f"Δ_k of {other}", 0.1)):
        arms.append({"arm": name, "role": "edit", "edit": json.dumps({"edit": [{"rank": 4}]})})
        summary += [summary_row(name, "p_think", moved + 0.05, moved + 0.04, moved + 0.06),
                    summary_row(name, "p_think", moved, moved - 0.01, moved + 0.01, reference="base"),
                    summary_row(name, "strength", 1.0, group=name),
                    summary_row(name, "operating_point", 1.0, reference=name)]  # fmt: skip
    summary += [
        summary_row(f"Δ_k of {other}", "specific", 0.7512, 0.74, 0.76, reference="Δ_k of the pair"),
        summary_row("pair", "specific", None, method="undecided: no sibling pair"),
    ]
    store(out, "sweep", arms, summary, [], metric="p_think", recipe="specific", models=["base", "tuned"])


def a_map(out: Path, text: str = "") -> None:
    """Two layers of two kinds in two bands: put in, layer 1 o_proj top matters; left out, nothing was run."""
    arms = [{"arm": "base", "role": "baseline"}, {"arm": "tuned", "role": "model"}]
    summary = [summary_row("base", "p_think", 0.05, 0.04, 0.06), summary_row("tuned", "p_think", 0.95, 0.94, 0.96)]
    for direction in ("put in", "leave out"):
        for layer in (0, 1):
            for kind in ("q_proj", f"o_proj{text}"):
                for band in ("top", "rest"):
                    arm = f"{direction} layer {layer} {kind} {band}"
                    cell = {"layer": layer, "kind": kind, "band": band, "rank": 1}
                    edit = json.dumps({"cell": cell, "direction": direction})
                    arms.append({"arm": arm, "role": "edit", "edit": edit})
                    summary.append(summary_row(arm, "first_order", 0.25))
                    if direction != "put in" or band == "rest":
                        continue
                    large = layer == 1 and kind.startswith("o_proj")
                    effect = 0.45 if large else -0.018
                    low, high = effect - 0.01, effect + 0.01
                    summary += [
                        summary_row(arm, "p_think", effect, low, high, reference="base", p=0.001, p_holm=0.004),
                        summary_row(arm, "fraction", effect / 0.9, reference=arm),
                        summary_row(arm, "matters", float(large), p=0.001, p_holm=0.004),
                    ]
    summary += [summary_row("put in", "spearman", 0.75),
                summary_row("smallest set, put in", "cells", 3.0, method="enough: a, b, c")]  # fmt: skip
    store(out, "sweep", arms, summary, [], metric="p_think", recipe="causal-map", models=["base", "tuned"])


def stages(root: str, base: str, tuned: str, cosine: float = -0.36) -> Row:
    """A decomposition of two matrices."""
    values = {"cosine": cosine, "cancelled": 0.669, "shared_left": 0.575, "new": 0.108, "undone": None}
    nulls = {"cosine": 0.0029, "shared_left": 0.306, "new": 0.398}
    each = [
        {"name": f"layers.{i}.q_proj", "values": {k: v and v + 0.01 * i for k, v in values.items()}} for i in (0, 1)
    ]
    return {"sources": [root, base, tuned], "values": values, "nulls": nulls, "matrices": each, "left_out": []}


def atlas(text: str = "") -> Row:
    """Three pairs: two share their outputs, the third cannot be compared."""
    names = ["main", f"safety{text}", "seed"]
    relations: list[Row] = []
    for side in ("left", "right"):
        relations.append({"a": names[0], "b": names[1], "side": side, "k": 4, "overlap": 0.437, "null": 0.031,
                          "p_holm": 0.01, "word": "shared", "reason": f"no sibling{text}"})  # fmt: skip
        relations += [{"a": a, "b": names[2], "side": side, "k": 4, "overlap": 0.021, "null": 0.03, "p_holm": None,
                       "word": "not comparable without alignment", "reason": None} for a in names[:2]]  # fmt: skip
    return {"names": names, "relations": relations}


def refusal(text: str = "") -> Row:
    """Two layers, the second nearer to refusal."""
    rows = [
        {"a": f"thinking-{i}{text}", "b": "refusal", "layer": i, "overlap": 0.05 + 0.1 * i, "largest": "permuted",
         "nulls": {"isotropic": 0.01, "permuted": 0.04}, "low": 0.1 * i - 0.03, "high": 0.1 * i + 0.03,
         "verdict": ("supported", "undecided")[i], "reason": None, "p": 0.5, "p_holm": 0.5}
        for i in (0, 1)
    ]  # fmt: skip
    return {"model": f"org/safe{text}", "verdict": "undecided", "rows": rows}
