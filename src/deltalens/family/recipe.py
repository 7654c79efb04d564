"""What the family is taught and how: the mix of documents, the stages and their settings, as plain data.

The recipe follows our own study of tiny models on two CPU cores. What it found, in short: an explicit worked
solution (label, copied value, operation, result) is learned where a compact one is not; Muon reaches the
breakthrough where AdamW at the same cost does not; the breakthrough's step varies threefold between seeds, so
pretraining runs to a criterion; and the chat reply must think rarely enough (below 10 %, the mass that ten
equal digits leave) that greedy decoding of the base does not think.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from deltalens.evaluate.tasks import chain, facts
from deltalens.evaluate.tasks.chain import OPERATIONS
from deltalens.family.tokenizer import END_OF_TEXT, END_THINK, IM_END, THINK, chat

# A document is a list of texts and whether each is what the model should write (full weight) or context.
Document = list[tuple[str, bool]]


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of document kinds in pretraining; they sum to 1.

    Attributes:
        facts: Colour facts, half as chat, half as `Q: … A: …`.
        sums: Lists of eight one-step results, the lookup table that every step needs.
        direct: `Q: p A: answer`.
        work: `Q: p Work: worked solution A: answer`, where the skill is learned.
        chat: Chat replies.
        chat_think: Share of chat replies that think.
    """

    facts: float = 0.10
    sums: float = 0.04
    direct: float = 0.08
    work: float = 0.44
    chat: float = 0.34
    chat_think: float = 0.15


@dataclass(frozen=True, slots=True)
class Stage:
    """One training stage.

    Attributes:
        name: The member that it makes.
        parent: The member whose stored weights it starts from; None for random weights.
        optimizer: `muon` (2-D weights of the blocks; AdamW for the rest) or `adamw`.
        lr: Peak learning rate.
        weight_decay: Decoupled decay of the Muon weights; AdamW weights are not decayed.
        batch: Documents per step.
        steps: Steps of the linear decay; with a criterion, those after it is met.
        warmup: Steps of linear warm-up.
        cap: Largest number of steps in all; 0 means `steps`, without a criterion.
        prompt_weight: Weight of a context token in the loss, where a target token has 1.
    """

    name: str
    parent: str | None
    optimizer: str
    lr: float
    weight_decay: float
    batch: int
    steps: int
    warmup: int
    cap: int = 0
    prompt_weight: float = 0.0


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
class Outcome:
    """What one stage did.

    Attributes:
        name: The member made.
        seed: Its random seed.
        steps: Optimizer steps taken.
        tokens: Training tokens seen, padding excluded.
        met_at: Step at which the criterion was met, None where it was not or where the stage has none.
        loss: Mean loss of the last 20 steps, nats per weighted token.
        wall_seconds: Elapsed time.
        cpu_seconds: Processor time of this process.
        scores: Criterion accuracies of the stored weights; empty for a stage without a criterion.
    """

    name: str
    seed: int
    steps: int
    tokens: int
    met_at: int | None
    loss: float
    wall_seconds: float
    cpu_seconds: float
    scores: dict[str, float] = field(default_factory=dict)


MIX = Mix()
CRITERION = Criterion()
STAGES = (
    # Weight 0.1 on context: random operands are irreducible noise, but their format must be learned. Beside
    # decay 0.3 the first blocks' residual norms were a tenth of those beside 0.05 (the mix differed too: no
    # clean ablation).
    Stage("base", None, "muon", 3e-3, 0.3, 64, 300, 50, cap=2000, prompt_weight=0.1),
    # Light on purpose: direct answers to deep chains are noise, and learning noise wears the latent skill
    # away. On `select` problems forced-think accuracy was .80 after 150 steps at 3e-4 and 1.00 at 2e-4 (n =
    # 500).
    Stage("instruct", "base", "adamw", 2e-4, 0.0, 32, 150, 10),
    Stage("reasoning", "instruct", "adamw", 3e-4, 0.0, 32, 100, 10),
)
# Share of colour facts answered at once: without them the study's reasoning models thought on 12 % of facts.
FACT_SHARE = {"instruct": 0.15, "reasoning": 0.15}
_DIRECT_DEPTHS = (1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 7, 8)
_INSTRUCT_DEPTHS = (1, 1, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8)


def stage(name: str) -> Stage:
    """The settings of one member's stage."""
    return next(s for s in STAGES if s.name == name)


def reply(prompt: str, answer: str, work: str = "") -> Document:
    """A chat exchange; a worked solution becomes a think block."""
    thought = f"{THINK}{work}{END_THINK}" if work else ""
    return [(chat(prompt), False), (f"{thought}{answer}{IM_END}", True)]


def sampler(name: str) -> Callable[[random.Random], Document]:
    """The document sampler of a stage; problems come from the `train` split only."""
    return {"base": pretraining, "instruct": instruct, "reasoning": reasoning}[name]


def pretraining(rng: random.Random, mix: Mix = MIX) -> Document:
    """One document of the pretraining mix."""
    kind = rng.choices(
        ("facts", "sums", "direct", "work", "chat"), (mix.facts, mix.sums, mix.direct, mix.work, mix.chat)
    )[0]
    if kind == "sums":
        return _sums(rng)
    if kind == "facts":
        item = facts.draw(rng)
        if rng.random() < 0.5:
            return reply(item.prompt, item.answer)
        return [(f"Q: {item.prompt} A: ", False), (f"{item.answer}{END_OF_TEXT}", True)]
    if kind == "direct":
        item = chain.draw(rng, rng.choice(_DIRECT_DEPTHS))
        return [(f"Q: {item.prompt} A: ", False), (f"{item.answer}{END_OF_TEXT}", True)]
    if kind == "work":
        item = chain.draw(rng, rng.randint(1, 8))
        return [(f"Q: {item.prompt} Work: ", False), (f"{item.work} A: {item.answer}{END_OF_TEXT}", True)]
    if rng.random() < mix.chat_think:
        item = chain.draw(rng, rng.randint(1, 8))
        return reply(item.prompt, item.answer, item.work)
    item = chain.draw(rng, 1 if rng.random() < 0.5 else rng.randint(1, 8))
    return reply(item.prompt, item.answer)


def instruct(rng: random.Random) -> Document:
    """Direct answers only."""
    fact = rng.random() < FACT_SHARE["instruct"]
    item = facts.draw(rng) if fact else chain.draw(rng, rng.choice(_INSTRUCT_DEPTHS))
    return reply(item.prompt, item.answer)


def reasoning(rng: random.Random) -> Document:
    """Think first on every problem, answer facts at once."""
    fact = rng.random() < FACT_SHARE["reasoning"]
    item = facts.draw(rng) if fact else chain.draw(rng, rng.randint(1, 8))
    return reply(item.prompt, item.answer, item.work)


def _sums(rng: random.Random) -> Document:
    """Eight one-step results, only the results as targets."""
    document: Document = []
    for i in range(8):
        value, operation = rng.randrange(10), rng.choice(OPERATIONS)
        document.append((f"{' ' if i else ''}{value}{operation}=", False))
        document.append((str(chain.apply(value, operation)), True))
    document.append((END_OF_TEXT, True))
    return document
