"""How a completion is chosen, decided before a model is loaded. Loads no torch."""

from dataclasses import dataclass

from deltalens.errors import BadInput

COLDEST = 1e-6
"""The least temperature but 0: below it logits divided by the temperature leave the range of numbers."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a completion is chosen.

    Args:
        max_new_tokens: Bound on a completion; one that reaches it is returned as it is.
        temperature: 0 takes the most likely token; above, the logits are divided by it and a token is drawn.
        top_p: Draw from the fewest likeliest tokens that hold this much probability (nucleus sampling,
            arXiv 1904.09751).
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise BadInput(f"max_new_tokens is {self.max_new_tokens}", "a number of tokens, 0 or more")
        if self.temperature != 0 and not COLDEST <= self.temperature < float("inf"):
            raise BadInput(f"temperature is {self.temperature}", f"0 for greedy decoding, or {COLDEST} and more")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p is {self.top_p}", "a share above 0 and up to 1")
