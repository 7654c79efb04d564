"""Negate: ways to take reasoning out of a model, and what else each takes (the ledger is ours).

    base − ατ      the opposite of what was learned, over every tensor (task arithmetic, arXiv 2212.04089)
    tuned − Δ_k    the leading k singular triples of the delta taken back, of the seven linear kinds
    tuned − αΔ_4   the same four, partly or more than wholly
    cut            (I − v̂v̂ᵀ)W of every o_proj and down_proj of the tuned model (abliteration, arXiv 2406.11717)

v, of one layer or of all, is a difference of means at the last prompt token of the tuned model: prompts of the extract
split that it thinks about less those that it answers at once. Where it does not do both, it is tuned − base on the
prompts of the swept task, another direction that other layers answer to: the summary says which was cut. A bank of them
is left beside the tables, for `deltalens cut` and `compare`.

Each operating point also answers the other tasks and the neutral text: a model that no longer thinks may have lost the
skill (forced accuracy), the facts, or its text with it. Whether a cut of one direction does anything depends on the
layer and the pair, so that every layer's stands beside the others and beside what reverting does.
Controls of weights are those of `sweep.matched`; those of a cut are the same cut along permuted and isotropic ones.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deltalens.direction.bank import write_bank
from deltalens.edit.form import Triples
from deltalens.edit.plan import Plan
from deltalens.edit.shares import change_norm, left_along
from deltalens.evaluate.prompts import Prompts
from deltalens.evaluate.scores import Row
from deltalens.methods.matched import FEWEST
from deltalens.store.engine import Progress
from deltalens.sweep.activation_arms import (
    Along,
    cut,
    cut_controls,
    directions,
    extract,
    ids_of,
    read_last,
    span,
)
from deltalens.sweep.bench import BASE, TUNED, Bench, Point, bench, edited, ends, score
from deltalens.sweep.curves import Curve, Swept, sweep, write
from deltalens.sweep.matched import Matched
from deltalens.sweep.pair import Pairing, opened
from deltalens.sweep.spectrum import along_ranks, energy, ranks, spectra
from deltalens.sweep.verdicts import CONTRADICTED, SUPPORTED, UNDECIDED

VERSION = 2
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""

STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0)
"""α of base − ατ."""
OVER = (0.5, 1.0, 1.5, 2.0)
"""α of tuned − αΔ_k: 2 mirrors what was learned at the base."""
RANK = 4
"""k of tuned − αΔ_k: as many directions as the family's cuts have layers."""
MOST = 64
"""Leading triples of a matrix that are found; removal, where it comes, comes with the first few."""
LAYERS = 6
"""Single directions that are cut at most, spread evenly: each has controls of its own."""
BANK = "directions.safetensors"

LEGEND = (
    "τ, Δ = tuned − base; Δ_k: the leading k singular triples of the seven linear kinds; v: mean difference at the\n"
    "last prompt token of one layer; cut: (I − v̂v̂ᵀ)W of every o_proj and down_proj. from: where strength 0 stands,\n"
    "and what effects are taken from. F: (arm − base)/(tuned − base); on a curve from tuned it is what is left.\n"
    "choice: thinking falls by 0.5 and forced accuracy by less than 0.1. Controls of weights keep the functional norm\n"
    "‖ΔΣ^½‖; those of a cut are the same cut along permuted and isotropic directions. Intervals of claims are 99.4 %."
)

Ids = list[list[int]]


