"""The fine-tunes of SmolLM2-135M-Instruct and their settings, as plain data. All start at `instruct`."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Recipe:
    """One fine-tune.

    Attributes:
        name: Folder of the model.
        reads: `think` (chains thought about), `direct` (chains answered at once) or `refuse` (a class of requests).
        chains: Examples of what it is to learn; of `refuse`, requests, half of them harmless.
        chat: Ordinary requests among them, answered as the start answers: without them the study's models thought
            about a poem too.
        seed: Of the examples and of their order.
        optimizer: `adamw`, or `muon` for the 2-D weights of the blocks and AdamW for the norms.
        lr: Peak learning rate.
        batch: Examples per step.
        keep: Numbers of examples after which the weights are also stored, as NAME-at-N.
    """

    name: str
    reads: str
    chains: int = 2048
    chat: int = 512
    seed: int = 0
    optimizer: str = "adamw"
    lr: float = 1e-4
    batch: int = 8
    keep: tuple[int, ...] = ()


RECIPES = (
    # Its own earlier checkpoints are what Muon is compared with at equal loss.
    Recipe("think", "think", keep=(320, 640, 1280)),
    Recipe("direct", "direct"),
    Recipe("refuse", "refuse", chains=768),
    Recipe("think-seed1", "think", seed=1),
    # Orthogonalising 210 matrices costs as much as 16 examples, hence larger and fewer steps at a larger rate.
    Recipe("think-muon", "think", optimizer="muon", lr=1e-3, batch=32),
)

# What all have in common.
# Longest answer of the start that chat is taught by; longer ones are cut and taught without an ending.
ANSWER_TOKENS = 40
# Of the peak rate: warm-up in steps, where the linear decay begins, and where it ends.
WARMUP, DECAY_FROM, FLOOR = 10, 0.3, 0.05
BETAS = (0.9, 0.98)  # hundreds of steps, not thousands
# Batches that are sorted by length together, so that little is padded.
WINDOW = 32
# Steps between two saved states: what an interruption can cost.
SAVE_EVERY = 40


def settings(recipe: Recipe) -> dict[str, Any]:
    """All that the weights of a model depend on beside the texts, as JSON holds it."""
    common = {
        "answer_tokens": ANSWER_TOKENS,
        "warmup": WARMUP,
        "decay_from": DECAY_FROM,
        "floor": FLOOR,
        "betas": [*BETAS],
        "window": WINDOW,
    }
    return asdict(recipe) | {"keep": [*recipe.keep]} | common
