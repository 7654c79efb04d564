"""Spectrum against behaviour on any two models, by p_think alone, once it is known which base is the parent.

Δ_k is put into the base and taken out of the tuned model over k = 1, 2, 4, … 64 and the whole, as in
`spectrum_behaviour`; nothing is generated and there is no KL, so that one model is loaded. It asks nothing of the pair
but one architecture and one tokenizer: QwQ-32B against Qwen2.5-32B, say, with Qwen2.5-32B-Instruct as `parent`.

The wrong base adds what separates the two bases to Δ. With a second candidate, each one's relative distance
‖θ_t − θ‖/‖θ_t‖ is measured, and how far the tuned model lies along the line from one to the other (ours):
λ = ⟨θ_t − θ_b, θ_p − θ_b⟩/‖θ_p − θ_b‖², the nearer being the one that λ is nearer to. Training that knows nothing of
that line leaves λ at 0 or 1, where it began; training that undoes what the line taught moves along it, and past the
middle the wrong base is the nearer: `family:reasoning` began at `instruct`, and is nearer to `base`, by 1.05 ×. So
little says nothing, and names go before distances.

Memory for 32 billion weights in bf16: the model (64 GB); while an arm stands, a copy of what it touches (up to 64 GB
more); one matrix of both sides in blocks and its Gram matrix (5120², 0.2 GB) while it is decomposed; 64 triples of each
matrix (4.3 GB). Every arm reads both sides from disk.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from deltalens.edit.form import Triples
from deltalens.edit.select import editable
from deltalens.evaluate.scores import Row
from deltalens.store.engine import Progress
from deltalens.store.parts import Part
from deltalens.sweep.bench import Bench, bench, once
from deltalens.sweep.curves import Swept, sweep, write
from deltalens.sweep.matched import Matched
from deltalens.sweep.pair import Pairing, opened
from deltalens.sweep.spectrum import along_ranks, energies, ranks, spectra
from deltalens.sweep.verdicts import CONTRADICTED, SUPPORTED, UNDECIDED, Verdict

VERSION = 1
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""

MOST = 64
"""Leading triples of a matrix that are found: all of them would be four times the model."""

CLEAR = 2.0
"""How many times nearer a candidate must be for distances to tell the parent (ours; see above)."""

LEGEND = (
    "Δ_k: the leading k singular triples of the delta of every matrix of the seven linear kinds, put into the base or\n"
    "taken out of the tuned model. F: (arm − base)/(tuned − base); on a curve from tuned it is what is left.\n"
    "parentage: by names. relative distance: ‖θ_tuned − θ‖/‖θ_tuned‖. along base to parent: 0 at the base, 1 at the\n"
    "other candidate. parent: how many times nearer the nearer is; below 2 that says nothing.\n"
    "A verdict needs 200 items, an interval 50. Controls keep the functional norm ‖ΔΣ^½‖ of the edit."
)


def direct_pair(
    asked: Pairing,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
    kl: bool = False,
) -> Swept:
    """Says which base is the parent, then puts Δ_k into the base and takes it out of the tuned model.

    Args:
        asked: From `sweep.pair.pairing`; its `parent` is another candidate base, its `sibling` gives a control.
        out: Directory for the tables, where an interrupted sweep resumes; None keeps nothing.
        progress: Called after every point.
        command: The command line to record.
        kl: Is not taken in any case: it needs a second model.

    Raises:
        BadInput: The model does not load.
        Refused: The linear kinds do not differ, or `out` holds something else.
    """
    del kl
    kept: dict[tuple[str, ...], Triples] = {}
    task = asked.prompts.task.name
    of = spectra(asked, kept, MOST)
    xs = ranks(of, most=MOST)
    with bench(asked, {"recipe": "direct-pair", "version": VERSION}, out, progress, command, kl=False) as at:
        matched = Matched(at)
        put = along_ranks(asked, kept, "base + Δ_k", of, xs, ("causal", "sufficient"), matched)
        taken = along_ranks(asked, kept, "tuned − Δ_k", of, xs, ("causal", "necessary"), matched, out=True)
        rows = [*parent(at), *energies(put, of, sum(s.norm_sq for s in of), task)]
        found = sweep(at, [put, taken], generates=False, more=rows)
        write(out, "direct-pair", found)
    return found


def parent(at: Bench) -> list[Row]:
    """What names and weights say about the base of the tuned model; a part, since it reads all models."""
    asked = at.pairing
    found = once(at, "parent", ("parent",), lambda: Part({"squares": _squares(asked)}, {}))
    tuned, tuned_base, *others = found.row["squares"]
    labels = {"arm": "pair", "task": asked.prompts.task.name, "group": "", "value": None}
    known = opened(asked, _WHOLE).pair.parentage
    rows = [{"metric": "parentage", "method": f"{known.verdict}: {known.evidence}"}]
    distance = {asked.base: (tuned_base / tuned) ** 0.5}
    if others:
        tuned_parent, apart = others
        distance[asked.others["parent"].source] = (tuned_parent / tuned) ** 0.5
    rows += [
        {"metric": "relative_distance", "reference": name, "value": d, "method": "‖θ_tuned − θ‖/‖θ_tuned‖"}
        for name, d in distance.items()
    ]
    if others and apart:
        along = (tuned_base + apart - tuned_parent) / (2 * apart)
        rows.append({"metric": "along_base_to_parent", "value": along, "method": "0 at BASE, 1 at the other"})
        rows.append(_nearer(asked.base, distance))
    return [labels | row for row in rows]


_WHOLE = {"operator": "interpolate", "strength": 1.0}


def _nearer(base: str, distance: Mapping[str, float]) -> Row:
    """Which of two candidates is nearer, by what factor, and what to do where it is clearly not the base."""
    near, far = sorted(distance, key=distance.__getitem__)
    factor = distance[far] / distance[near] if distance[near] else None
    said = f"{near} is nearer" + ("" if factor is None else f", {factor:.3g} ×")
    word = UNDECIDED
    if factor is None or factor >= CLEAR:
        word = SUPPORTED if near == base else CONTRADICTED
        said += "" if near == base else ": Δ holds what separates the two, name it as BASE"
    return {"metric": "parent", "reference": near, "value": factor, "method": Verdict(word, said).text}


def _squares(asked: Pairing) -> list[float]:
    """‖θ_t‖², ‖θ_t − θ_b‖² and, with another candidate, ‖θ_t − θ_p‖² and ‖θ_p − θ_b‖², over the tensors of all."""
    other = asked.others.get("parent")
    if other is None:
        plan, pairs = opened(asked, _WHOLE), [("tuned", "base")]
    else:
        plan = opened(asked, {"operator": "contrast", "plus": other.source, "minus": "base"})
        pairs = [("tuned", "base"), ("tuned", other.source), (other.source, "base")]
    rows = [row for row in editable(plan.pair) if all(row.name.name in plan.models[a].tensors for a, _ in pairs)]
    sums = [sum(plan.of("tuned", row).norm_sq() for row in rows)]
    return sums + [sum((plan.of(a, row) - plan.of(b, row)).norm_sq() for row in rows) for a, b in pairs]
