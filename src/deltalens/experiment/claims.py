"""Published claims that contradict each other, beside what this experiment shows, and the choice that parts them.

A word is about the paper's own kind of number, taken here: `agrees`, `disagrees`, or `cannot say`. What such a number
means depends on the null that stands beside it and on the choice that is named last; one pair does not refute a paper.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltalens.errors import DeltalensError
from deltalens.experiment import claims_measured
from deltalens.experiment.evidence import pairs_of


@dataclass(frozen=True, slots=True)
class Claim:
    """A published claim beside this experiment.

    Attributes:
        paper: arXiv number and authors.
        title: Of the paper, in short.
        says: What it says, in our words.
        here: What this experiment shows, with intervals or nulls.
        word: `agrees`, `disagrees` or `cannot say`.
        difference: The measurement choice that makes the difference.
    """

    paper: str
    title: str
    says: str
    here: str
    word: str
    difference: str


def claims(exp: Path) -> list[Claim]:
    """Every claim, in order; what is missing is said.

    Args:
        exp: The experiment's directory; it may still be running.

    Raises:
        BadInput: It is none.
    """
    pairs_of(exp)
    return [_claim(exp, *claim) for claim in CLAIMS]


_Ask = Callable[[Path], tuple[str, str]]


def _claim(exp: Path, paper: str, title: str, says: str, difference: str, ask: _Ask) -> Claim:
    try:
        word, here = ask(exp)
    except DeltalensError as problem:
        word, here = claims_measured.CANNOT_SAY, f"Not measured: {problem.error}."
    return Claim(paper, title, says, here, word, difference)


CLAIMS: Sequence[tuple[str, str, str, str, _Ask]] = (
    (
        "arXiv 2505.11711 (Mukherjee et al.)",
        "RL finetunes small subnetworks",
        "Training by reward is reported to change only 5 to 30 % of the weights, by updates of nearly full rank.",
        "Zeros are counted on a 16-bit grid that hides every move below half a step, and on such a grid even a delta "
        "of rank 4 has full numerical rank: zeros are read beside the predicted share, rank as spikes above noise.",
        claims_measured.sparse,
    ),
    (
        "arXiv 2510.00553 (Cai et al.)",
        "Rank-1 dominance of RL updates",
        "The first singular direction of every matrix's update is reported to recover more than 99 % of the gain.",
        "There the kept direction is stretched to the norm of the whole update, by 1/√e₁, which extrapolates along it "
        "as much as it truncates: rank 1 is shown raw and stretched, and its share as energy, not as norm.",
        claims_measured.rank_one,
    ),
    (
        "arXiv 2605.21468 (RELEX)",
        "Rank-1 training trajectories",
        "The path of the weights through training is reported to follow one direction, nearly linearly in time.",
        "A direction of the path lives in all parameters at once and may have full rank as a matrix: it is not the "
        "first singular direction of a matrix. A random walk too has .81 of its path in one direction.",
        claims_measured.path,
    ),
    (
        "arXiv 2511.08567 (Zhu et al.)",
        "The path not taken",
        "Training by reward is reported to move weights off the principal directions of the base, unlike supervised "
        "training.",
        "There entries of masks are counted, which depend on |w| and on the storage grid: a structureless update gives "
        "the same overlaps. Energy in singular coordinates does not depend on them. Two trainings compare only at "
        "equal size.",
        claims_measured.off_principal,
    ),
    (
        "arXiv 2509.17866 (He and Cao)",
        "Near-uniform scaling and a shared rotation",
        "Post-training is reported to scale singular values almost uniformly and to rotate both sides alike.",
        "Ratios of σ near 1 and rotations that agree on both sides follow for any small update: the test is a scale "
        "beyond its null. Agreement of the two rotations is not tested here. A large update moves the spectrum at "
        "second order.",
        claims_measured.scaling,
    ),
    (
        "arXiv 2508.16546 (Jin et al.)",
        "RL is neither a panacea nor a mirage",
        "Singular values are reported to stay almost constant, while directions rotate at both ends of the spectrum, "
        "so that restoring them recovers most of what was lost outside the training distribution.",
        "An angle is size over gap: it is read beside that of the same update with random signs. Restored there are "
        "directions of a supervised checkpoint, in bases that are not orthonormal.",
        claims_measured.extremes,
    ),
    (
        "arXiv 2509.01363 (Zbeeb et al.)",
        "Reasoning vectors",
        "Adding the difference of two trained checkpoints is reported to raise benchmark accuracy, and taking it away "
        "to lower it.",
        "Accuracy mixes the choice to think with the skill and the format of answers: thinking is forced as well, and "
        "what is taken from the base is shown apart from what is taken out of the tuned model.",
        claims_measured.removal,
    ),
    (
        "arXiv 2510.10977 (Wu et al.)",
        "Interpolation: where thinking comes on",
        "Between instruct and thinking weights, thinking is reported to come on at λ from .4 to .6, abruptly.",
        "The greedy think ratio is a step function of p_think: it may jump where log-odds are straight. Both have "
        "their λ50, and J says how much of the change of log-odds lies within .2 of λ.",
        claims_measured.switch,
    ),
    (
        "arXiv 2510.10977 (Wu et al.)",
        "Interpolation: the MLP carries the switch",
        "Leaving the MLP at instruct is reported to remove thinking, leaving attention there to keep it.",
        "There parts are skipped at λ = .8 and outputs counted that close a thought; here at λ = 1, by the probability "
        "of thinking, beside each part moved alone.",
        claims_measured.mlp,
    ),
)
"""Paper, title, what it says, what makes the difference, and how it is held against this experiment."""
