# ruff: noqa: E501  (the lines of a template are those of the document)
"""docs/findings.md from the tables of runs/findings.sh: prose with every number filled in from a stored row.

Usage: python runs/findings.py DIR
"""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
from tables import TASK, Sweep, claims, interval, table


def ledger(of: Sweep, arms: list[str]) -> str:
    """What every arm does on every task."""
    tasks = ("chain-hard", "chain-easy", "facts", "guarded")
    lines = []
    for arm in arms:
        own = {(r["task"], r["metric"]): r["value"] for r in of.rows if r["arm"] == arm and not r["reference"]}
        if ("facts", "accuracy") not in own:
            continue
        scores = [f"{own[task, 'accuracy']:.2f}" for task in tasks]
        cells = [
            f"{own[TASK, 'p_think']:.3f}",
            f"{own[TASK, 'think_ratio']:.2f}",
            f"{own[TASK, 'forced_accuracy']:.2f}",
        ]
        lines.append([arm, *cells, *scores, of.perplexity(arm), f"{own.get((TASK, 'kl')) or 0:.2f}"])
    return table(["arm", "p_think", "thinks", "forced", "hard", "easy", "facts", "guarded", "perplexity", "KL"], lines)


def cuts(of: Sweep) -> str:
    """How many single cuts are shown to be necessary, contradicted, undecided."""
    single = [c for c in of.curves() if c.startswith("cut") and "all" not in c and "span" not in c]
    words = [of.of(c, "necessary")["method"].partition(":")[0] for c in single]
    return f"{words.count('supported')} of {len(single)}"


