"""Finished experiments, written from the schemas alone: what their page is tested on."""

import json
from pathlib import Path
from typing import Any

from deltalens.evaluate.scores import summarise
from deltalens.store.experiment import Experiment, experiment, write_results, write_summary
from deltalens.store.files import write_table
from deltalens.store.results import RESULTS, SUMMARY, TOKENS

Row = dict[str, Any]
N = 60


def summary_row(arm: str, metric: str, value: float | None, low: float | None = None, high: float | None = None,
                **more: Any) -> Row:  # fmt: skip
    """A row of summary.parquet with these numbers."""
    found = dict.fromkeys(SUMMARY.names) | {"arm": arm, "task": "chain", "group": "", "metric": metric, "n": N}
    return found | {"value": value, "low": low, "high": high, "method": "test"} | more


def result(arm: str, item: str, mode: str, correct: bool, thought: bool, text: str | None, **more: Any) -> Row:
    """A row of results: one completion."""
    found = dict.fromkeys(RESULTS.names) | {"arm": arm, "item": item, "mode": mode, "task": "chain", "split": "test"}
    return found | {
        "role": "model", "sample": 0, "seed": 0, "group": "", "text": text, "tokens": 9, "truncated": False,
        "opened": thought, "closed": thought, "thought": thought, "think_tokens": 7 if thought else 0,
        "correct": correct, "format_ok": True, "loop": False,
        "p_think": (0.9 if thought else 0.1) if mode == "free" else None,
    } | more  # fmt: skip


def store(out: Path, kind: str, arms: list[Row], summary: list[Row], rows: list[Row], **more: Any) -> Experiment:
    """A finished experiment of these tables."""
    models = [{"source": name, "identity": {}} for name in more.pop("models", ["a"])]
    record = {"kind": kind, "models": models, "settings": {"n": N, "seeds": [0, 1]}, "template": "cafe0123",
              "command": f"deltalens {kind} it", **more}  # fmt: skip
    with experiment(out, record):
        write_summary(out, arms, summary)
        if rows:
            write_results(out, more.get("recipe", kind), rows)
    return Experiment.open(out)


def an_eval(out: Path, name: str = "thinker", item: str = "item", text: str = "", better: bool = True) -> Experiment:
    """Two models: the second thinks, and is right where the first is not but when forced, if `better`."""
    rows = []
    for i in range(N):
        rows.append(result("first", f"{item} {i}", "free", i % 10 == 0, False, "4"))
        rows.append(result("first", f"{item} {i}", "forced", i % 10 != 0, True, "so</think>4"))
        answer = f"<think>4 is 2+2, and so on</think>4{text}"
        rows.append(result(name, f"{item} {i}", "free", better or i % 10 == 0, better, answer))
        rows.append(result(name, f"{item} {i}", "forced", True, True, "so</think>4"))
    summary = summarise(rows, "first")
    summary += [summary_row(a, "perplexity", v, v - 0.1, v + 0.1, task="text", group="t")
                for a, v in (("first", 10.0), (name, 12.0))]  # fmt: skip
    return store(out, "eval", [{"arm": a} for a in ("first", name)], summary, rows, models=["first", name])


def a_probe(
    out: Path, d: float = 9.0, length: float = 0.5, name: str = "x", token: str = "tok", **more: Any
) -> Experiment:
    """Three layers, the middle one at `d`, bands of ±4, also in a second model where nothing separates."""
    summary = [summary_row("prompt length", "auc", length, length - 0.1, length + 0.1)]
    for side in ("", "against: "):
        for layer in range(3):
            here = {"group": f"layer {layer}"}
            size = d if layer == 1 and not side else 0.5
            arm = f"{side}direction {name}"
            summary += [
                summary_row(arm, "auc", 0.9, 0.8, 0.95, **here, p=0.001, p_holm=0.003),
                summary_row(arm, "auc_normalised", 0.85, 0.7, 0.9, **here),
                summary_row(arm, "d", size, size - 1, size + 1, **here, p=0.002, p_holm=0.004),
            ]
            for null in ("random", "label-permuted"):
                summary.append(summary_row(side + null, "auc", 0.5, 0.2, 0.8, **here))
                summary.append(summary_row(side + null, "d", 0.0, -4.0, 4.0, **here))
    found = store(out, "probe", [], summary, [], models=["tuned", "base"], **more)
    rows = [
        {"item": item, "group": name, "phase": "prompt" if at < 3 else "generation", "position": at,
         "token": f"{token}{at}", "layer": layer, "raw": at - 2.5 + layer, "normalised": 0.1 * at, "z": at - 3.0}
        for item in ("one", "two") for layer in range(3) for at in range(6)
    ]  # fmt: skip
    (out / "results").mkdir()
    write_table(out / "results" / "tokens.parquet", rows, TOKENS)
    return found


