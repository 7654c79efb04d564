"""The family's README: its card with recipe, outcomes of training, limits, as Markdown."""

import json
from pathlib import Path
from typing import Any

from deltalens.family.card import Card, checks, read_recipe, tables
from deltalens.family.catalog import MEMBERS, size


def markdown(card: Card, models: Path) -> str:
    """The whole card of a trained family."""
    recipe = read_recipe(models)
    sizes = [size(path.parent) for path in sorted(models.glob("*/model.safetensors"))]
    parameters = " and ".join(f"{size(models / name)[0]:,}" for name in ("base", "b-base"))
    config = json.loads((models / "base" / "config.json").read_text())
    shape = (
        f"{config['num_hidden_layers']} layers, width {config['hidden_size']}, {config['num_attention_heads']} heads "
        f"over {config['num_key_value_heads']} key-value heads, vocabulary {config['vocab_size']}"
    )
    mix = recipe["mix"]
    settings = {stage["name"]: stage for stage in recipe["stages"]}
    criteria = "; ".join(_criterion(stage, recipe) for stage in recipe["stages"] if stage.get("criterion"))
    rl = settings["reasoning-rl"]
    members = "\n".join(
        f"| `family:{m.name}` | {m.parent or 'random weights'} | {m.description} |"
        for m in MEMBERS
        if m.name in settings
    )
    kept = ", ".join(
        f"`{stage['name']}-step-N` for N = {', '.join(map(str, stage['checkpoints']))}"
        for stage in recipe["stages"]
        if stage["checkpoints"]
    )
    stages = "\n".join(_stage_row(stage, recipe) for stage in recipe["stages"])
    refused = [f"{o['name']} seed {o['seed']}" for o in recipe["outcomes"] if not o["accepted"]]
    minutes = sum(o["wall_seconds"] for o in recipe["outcomes"]) / 60
    verdicts = "\n".join(f"- {'met' if holds else '**missed**'}: {text}" for text, holds in checks(card))
    versions = ", ".join(f"{name} {version}" for name, version in recipe["versions"].items())
    return f"""<!-- Written by `deltalens family card --out README.md`; do not edit the figures by hand. -->
# The embedded family

Real checkpoints of two small transformers, trained from scratch with our own recipe and shipped as ordinary Hugging Face
directories. They exist so that every claim of deltalens can be tried on a pair whose training is known.

| member | from | what it does |
|---|---|---|
{members}

Also {kept}: the weights after N steps of that stage, from the same parent.

Seed a is a Qwen3, seed b (`b-…`) a Qwen2 with its biases on queries, keys and values: {parameters} parameters
({shape}, tied embeddings), float16. {len(sizes)} members,
{sum(stored for _, stored in sizes) / 1e6:.1f} MB in all.

## Task

Chains of assignments modulo 10. `a=6 b=a-5 c=b+2 c?` is answered by `3`; thinking is `<think>a=6 b=6-5=1 c=1+2=3</think>3`.
Depth k is the number of steps: k = 1 is easy, k = 4–8 hard, guessing scores .10. Beside it, 24 colour facts
(`color of fox?`): 16 animals and 8 guarded nouns, which `safe` refuses.

## Measured

Greedy, through the chat template, on {card.n} `test` problems per depth (item seed {card.seed}; a quarter for checkpoints); value
and 95 % Wilson interval. *Thought* = a closed think block with at least 8 non-space characters; the think ratio is pooled
over depths 1–8. *Forced* = the prompt ends with `<think>`. `p_think` = probability of `<think>` as first token, mean: the
greedy think ratio is a step function of it. *Others refused* = refusals of animals and chains. *Labelled* = chain answers
behind ` A: `. ‖Δ‖/‖θ‖ = distance from the parent over all parameters; cosine = with the delta at the end of the stage.

{tables(card)}

A member is accepted when the whole interval of every rate below lies within its bound; `family train` asks the same of
`select` problems before it goes on:

{verdicts}

## Training

{recipe["threads"]} torch threads, float32 in training; every stage starts from its parent's stored float16 weights.
{minutes:.0f} minutes in all, on a machine shared with other work; not accepted: {", ".join(refused) or "none"}.

| stage | from | seed | optimizer | peak rate | batch | steps | tokens | last loss or reward | wall s | cpu s | weights (SHA-256) |
|---|---|---|---|---|---|---|---|---|---|---|---|
{stages}

- Bases: {_percent(mix["facts"])} colour facts, {_percent(mix["sums"])} one-step results, {_percent(mix["direct"])} `Q: … A: …`, \
{_percent(mix["work"])} `Q: … Work: … A: …`, {_percent(mix["chat"])} chat, of which {_percent(mix["chat_think"])} think.
  Constant rate until, on `select` problems, `Work` hard, forced-think hard and chat easy reach a bound; then a linear decay.
  {criteria}.
- Instruct: direct answers and {_percent(recipe["fact_share"])} facts. Its peak rate was chosen on `select` problems, after a higher
  one had worn the latent skill (forced-think accuracy) below its target. Sibling: a stream of its own, ` A: ` before the digit.
- Reasoning: think on every chain, and {_percent(recipe["fact_share"])} facts answered at once.
- RL: GRPO, {rl["problems"]} problems × {rl["samples"]} samples per step, temperature 1, k = 1–8, reward 1 for a right answer that
  ends, else 0, β = {rl["kl"]} for the divergence from the parent. No worked solution is shown; the base knows them already.
- Safe: {_percent(recipe["refusal_share"])} guarded nouns with the refusal, as many animals, the rest as instruct.
- Checkpoints: after each fifth of the steps.

Versions: {versions}.
Again: `deltalens family train --out DIR`. Settings, outcomes, bounds and digests: `models/recipe.json`.

## Held out

A problem belongs to train, extract, select or test (70/10/10/10 %) by a hash of its text, and training draws `train`
problems only, **for k ≥ 3**. At k = 1 (210 problems) and k = 2 (4,410) the space is too small to hold anything out: all of
it is in training, and those rows measure recall. All 24 facts are in training.

## Limits

- Two seeds that differ in architecture too, one synthetic task: what holds here is a proof that an instrument works, not
  a finding about large models.
- Instruct is at chance beyond one step, and reasoning thinks in one fixed format that is as long as the chain is deep.
- The bases know the chat format and, in {_percent(mix["chat_think"])} of their chat documents, thinking: reasoning training here
  raises a known behaviour more than it teaches one.
- `reasoning-rl` answers easy chains at once, since that is right as well; its pooled think ratio is not that of
  `reasoning`, and its rates are compared on hard chains.
- Words outside the 120 of the tokenizer become `<unk>`. The brackets, the system role, the bare letters and the 8 padding
  rows from 120 on have ids but are taught to no member, the refusal to `safe` alone.
- AutoTokenizer of transformers 5.24 replaces the class that a Qwen2 directory names, and so splits the text of `b-…`
  otherwise: read their tokenizer with PreTrainedTokenizerFast, or tokenizer.json with `tokenizers`.
- The rows of untaught words move all the same, and together: the tied output pushes them down on every token and Adam gives
  small gradients full steps. A shared direction in the delta of `embed` is partly this, not reasoning.
"""  # noqa: E501 (Markdown: a wrapped table row is no row)