def main(out: Path) -> None:
    """Writes the document to stdout."""
    lox, spectrum, direct, contrast, negate, rl, scratch = (
        Sweep(out / name)
        for name in (
            "lox-reasoning",
            "spectrum-behaviour",
            "direct-pair",
            "contrast",
            "negate",
            "negate-rl",
            "negate-from-base",
        )
    )
    one = lox.at("tuned − Δ_k")
    four = lox.at("base + Δ_k")
    spikes, energy = spectrum.row("pair", "spikes")["value"], spectrum.row("pair", "energy_in_spikes")["value"]
    near = direct.of("pair", "parent")
    distances = {r["reference"]: r["value"] for r in direct.rows if r["metric"] == "relative_distance"}
    equal = [c for c in contrast.curves() if c.endswith("at equal effect")]
    arms = pq.read_table(out / "lox-reasoning" / "arms.parquet").to_pylist()
    norm = {a["arm"].removeprefix(f"{four}: "): a["functional_norm"] for a in arms if a["control_of"] == four}
    specific = Sweep(out / "experiment" / "steps" / "specific")
    others = {r["arm"]: r for r in specific.rows if r["metric"] == "fraction"}
    verdicts = json.loads((out / "experiment" / "verdicts.json").read_text())
    print(f"""# What the embedded family says

Written by `runs/findings.sh`: every number stands in a table that this command stores. The family is four layers, 0.8 M
parameters and a synthetic task (docs/family.md): it says what the instrument can see and where published claims depend on how
they are measured. It does not say what a 7B model does. n = 200 items of the test split, one seed; intervals of claims are 99.4 %.

## Five recipes on instruct → reasoning

F is the share of the pair's difference in p(think): (arm − base)/(tuned − base). On a curve that starts at the tuned model it is what
is left. Controls keep the functional norm ‖ΔΣ^½‖ of the edit; the largest one is subtracted.

### 1. lox-reasoning: is the leading part enough?

{claims(lox)}

One direction of every matrix taken out of the tuned model ({one}) brings p(think) from {
        lox.value("tuned", "p_think", form=".3f")
    } to \
{lox.value(one, "p_think", form=".3f")} and forced accuracy from {lox.value("tuned", "forced_accuracy")} to \
{lox.value(one, "forced_accuracy")}: the choice to think goes, the skill stays. Four put into the base ({
        four
    }) give accuracy \
{
        lox.value(four, "accuracy")
    }. The sibling's own leading direction, as long on the same inputs, takes a good part of thinking away as well: \
the claim for leaving out is +{interval(lox.of("tuned − Δ_k", "effect_minus_largest_control"))}, not the whole effect.

### 2. spectrum-behaviour: spikes or bulk?

{claims(spectrum)}

{spikes:.0f} singular values stand above what random signs give; they hold {energy:.1%} of ‖Δ‖². \
The answer is {spectrum.of("pair", "spikes_or_bulk")["method"]}. No single kind carries the change: \
attention alone gives F {spectrum.of("base + Δ_k of attention", "fraction")["value"]:.2f}, MLP alone \
{spectrum.of("base + Δ_k of mlp", "fraction")["value"]:.2f}, all seven {
        spectrum.of("base + Δ_k", "fraction")["value"]:.2f}. \
p(think) is a sigmoid: parts that are each far from the threshold do little alone and add up in log-odds.

### 3. direct-pair: is BASE the parent?

{claims(direct)}

n = 20, so nothing is claimed. Relative distances to the tuned model: {
        ", ".join(f"{n} {d:.4f}" for n, d in distances.items())
    }. \
The nearer one is **{near["reference"]}**: {near["method"]}. Reasoning training went {
        direct.of("pair", "along_base_to_parent")["value"]:.2f} of the way back from \
instruct to base, so that on this family the grandparent lies nearer than the parent: distance alone does not name a parent.

### 4. contrast: w = θ⁺ − θ⁻ beside the task vector and a steering vector

{claims(contrast)}

At one common effect, each with what it costs:

{ledger(contrast, ["base", "tuned", *(contrast.at(c) for c in equal)])}

All three switch thinking on. What sets them apart is the price: look at facts, where the steering vector does most damage.

### 5. negate: ways to take reasoning out

{claims(negate)}

{ledger(negate, ["base", "tuned", *dict.fromkeys(negate.at(c) for c in negate.curves())])}

**cut beside revert.** Cutting one layer's thinking direction out of every writer is shown to be necessary for {
        cuts(negate)
    } layers \
here, for {cuts(rl)} of reasoning-rl and for {
        cuts(scratch)
    } of reasoning-from-base. Reverting Δ_k is, on the three pairs: \
{", ".join(s.of("tuned − Δ_k", "necessary")["method"].partition(":")[0] for s in (negate, rl, scratch))}.

## The experiment (`deltalens demo`)

{table(["question", "answer", "why"], [[v["question"], f"**{v['word']}**", v["why"]] for v in verdicts["verdicts"]])}

**Other deltas in the same place**, each at the length of the pair's own on the same inputs: {
        "; ".join(f"{arm} F {interval(r, '.3f')}" for arm, r in others.items())
    }. \
What reward taught another start does nearly as much as what examples taught this one; an instruct, a sibling and a safety tune do nothing.

## Published claims beside this pair

{
        table(
            ["paper", "it says", "here", "", "what makes the difference"],
            [[c["paper"], c["says"], c["here"], c["word"], c["difference"]] for c in verdicts["claims"]],
        )
    }

## What would generalise, and what would not

- *Controls*: on real inputs base + Δ_4 is {norm["random U 0"]:.1f} long (‖ΔΣ^½‖), a Gaussian of the same ‖Δ‖ {
        norm["Gaussian 0"]:.1f}, the same σ between random \
sides {
        norm[
            "Haar U, V 0"
        ]:.1f}. A control that does nothing because it is short is no control: any model whose inputs are far from isotropic will show it.
- *Thresholds*: a greedy think ratio and p(think) answer differently wherever thinking competes with many other first tokens. Any model \
whose alternatives are spread out will show it.
- *Not shown*: that these ranks, kinds or layers carry over. Four layers of width 128 trained on one synthetic skill are no sample of language models.
""")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
