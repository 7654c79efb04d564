"""The nine questions of a verdict card (docs/measures.md §7, docs/behaviour.md §8), answered from what is stored.

Every word follows from stored numbers by the rules that sweeps use, and stands beside those numbers. Where several
steps bear on a question the first named here decides; the others are shown, and named in the reason where they say
something else. A step that is missing, a pair that does not differ in thinking, and a control pair that was not given
leave a question undecided.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deltalens.direction.compare import Comparison, overall
from deltalens.errors import BadInput, DeltalensError
from deltalens.evaluate.scores import Row
from deltalens.experiment.evidence import REFUSAL, Step, joined, notes, pairs_of, run_of, step_of, why_missing
from deltalens.methods.functional_rank import OUT, PUT
from deltalens.methods.specific import MAIN, judge
from deltalens.methods.transition import FULL
from deltalens.spectrum.reading import LOW_RANK, against, beyond_nulls, leading, zero_word
from deltalens.store.files import write_json
from deltalens.sweep.arms import effect_minus_largest_control
from deltalens.sweep.verdicts import (
    CONTRADICTED,
    LEVEL,
    SUPPORTED,
    UNDECIDED,
    Verdict,
    causal,
    choice,
    enough,
    fraction,
    left_out,
)

SMALLEST = "smallest set, {}"
"""Curve of the causal map for the union of cells that is enough, with its direction."""


@dataclass(frozen=True, slots=True)
class Number:
    """One number that a word rests on.

    Attributes:
        name: What it is.
        value: None where it is undefined.
        low: Lower bound, None where there is no interval.
        high: Upper bound.
        n: Items, or matrices.
        method: How it was found.
        step: Where it is stored, under `EXP/steps` or as `pairs/NAME`.
        arm: Of which arm, where it is of one.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    method: str | None = None
    step: str | None = None
    arm: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One question, answered.

    Attributes:
        question: As it is asked.
        word: `supported`, `contradicted` or `undecided`.
        why: The reason.
        numbers: What it rests on.
        figure: Anchor of the figure that shows it.
    """

    question: str
    word: str
    why: str
    numbers: tuple[Number, ...]
    figure: str


@dataclass(frozen=True, slots=True)
class _Said:
    verdict: Verdict
    numbers: tuple[Number, ...] = ()


def verdicts(exp: Path) -> list[Answer]:
    """Every question of the verdict card, in order.

    Args:
        exp: The experiment's directory; it may still be running.

    Raises:
        BadInput: It is none.
    """
    pairs_of(exp)
    return [_answer(exp, *question) for question in QUESTIONS]


def write_verdicts(exp: Path, answers: Sequence[Answer], claims: Sequence[Any]) -> None:
    """Write `verdicts.json`.

    Args:
        exp: The experiment's directory.
        answers: From `verdicts`.
        claims: From `experiment.claims.claims`.
    """
    told = {"verdicts": [asdict(a) for a in answers], "claims": [asdict(c) for c in claims], "level": LEVEL}
    write_json(exp / "verdicts.json", told | {"notes": notes(exp)})


def _answer(exp: Path, question: str, figure: str, ask: "Callable[[Path], _Said]") -> Answer:
    try:
        said = ask(exp)
    except DeltalensError as problem:
        said = _Said(Verdict(UNDECIDED, problem.error))
    return Answer(question, said.verdict.word, said.verdict.why, said.numbers, figure)


def _first(sources: Sequence[Callable[[], _Said]]) -> _Said:
    """The first source that there is decides, the others stand beside it."""
    found: list[_Said] = []
    problems: list[DeltalensError] = []
    for source in sources:
        try:
            found.append(source())
        except DeltalensError as problem:
            problems.append(problem)
    if not found:
        raise problems[0]
    decides, *others = found
    apart = [f"{o.numbers[0].step} {o.verdict.word}: {o.verdict.why}" for o in others if _differs(decides, o)]
    why = "; but ".join([decides.verdict.why, *apart])
    return _Said(Verdict(decides.verdict.word, why), tuple(n for said in found for n in said.numbers))


def _differs(decides: _Said, other: _Said) -> bool:
    return other.verdict.word not in (UNDECIDED, decides.verdict.word)


def _number(name: str, row: Row, step: str, arm: str | None = None) -> Number:
    return Number(name, *(row[key] for key in ("value", "low", "high", "n", "method")), step, arm)


def _low_rank(exp: Path) -> _Said:
    main, *others = pairs_of(exp)
    found = leading(run_of(exp, main))
    if found is None:
        raise BadInput("no matrix changed, or none has a count of spikes")
    told = f"the leading spikes hold {found.share:.0%} of Σσ² in {found.matrices} matrices"
    words = {"low-rank": SUPPORTED, "not low-rank": CONTRADICTED, "undecided": UNDECIDED}
    if found.noisy:
        told = f"{found.weak:.0%} of Σσ² is in matrices whose change is no stronger than rounding; {told}"
    elif found.word == "undecided":
        told += f", between {LOW_RANK[0]:.0%} and {LOW_RANK[1]:.0%}"
    how = "the first min(spikes, ⌈q/20⌉) σ of each matrix, share of Σσ² over all"
    numbers = [Number("share of Σσ² in the leading spikes", found.share, n=found.matrices, method=how)]
    numbers.append(Number("share of Σσ² in matrices with snr < 1", found.weak, n=found.matrices))
    own = [Number(n.name, n.value, n=n.n, method=n.method, step=f"pairs/{main}", arm=main) for n in numbers]
    for name in others:
        try:
            beside = leading(run_of(exp, name))
        except DeltalensError:
            continue
        if beside is not None:
            own.append(Number(numbers[0].name, beside.share, None, None, beside.matrices, how, f"pairs/{name}", name))
    return _Said(Verdict(words[found.word], told), tuple(own))


def _put_in(step: Step, curve: str, judged: Callable[[Row, Row | None], Verdict]) -> _Said:
    """What a curve from the base shows: F and effect − largest control."""
    share, claim = step.row(curve, "fraction"), step.find(curve, "effect_minus_largest_control")
    numbers = [_number("F", share, step.name, share["reference"])]
    if claim is not None:
        numbers.append(_number("effect − largest control", claim, step.name, claim["reference"]))
    return _Said(judged(share, claim), tuple(numbers))


def _left_out(step: Step, curve: str) -> _Said:
    """The same of a curve from the tuned model."""
    said = _put_in(step, curve, lambda share, _: enough(left_out(share)))
    share = left_out(step.row(curve, "fraction"))
    return _Said(said.verdict, (_number("1 − F", share, step.name, share["reference"]), *said.numbers[1:]))


def _steered(exp: Path) -> _Said:
    """The base with a direction added: its effect, and F where the tuned model was scored on the same prompts."""
    step = step_of(exp, "steer-up")
    point = next((row["arm"] for row in step.summary if row["metric"] == "operating_point"), None)
    if point is None:
        raise BadInput("step steer-up has no operating point")
    controls = {row["arm"]: step.values(row["arm"]) for row in step.rows if row["role"] == "control"}
    sides = joined(step.values("baseline"), step.values(point), *controls.values())
    if sides is None:
        raise BadInput("the arms of step steer-up were scored on different items")
    base, edit, *rest = sides
    claim = None
    if rest:
        claim = effect_minus_largest_control(base, edit, dict(zip(controls, rest, strict=True)), LEVEL)
    share: Row = dict.fromkeys(("value", "low", "high"), None) | {"n": len(edit)}
    share["method"] = "the tuned model was not scored on the prompts that were steered"
    try:
        swept = step_of(exp, "rank")
        if swept.record["template"] == step.record["template"] and swept.metric == step.metric:
            three = joined(step.values("baseline"), step.values(point), swept.values("tuned"))
            share = share if three is None else fraction(three[0], three[1], three[2])
    except DeltalensError:
        pass
    numbers = [_number("F of steering", share, step.name, point)]
    if claim is not None:
        numbers.append(_number("effect − largest control of steering", claim, step.name, claim["reference"]))
    return _Said(causal(share, claim), tuple(numbers))


def _causal(exp: Path) -> _Said:
    swept = [("rank", PUT), ("specific", MAIN)]
    curves = [lambda name=name, curve=curve: _put_in(step_of(exp, name), curve, causal) for name, curve in swept]
    return _first([*curves, lambda: _steered(exp)])


def _sufficient(exp: Path) -> _Said:
    rule = lambda share, _: enough(share)  # noqa: E731

    def put(name: str, curve: str) -> _Said:
        return _put_in(step_of(exp, name), curve, rule)

    cells = lambda: _of_cells(put("map", SMALLEST.format("put in")))  # noqa: E731
    return _first([lambda: put("rank", PUT), cells, lambda: put("specific", MAIN)])


def _necessary(exp: Path) -> _Said:
    cells = lambda: _of_cells(_left_out(step_of(exp, "map"), SMALLEST.format("leave out")))  # noqa: E731
    return _first([lambda: _left_out(step_of(exp, "rank"), OUT), cells])


def _of_cells(said: _Said) -> _Said:
    """A set of cells that is not enough says nothing against Δ: the set holds no more than the budget ran."""
    if said.verdict.word != CONTRADICTED:
        return said
    return _Said(Verdict(UNDECIDED, f"the cells that were run: {said.verdict.why}"), said.numbers)


def _choice(exp: Path) -> _Said:
    def asked(step: Step) -> _Said:
        share = step.row(OUT, "fraction")
        arm = share["reference"]
        told = step.find(OUT, "choice")
        if told is not None and not step.wrote(arm):
            return _Said(Verdict(UNDECIDED, told["method"].partition(": ")[2]))
        thinking, skill = (step.shift("tuned", arm, outcome) for outcome in ("think_ratio", "forced_accuracy"))
        said = choice(thinking, skill)
        warm = step.record["settings"].get("temperature")
        if share["value"] is None:
            said = Verdict(UNDECIDED, share["method"])
        elif warm:
            said = Verdict(UNDECIDED, f"decoded at temperature {warm:g}, not greedily")
        named = {"change of the greedy think ratio": thinking, "change of forced accuracy": skill}
        return _Said(said, tuple(_number(name, row, step.name, arm) for name, row in named.items()))

    return _first([lambda name=name: asked(step_of(exp, name)) for name in ("rank", "negate")])


def _specific(exp: Path) -> _Said:
    step, roles = step_of(exp, "specific"), pairs_of(exp)
    share = step.row(MAIN, "fraction")
    numbers, by_role = [_number("F", share, step.name, MAIN)], {}
    for name, role in roles.items():
        row = step.find(f"Δ_k of {name}", "specific")
        if row is not None:
            by_role.setdefault(role, []).append(row)
            numbers.append(_number(f"the pair's effect − that of {name} ({role})", row, step.name, row["arm"]))
    return _Said(judge(by_role, share), tuple(numbers))


def _distinct(exp: Path) -> _Said:
    file = exp / REFUSAL
    if not file.is_file():
        raise BadInput(why_missing(exp, "refusal"))
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))["rows"]
        rows = [Comparison(**row | {"ranks": tuple(row["ranks"]), "angles": tuple(row["angles"])}) for row in stored]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise BadInput(f"{file.name} is damaged", f"remove {file}, then repeat the command") from problem
    if not rows:
        raise BadInput("no direction was compared with that of refusal")
    word = overall(rows)
    worst = max((row for row in rows if row.verdict == word), key=lambda row: row.high or 0.0)
    excess = worst.overlap - worst.nulls[worst.largest]
    where = "the directions" if worst.layer is None else f"layer {worst.layer}"
    null = f"{worst.largest} null {worst.nulls[worst.largest]:.3f}"
    told = f"overlap {worst.overlap:.3f} in {where}, {null}; of {len(rows)} the one with the largest bound"
    if worst.reason is not None:
        told += f" ({worst.reason})"
    labels: dict[str, Any] = {"n": len(rows), "step": "refusal", "arm": worst.a}
    numbers = (
        Number("overlap − largest null", excess, worst.low, worst.high, method=f"{worst.largest} null", **labels),
        Number("overlap with the refusal direction", worst.overlap, method=worst.family, **labels),
    )
    return _Said(Verdict(word, told), numbers)


def _sharp(exp: Path) -> _Said:
    step = step_of(exp, "transition")
    sharpness = step.row(FULL, "sharpness")
    word, _, why = sharpness["method"].partition(": ")
    named = {"J": "sharpness", "width λ(.9) − λ(.1)": f"width_{step.metric}"}
    named |= {f"λ50 of {step.metric}": f"lambda50_{step.metric}", "λ50 of the think ratio": "lambda50_think_ratio"}
    numbers = tuple(_number(name, row, step.name, FULL) for name, m in named.items() if (row := step.find(FULL, m)))
    return _Said(Verdict(word, why), numbers)


def _sparse(exp: Path) -> _Said:
    main, run = next(iter(pairs_of(exp))), run_of(exp)
    named = [(r, zero_word(r["zero_fraction"], r["predicted_zero_fraction"])) for r in run.matrices.to_pylist()]
    rows, words = [r for r, word in named if word], [word for _, word in named if word]
    if not rows:
        raise BadInput("no prediction of unchanged entries: the sides do not share a 16-bit storage")
    sizes = [row["rows"] * row["cols"] for row in rows]

    def mean(values: Sequence[float]) -> float:
        return sum(v * size for v, size in zip(values, sizes, strict=True)) / sum(sizes)

    observed, predicted = (mean([row[key] for row in rows]) for key in ("zero_fraction", "predicted_zero_fraction"))
    sparse = mean([float(row["deadzone"] == "sparse") for row in rows])
    explained = mean([float(word == "explained by precision") for word in words])
    kept = mean([row["deadzone_sparsity"] if row["deadzone"] == "sparse" else 0.0 for row in rows])
    told = f"{observed:.1%} of the entries did not change, {predicted:.1%} are predicted"
    nulls = run.nulls
    drawn = against(None if nulls is None else nulls.to_pylist()).get("zero_fraction", ())
    if sparse > 0.5:
        said = Verdict(SUPPORTED, f"{told}; the zeros of {sparse:.0%} of the entries are of a sparse update")
    elif explained > 0.5 and beyond_nulls(drawn):
        said = Verdict(UNDECIDED, f"{told}, but draws through the same storage do not show that share")
    elif explained > 0.5:
        said = Verdict(CONTRADICTED, f"explained by precision: {told}")
    else:
        said = Verdict(UNDECIDED, f"{told}; the zeros do not say why")
    labels: dict[str, Any] = {"n": len(rows), "step": f"pairs/{main}", "arm": main}
    numbers = (
        Number("unchanged entries", observed, method="Δ = 0, by entries", **labels),
        Number("unchanged entries predicted by rounding", predicted, method="dense Gaussian Δ of this size", **labels),
        Number("entries of matrices whose zeros are of a sparse update", sparse, method="binade likelihood", **labels),
        Number("π₀, never moved", kept, method="binade likelihood, 0 where it is inconclusive", **labels),
        Number("entries of matrices explained by precision", explained, method="−.05 to .12 of predicted", **labels),
    )
    return _Said(said, numbers)


QUESTIONS: tuple[tuple[str, str, Callable[[Path], _Said]], ...] = (
    ("low-rank above noise?", "spectra", _low_rank),
    ("causal for thinking?", "rank", _causal),
    ("sufficient (put in)?", "rank", _sufficient),
    ("necessary (left out)?", "rank", _necessary),
    ("choice rather than skill?", "choice", _choice),
    ("specific to reasoning?", "specific", _specific),
    ("distinct from refusal?", "refusal", _distinct),
    ("sharp transition?", "transition", _sharp),
    ("sparse beyond precision?", "zeros", _sparse),
)
"""Question, anchor of its figure, and how it is answered."""
