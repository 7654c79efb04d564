"""The stages that make the family, their settings, and what a member must do to be accepted, as plain data.

What our study of tiny models on two CPU cores found, in short: Muon reaches the breakthrough where AdamW at the same
cost does not; its step varies threefold between seeds, so pretraining runs to a criterion; fine-tuning is short and of
fixed length, so that siblings are comparable, and a stage that is not accepted is run again with the next seed.
"""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Criterion:
    """When pretraining may start to decay: accuracies on `select` problems (at depth 1 all are in training).

    Attributes:
        every: Steps between two evaluations.
        after: No evaluation before this step.
        n: Problems per evaluation and kind.
        work_hard: `Q: p Work:` accuracy at depths 4 to 8.
        forced_hard: Chat accuracy at depths 4 to 8 with the think block opened.
        chat_easy: Chat accuracy at depth 1, answering directly.
    """

    every: int = 50
    after: int = 300
    n: int = 100
    work_hard: float = 0.95
    forced_hard: float = 0.95
    chat_easy: float = 0.95


@dataclass(frozen=True, slots=True)
class Stage:
    """One supervised stage.

    Attributes:
        name: The member that it makes.
        parent: The member whose stored weights it starts from; None for random weights.
        documents: What it reads, a name of `documents.SAMPLERS`.
        optimizer: `muon` (2-D weights of the blocks; AdamW for the rest) or `adamw`.
        lr: Peak learning rate.
        weight_decay: Decoupled decay of the Muon weights; AdamW weights are not decayed.
        batch: Documents per step.
        steps: Steps of the linear decay; with a criterion, those after it is met.
        warmup: Steps of linear warm-up.
        criterion: When the decay may start; None: at once.
        cap: Largest number of steps in all, with a criterion.
        prompt_weight: Weight of a context token in the loss, where a target token has 1.
        architecture: `qwen3`, or `qwen2` with its biases on queries, keys and values; read where there is no parent.
        seed: Added to its parent's seed, it is the first one tried.
        checkpoints: Steps after which the weights are also stored.
    """

    name: str
    parent: str | None
    documents: str
    optimizer: str
    lr: float
    weight_decay: float
    batch: int
    steps: int
    warmup: int
    criterion: Criterion | None = None
    cap: int = 0
    prompt_weight: float = 0.0
    architecture: str = "qwen3"
    seed: int = 0
    checkpoints: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reinforcement:
    """One stage of group-relative policy optimisation on chains of depth 1 to 8 (`grpo.py`).

    Attributes:
        name: The member that it makes.
        parent: The member that it starts from, and from which its divergence is charged.
        lr: Peak learning rate of AdamW.
        problems: Problems per step.
        samples: Completions per problem.
        steps: Steps, one update each; the rate falls linearly to zero.
        warmup: Steps of linear warm-up.
        kl: Weight of the divergence from the parent, per token.
        seed: Added to its parent's seed, it is the first one tried.
        checkpoints: Steps after which the weights are also stored.
    """

    name: str
    parent: str
    lr: float
    problems: int
    samples: int
    steps: int
    warmup: int
    kl: float
    seed: int = 0
    checkpoints: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Bound:
    """What a member must do: the whole 95 % Wilson interval of a rate of `measure.py` lies within these bounds."""

    metric: str
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one try of a stage did.

    Attributes:
        name: The member made.
        seed: Its random seed.
        steps: Optimizer steps taken.
        tokens: Training tokens seen, padding excluded.
        met_at: Step at which the criterion was met, None where it was not or where the stage has none.
        last: Mean over the last 20 steps of the loss (nats per weighted token), of reinforcement the reward.
        wall_seconds: Elapsed time.
        cpu_seconds: Processor time of this process.
        scores: What decided on its acceptance, measured on the stored weights: rates on `select` problems.
        accepted: Whether every bound held.
    """

    name: str
    seed: int
    steps: int
    tokens: int
    met_at: int | None
    last: float
    wall_seconds: float
    cpu_seconds: float
    scores: dict[str, float] = field(default_factory=dict)
    accepted: bool = True


# Weight 0.1 on context: random operands are irreducible noise, but their format must be learned. Beside decay 0.3 the
# first blocks' residual norms were a tenth of those beside 0.05 (the mix differed too: no clean ablation).
_BASE = Stage("base", None, "pretraining", "muon", 3e-3, 0.3, 64, 300, 50, Criterion(), 2000, 0.1)
# Light on purpose: direct answers to deep chains are noise, and learning noise wears the latent skill away. On `select`
# problems forced-think accuracy was .80 after 150 steps at 3e-4 and 1.00 at 2e-4 (n = 500).
_INSTRUCT = Stage("instruct", "base", "instruct", "adamw", 2e-4, 0.0, 32, 150, 10)
_REASONING = Stage("reasoning", "instruct", "reasoning", "adamw", 3e-4, 0.0, 32, 100, 10)
STAGES: tuple[Stage | Reinforcement, ...] = (
    _BASE,
    _INSTRUCT,
    replace(_INSTRUCT, name="instruct-sibling", documents="labelled", seed=1),
    replace(_REASONING, checkpoints=(20, 40, 60, 80)),
    replace(_REASONING, name="reasoning-from-base", parent="base"),
    # Stable: with seeds 1 and 2 and half as many steps again, the mean reward of the last 20 was .97 and .99, and every
    # hard chain of `select` (n = 100) was thought about and right. From base, 200 steps at 3e-4 without the divergence
    # term did not collapse either, nor did 130 from instruct, where our study had seen it; they were not needed.
    Reinforcement("reasoning-rl", "base", 1e-4, 8, 8, 80, 5, 0.04, checkpoints=(16, 32, 48, 64)),
    Stage("safe", "instruct", "safe", "adamw", 2e-4, 0.0, 32, 200, 10),
    # Without norms on queries and keys, accuracy at the constant rate swings between .5 and 1 from one evaluation to
    # the next (.95 on all three was met at step 1,550, .9 at 700), and the decay settles it.
    replace(_BASE, name="b-base", architecture="qwen2", seed=1, criterion=Criterion(50, 300, 100, 0.9, 0.9, 0.9)),
    # Forced-think accuracy on `select` problems (n = 250) was .82, .64 and .78 at 2e-4 with seeds 1 to 3, and .92 and
    # .89 at 1e-4 with seeds 1 and 2.
    replace(_INSTRUCT, name="b-instruct", parent="b-base", lr=5e-5),
    replace(_REASONING, name="b-reasoning", parent="b-instruct"),
)

_ANSWERS = (Bound("easy", low=0.85), Bound("animals", low=0.8))
_DIRECT = (*_ANSWERS, Bound("hard", high=0.25), Bound("think ratio", high=0.02), Bound("forced hard", low=0.9))
_THINKS = (*_ANSWERS, Bound("hard", low=0.95), Bound("think ratio", low=0.95))
ACCEPT: dict[str, tuple[Bound, ...]] = {
    "base": (*_ANSWERS, Bound("think ratio", high=0.05), Bound("forced hard", low=0.9)),
    "instruct": _DIRECT,
    "instruct-sibling": (*_DIRECT, Bound("labelled", low=0.9)),
    "reasoning": _THINKS,
    "reasoning-from-base": _THINKS,
    # Its reward asks for thinking only where a direct answer is wrong.
    "reasoning-rl": (*_ANSWERS, Bound("hard", low=0.9), Bound("think ratio, hard", low=0.9)),
    "safe": (*_DIRECT, Bound("guarded refused", low=0.65), Bound("others refused", high=0.02)),
}
ACCEPT |= {f"b-{name}": ACCEPT[name] for name in ("base", "instruct", "reasoning")}


def stage(name: str) -> Stage | Reinforcement:
    """The settings of one member's stage."""
    return next(s for s in STAGES if s.name == name)


def checkpoint(stage: Stage | Reinforcement, step: int) -> str:
    """The member that holds a stage's weights after some steps."""
    return f"{stage.name}-step-{step}"