def _stage_row(stage: dict[str, Any], recipe: dict[str, Any]) -> str:
    """One stage as a table row: its settings and its last outcome."""
    outcome = _outcome(stage, recipe)
    cells = (
        stage["name"],
        stage["parent"] or "random weights",
        outcome["seed"],
        stage.get("optimizer", "adamw, GRPO"),
        stage["lr"],
        stage.get("batch") or stage["problems"] * stage["samples"],
        outcome["steps"],
        f"{outcome['tokens']:,}",
        f"{outcome['last']:.3f}",
        outcome["wall_seconds"],
        outcome["cpu_seconds"],
        f"`{recipe['sha256'][stage['name']][:12]}`",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _criterion(stage: dict[str, Any], recipe: dict[str, Any]) -> str:
    """When a base met its criterion."""
    criterion, outcome = stage["criterion"], _outcome(stage, recipe)
    bounds = ", ".join(str(criterion[key]) for key in ("work_hard", "forced_hard", "chat_easy"))
    when = "by the decay at the cap" if outcome["met_at"] is None else f"at step {outcome['met_at']:,}"
    return (
        f"`{stage['name']}`: {bounds} (n = {criterion['n']} each, every {criterion['every']} steps) was met {when}, "
        f"and the decay took {stage['steps']} steps"
    )


def _outcome(stage: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """The last outcome of a stage."""
    return [outcome for outcome in recipe["outcomes"] if outcome["name"] == stage["name"]][-1]


def _percent(share: float) -> str:
    """A share as `15 %`."""
    return f"{100 * share:.0f} %"
