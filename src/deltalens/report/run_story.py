"""What the page of a run tells, phase by phase; a step that is absent has a part that says so."""

from collections.abc import Callable

from deltalens.report.experiment_read import Trial
from deltalens.report.run_behaviour import (
    of_behaviour,
    of_choice,
    of_claims,
    of_probe,
    of_refusal,
    of_specific,
    of_steer,
    of_sweep,
)
from deltalens.report.run_map import of_map
from deltalens.report.run_parts import Part, Section, Told
from deltalens.report.run_read import Whole
from deltalens.report.run_weights import of_atlas, of_spectra, of_stages, of_zeros

PUBLISHED = ("lox-reasoning", "spectrum-behaviour", "contrast")
"""Further methods that a full run adds."""

_STEPS: tuple[tuple[str, str, Callable[[Whole, Trial], Told]], ...] = (
    ("rank", "Put in and leave out: the leading k directions", of_sweep),
    ("transition", "Interpolate: base + λΔ", of_sweep),
    ("steer-up", "Push the base along the direction", of_steer),
    ("steer-down", "Push the tuned model against it", of_steer),
    ("negate", "Take it out, and see what else goes", of_sweep),
)


def story(whole: Whole) -> list[Section]:
    """Every section, in the order of the phases; a step that is absent has a part that says so."""
    told = [
        Section("Do both models run, and does one think?",
                "Before any weight is read: the models on the same items, and the shift that has to be explained.",
                [_of(whole, "eval", "Behaviour of every model", of_behaviour)]),
        Section("What changed in the weights?",
                "Singular values of every Δ = W_tuned − W_base against what rounding and chance would show.",
                [of_spectra(whole), of_zeros(whole)]),
        Section("Is there a direction of thinking?",
                "The difference of means of the two models on the same prompts, read layer by layer beside its nulls.",
                [_of(whole, "probe", "Separation", of_probe), of_refusal(whole)]),
        Section("Does changing it change thinking?",
                "Every edit is judged by its effect less that of its largest control, on items not used to choose it.",
                [of_claims(whole), *(_of(whole, step, title, work) for step, title, work in _STEPS),
                 _of(whole, "rank", "Choice or skill", of_choice, "choice")]),
        Section("Is it reasoning, or any training?",
                "Leading parts of other trainings' Δ, stretched to the same functional norm, in the same base.",
                [_of(whole, "specific", "Other trainings at equal functional norm", of_specific)]),
        Section("Where in Δ does it sit?",
                "Parts of Δ alone: put into the base, or left out of the tuned model.",
                [_of(whole, "map", "Causal map", of_map)]),
        Section("What did the stage before already hold?",
                "Δ₁ to the base of the pair, Δ₂ from there: what the second shares with the first, undoes and adds.",
                [of_stages(whole)]),
        Section("Which trainings share their directions?",
                "Overlap of the leading subspaces of every two Δ, against the largest of its nulls.",
                [of_atlas(whole)]),
    ]  # fmt: skip
    published = [step for step in PUBLISHED if step in whole.trials]
    if published:
        told[3].parts.extend(_of(whole, step, step, of_sweep) for step in published)
    return told


def _of(whole: Whole, step: str, title: str, work: Callable[[Whole, Trial], Told], anchor: str = "") -> Part:
    trial = whole.trials.get(step)
    if trial is None:
        return Part(anchor or step, title, absent=whole.why(step))
    return Part(anchor or step, title, *work(whole, trial))