def a_steer(out: Path, claim: float = 0.5, name: str = "v", text: str = "") -> Experiment:
    """Two layers, three strengths; layer 1 at +2 is the operating point, +4 breaks."""
    arms: list[Row] = [{"arm": "baseline", "role": "baseline"}]
    summary = [
        summary_row("baseline", "p_think", 0.05, 0.04, 0.06),
        summary_row("baseline", "p_think", 0.06, 0.05, 0.07, task="chain (select)"),
    ]
    rows: list[Row] = []
    point, control = f"layer 1, +2 {name}", f"layer 1, +2 permuted {name}"
    for layer in (0, 1):
        for strength in (1.0, 2.0, 4.0):
            arm = f"layer {layer}, {strength:+g} {name}"
            edit = {"layer": layer, "strength": strength, "operator": "add"}
            arms.append({"arm": arm, "role": "edit", "edit": json.dumps(edit)})
            p = 0.1 + 0.2 * strength * layer
            summary.append(summary_row(arm, "p_think", p, p - 0.01, p + 0.01, task="chain (select)"))
            if layer == 1:
                summary.append(summary_row(arm, "p_think", p, p - 0.02, p + 0.02))
                summary.append(summary_row(arm, "p_think", p - 0.05, p - 0.07, p - 0.03, reference="baseline"))
    arms.append(
        {"arm": control, "role": "control", "control_of": point, "edit": json.dumps({"layer": 1, "strength": 2.0})}
    )
    summary += [
        summary_row(control, "p_think", 0.1, 0.09, 0.11),
        summary_row(control, "p_think", 0.05, 0.04, 0.06, reference="baseline"),
        summary_row("baseline", "think_ratio", 0.0, 0.0, 0.06), summary_row(point, "think_ratio", 0.9, 0.8, 0.95),
        summary_row(control, "think_ratio", 0.0, 0.0, 0.06),
        summary_row(point, "think_ratio", 0.9, 0.75, 0.95, reference="baseline", p=1e-9, p_holm=1e-8),
        summary_row("baseline", "perplexity", 10.0, 9.0, 11.0, task="text", group="t"),
        summary_row(point, "perplexity", 15.0, 14.0, 16.0, task="text", group="t"),
        summary_row(point, "kl", 0.3, 0.2, 0.4),
        summary_row(point, "effect_minus_largest_control", claim, claim - 0.1, claim + 0.1, reference=control),
        summary_row(point, "operating_point", 2.0), summary_row(point, "breaking_point", 4.0, method="loops +0.40"),
    ]  # fmt: skip
    for i in range(4):
        rows.append(result("baseline", f"i{i}", "free", False, False, "1"))
        rows.append(result(point, f"i{i}", "free", True, i > 0, f"<think>long enough a thought</think>4{text}"))
        rows.append(result(control, f"i{i}", "free", False, False, "2"))
    return store(out, "steer", arms, summary, rows, metric="p_think")