def negate(
    asked: Pairing,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
    kl: bool = True,
) -> Swept:
    """Takes reasoning out of a pair in four ways, with the ledger of each.

    Args:
        asked: From `sweep.pair.pairing`; its `sibling` gives a control.
        out: Directory for the tables, where an interrupted sweep resumes; None keeps nothing.
        progress: Called after every point.
        command: The command line to record.
        kl: Whether KL from the base is taken.

    Raises:
        BadInput: The model does not load.
        Refused: The linear kinds do not differ, or `out` holds something else.
    """
    kept: dict[tuple[str, ...], Triples] = {}
    of = spectra(asked, kept, MOST)
    rank = min(RANK, max(s.full for s in of))

    def against(strength: float) -> Plan:
        return opened(asked, {"operator": "negate", "strength": strength})

    def over(strength: float) -> Plan:
        return opened(asked, {"operator": "revert", "rank": rank, "strength": strength}, kept)

    tau, leading = change_norm(against(1.0)), energy(of, float(rank)) ** 0.5

    def opposite(strength: float) -> Point:
        return edited(f"base − {strength:g}τ", "edit", against(strength), strength, strength * tau)

    def reverted(strength: float) -> Point:
        return edited(f"tuned − {strength:g}Δ_{rank}", "edit", over(strength), strength, strength * leading)

    with bench(asked, {"recipe": "negate", "version": VERSION}, out, progress, command, kl) as at:
        matched, task = Matched(at), asked.prompts.task.name
        controls = lambda p: matched.points(p, over(p.strength or 1.0))  # noqa: E731
        curves = [
            Curve("base − ατ", BASE, STRENGTHS, opposite, asks=()),
            along_ranks(asked, kept, _OUT, of, ranks(of, 4.0, MOST), _ASKS, matched, out=True),
            Curve(f"tuned − αΔ_{rank}", TUNED, OVER, reverted, controls, _ASKS),
        ]
        cuts = cut_curves(at, out or at.parts)
        left = [{"arm": c.curve.name, "task": task, "group": "", **c.left} for c in cuts]
        found = sweep(at, [*curves, *(c.curve for c in cuts)], ledger=True, more=left)
        found = replace(found, summary=[*found.summary, *_reliability(found, cuts), *_direction(asked, cuts)])
        write(out, "negate", found)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A cut as a curve of one point.

    Attributes:
        curve: Starts at the tuned model.
        single: Whether it is of one direction.
        left: Of a summary: what is still written along the direction.
        contrast: What the direction is, in words.
    """

    curve: Curve
    single: bool
    left: Row
    contrast: str


def cut_curves(at: Bench, folder: Path) -> list[Cut]:
    """The cut of every layer's direction and of all at once; none where no activation tells thinking apart.

    Args:
        at: The bench.
        folder: Where the bank of the directions is left.
    """
    found = thinking_directions(at)
    if not found:
        return []
    whole = span(found)
    write_bank(folder / BANK, [*(a.direction for a in found), whole.direction])
    some = np.unique(np.linspace(0, len(found) - 1, min(len(found), LAYERS)).round().astype(int))
    named = {f"cut v of layer {found[i].direction.layer}": replace(found[i], others=()) for i in some}
    return [_cut(at.pairing, n, a, folder) for n, a in (named | {"cut v of all layers": whole}).items()]


def thinking_directions(at: Bench) -> list[Along]:
    """The direction of every layer towards thinking; see the module."""
    asked = at.pairing
    base, tuned = ends(asked)
    swept, *others = (extract(asked, task) for task in (asked.prompts.task, *(p.task for p in asked.ledger)))
    thinks, at_once = _groups(at, tuned, [p for p in (swept, *others) if p is not None])
    if min(len(thinks), len(at_once)) >= FEWEST:
        both, n = read_last(at, tuned, [*thinks, *at_once]), len(thinks)
        first, second = ({layer: rows[part] for layer, rows in both.items()} for part in (slice(n), slice(n, None)))
        return directions(first, second, False, "thinks − answers at once, tuned")
    ids = ids_of(asked, swept or asked.chosen_on)
    now = read_last(at, tuned, ids)
    return directions(now, read_last(at, base, ids), True, "tuned − base", now)


def _groups(at: Bench, tuned: Point, some: Sequence[Prompts]) -> tuple[Ids, Ids]:
    """Different prompts that the tuned model thinks about more likely than not, and those that it does not."""
    if not some:
        return [], []
    task, chat, metric = some[0].task, some[0].chat, at.pairing.metric
    ids = {mode: [row for p in some for row in p.ids[mode]] for mode in some[0].ids}
    every = Prompts(task, "extract", tuple(item for p in some for item in p.items), chat, ids)
    values = score(at, [tuned], every)[0].values(metric)
    thinks = {  # more likely than not
        tuple(row): (p >= 0.5) != (metric == "p_skip") for row, p in zip(ids_of(at.pairing, every), values, strict=True)
    }
    return [list(r) for r, does in thinks.items() if does], [list(r) for r, does in thinks.items() if not does]


def _cut(asked: Pairing, name: str, along: Along, folder: Path) -> Cut:
    reference = f"{folder / BANK}#{along.direction.id}"
    plan = opened(asked, {"operator": "cut", "direction": reference, "kinds": ["o_proj", "down_proj"]})
    point = cut(name.replace("cut", "tuned without"), plan, BANK)
    single = len(along.samples) == 1
    controls = lambda p: cut_controls(p, along, plan, BANK)  # noqa: E731
    curve = Curve(name, TUNED, (1.0,), lambda _: point, controls, _ASKS, rivals="cuts of one layer" if single else "")
    left = left_along(plan, plan.edit.operations[0]).get("embed")
    how = "share in the embedding of all that is written along v, which is not cut"
    return Cut(curve, single, {"metric": "left_along", "value": left, "method": how}, along.direction.contrast or "")


def _reliability(found: Swept, cuts: Sequence[Cut]) -> list[Row]:
    """How many cuts of one direction are shown to be enough, beside what reverting comes to."""

    def word(curve: str) -> str:
        row = next(row for row in found.drawn[curve].rows if row["metric"] == "necessary")
        return row["method"].partition(":")[0]

    words = Counter(word(c.curve.name) for c in cuts if c.single)
    if not words:
        return []
    told = ", ".join(f"{words[w]} {w}" for w in (SUPPORTED, CONTRADICTED, UNDECIDED))
    how = f"cuts of one direction that are necessary: {told}; {_OUT}: {word(_OUT)}"
    labels = {"arm": "pair", "task": found.tuned.prompts.task.name, "group": ""}
    return [labels | {"metric": "cuts_that_remove_thinking", "value": float(words[SUPPORTED]), "method": how}]


def _direction(asked: Pairing, cuts: Sequence[Cut]) -> list[Row]:
    """What was cut."""
    contrasts = dict.fromkeys(cut.contrast for cut in cuts)
    labels = {"arm": "pair", "task": asked.prompts.task.name, "group": "", "value": None}
    return [labels | {"metric": "cut_direction", "method": contrast} for contrast in contrasts]


_ASKS = ("causal", "necessary", "choice")
_OUT = "tuned − Δ_k"