def a_sweep(
    out: Path, claim: float | None = 0.5, bounded: bool = True, name: str = "Δ_k", text: str = "", curves: int = 1,
    places: bool = True,
) -> Experiment:  # fmt: skip
    """Edits of rank 1, 2, 4, 8, 12 put into the base, 4 the operating point, and a curve out of the tuned model.

    The first curves have one deciding control and one that never decides. Base, tuned and operating points were asked a
    second task. Without a `claim` no control was run, and where nothing is `bounded` there are no intervals.
    """
    arms: list[Row] = [{"arm": "base", "role": "baseline"}, {"arm": "tuned", "role": "model"}]
    summary, rows = [], []

    def cell(arm: str, metric: str, value: float, half: float = 0.02, **more: Any) -> None:
        ends = (value - half, value + half) if bounded else ()
        summary.append(summary_row(arm, metric, value, *ends, **more))

    def scored(arm: str, p: float, start: str = "", before: float = 0.0) -> None:
        cell(arm, "p_think", p)
        if start:
            cell(arm, "p_think", p - before, 0.03, reference=start)

    def written(arm: str, thought: bool, accuracy: float) -> None:
        cell(arm, "think_ratio", float(thought))
        cell(arm, "accuracy", accuracy)
        cell(arm, "accuracy", 1 - accuracy / 2, task="facts")
        cell(arm, "perplexity", 10.0 + accuracy, task="text", group="t")
        cell(arm, "kl", accuracy / 10, task="chain")
        for i in range(3):
            own = "<think>long enough a thought</think>4" if thought and i else "5"
            rows.append(result(arm, f"i{i}", "free", thought, thought and i > 0, own + text))
            rows.append(result(arm, f"i{i}", "free", thought, thought, f"of facts{text}", task="facts"))

    scored("base", 0.05)
    scored("tuned", 0.95, "base", 0.05)
    written("base", False, 0.1)
    written("tuned", True, 0.9)
    names = [f"{name}{'' if i == 0 else f' of {i}'}" for i in range(curves)]
    for curve, start, before in [*((one, "base", 0.05) for one in names), (f"tuned − {name}", "tuned", 0.95)]:
        point = f"{curve} = 4"
        for k in (0, 1, 2, 4, 8, 12):
            arm = f"{curve} = {k}" if k else start
            if places:
                summary.append(summary_row(arm, "strength", k, group=curve))
            if not k:
                continue
            arms.append({"arm": arm, "role": "edit", "edit": json.dumps({"edit": [{"rank": k}]}), "norm_delta": 1.0})
            scored(arm, min(0.9, 0.05 + 0.2 * k) if start == "base" else 0.1, start, before)
            rows.append(result(arm, "i0", "free", False, False, None, role="edit", strength=float(k)))
        written(point, start == "base", 0.8)
        summary.append(summary_row(curve, "operating_point", 4.0, reference=point, method=f"least k {name}"))
        cell(curve, "fraction", 0.88 if start == "base" else 0.06, 0.01, reference=point)
        said = "supported: effect − largest control is above 0: 0.50 [0.40, 0.60]" if bounded else "undecided: n < 50"
        if claim is None or start != "base":
            said = "undecided: no control to compare with"
        summary.append(summary_row(curve, "causal", None, reference=point, method=said))
        if start == "base":
            why = f"supported: at least 0.8 of the difference {name}"
            summary.append(summary_row(curve, "sufficient", None, reference=point, method=why))
        if claim is None or start != "base":
            continue
        for kind, decides, p in (("random U", True, 0.07), ("Haar", False, 0.055)):
            control = f"{curve}: {kind}"
            edit = json.dumps({"control": kind, "seed": 0, **({} if decides else {"decides": False})})
            arms.append({"arm": control, "role": "control", "control_of": point, "edit": edit})
            scored(control, p, "base", 0.05)
        largest = f"{curve}: random U"
        cell(curve, "effect_minus_largest_control", claim, 0.1, reference=largest)
        written(largest, False, 0.1)
    summary += [
        summary_row("Δ_k", "functional_rank", 4.0, method="least k within the tuned model's interval"),
        summary_row("Δ_k", "functional_rank_accuracy", 2.0, method="least k within the tuned model's interval"),
        summary_row(name, "r_align", 0.25, 0.2, 0.3, method=f"null 0.1 {name}"),
    ]
    return store(out, "sweep", arms, summary, rows, metric="p_think", recipe="rank", models=["it", f"rl {name}"])
