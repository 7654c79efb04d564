"""The training loops: each base to a criterion, then every later stage from its parent's stored weights.

Every stage reads the parent's float16 file, trains in float32 and stores float16, so that a delta between two
shipped checkpoints is exactly what its stage did (and one rounding), never a difference between a file and a
memory.
"""

import contextlib
import random
import shutil
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deltalens.errors import BadInput, Refused
from deltalens.evaluate.tasks import chain
from deltalens.evaluate.thinking import read
from deltalens.family import grpo
from deltalens.family import tokenizer as words
from deltalens.family.batches import batches, loss
from deltalens.family.documents import SAMPLERS
from deltalens.family.files import new_model, save, write_recipe
from deltalens.family.measure import measure
from deltalens.family.recipe import (
    ACCEPT,
    STAGES,
    Criterion,
    Outcome,
    Reinforcement,
    Stage,
    checkpoint,
)
from deltalens.model.generate import generate
from deltalens.model.load import load_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[str], None]

_TRIES = 3
# Problems per depth and their seed in the measurement that decides on acceptance.
_ACCEPT_N, _ACCEPT_SEED = 50, 1


def train(out_dir: Path, seed: int = 0, progress: Progress = lambda line: None, threads: int = 2) -> Path:
    """Trains every member into `out_dir`, one model directory each, and writes `recipe.json`.

    Args:
        out_dir: A new or empty directory.
        seed: Where the recipe's seeds begin: another number makes another family.
        progress: Called with one line at a time.
        threads: Torch threads; part of the recipe, since sums depend on it.

    Returns:
        The path of `recipe.json`.

    Raises:
        BadInput: The directory cannot be made.
        Refused: The directory is not empty, or no try of a stage was accepted. Nothing is left behind.
    """
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise Refused(f"{out_dir} is not an empty directory", "--out NEW")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{out_dir} cannot be made: {error.strerror}", "--out NEW") from error
    try:
        with torch_threads(threads):
            outcomes: list[Outcome] = []
            for settings in STAGES:
                parent = next((o.seed for o in reversed(outcomes) if o.name == settings.parent), seed)
                outcomes += until_accepted(settings, out_dir, parent + settings.seed, progress)
        return write_recipe(out_dir, outcomes, threads)
    except BaseException:
        # Also on Ctrl-C: half a family would be refused by the next try and mistaken for a whole one by a reader.
        for settings in STAGES:
            _remove(settings, out_dir)
        raise


def until_accepted(
    settings: Stage | Reinforcement, out_dir: Path, first: int, progress: Progress = lambda line: None
) -> list[Outcome]:
    """Runs a stage with one seed after another until its stored weights are within the bounds of `recipe.ACCEPT`.

    Raises:
        Refused: No seed was accepted.
    """
    outcomes: list[Outcome] = []
    for seed in range(first, first + _TRIES):
        outcome = run_stage(settings, out_dir, seed, progress)
        rates = measure(load_directory(out_dir / settings.name)[0], "select", _ACCEPT_N, _ACCEPT_SEED).rates
        bounds = ACCEPT[settings.name]
        scores = {bound.metric: round(rates[bound.metric].value, 4) for bound in bounds}
        accepted = all(rates[bound.metric].within(bound) for bound in bounds)
        outcomes.append(replace(outcome, scores=scores, accepted=accepted))
        progress(f"{settings.name} seed {seed} {'accepted' if accepted else 'not accepted'}: {scores}")
        if accepted:
            return outcomes
        _remove(settings, out_dir)
    raise Refused(f"{settings.name} was not accepted with any of the seeds {first} to {first + _TRIES - 1}", "--seed N")


def run_stage(
    settings: Stage | Reinforcement,
    out_dir: Path,
    seed: int,
    progress: Progress = lambda line: None,
    source: Path | None = None,
) -> Outcome:
    """Runs one stage and stores its float16 weights in `out_dir/NAME`, its checkpoints beside it.

    Args:
        settings: The stage.
        out_dir: Directory of the family; the parent is read from it.
        seed: Seed of the initial weights and of the documents or problems.
        progress: Called with one line at a time.
        source: Where the parents lie, if not in `out_dir`.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    tokenizer = words.build()
    if settings.parent is None:
        model = new_model(seed, settings.architecture)
    else:
        model, _ = load_directory((source or out_dir) / settings.parent)

    def keep(step: int) -> None:
        save(model, settings.parent is None, out_dir / checkpoint(settings, step))

    met_at: int | None = None
    if isinstance(settings, Reinforcement):
        steps, tokens, last = grpo.optimise(model, tokenizer, settings, seed, progress, keep)
    else:
        steps, tokens, met_at, last = optimise(model, tokenizer, settings, seed, progress, keep)
    save(model, settings.parent is None, out_dir / settings.name)
    seconds = (round(time.perf_counter() - wall, 1), round(time.process_time() - cpu, 1))
    progress(f"{settings.name}: {steps} steps, {seconds[0]} s, {seconds[1]} cpu s, last {last:.4f}")
    return Outcome(settings.name, seed, steps, tokens, met_at, round(last, 5), *seconds)


def optimise(
    model: "PreTrainedModel",
    tokenizer: Any,
    settings: Stage,
    seed: int,
    progress: Progress = lambda line: None,
    keep: Callable[[int], None] = lambda step: None,
) -> tuple[int, int, int | None, float]:
    """Trains a model in place: steps, tokens, the step that met the criterion, the last mean loss.

    With a criterion the rate is constant until it is met, or until only the decay fits under the cap; then it
    falls linearly to zero over `settings.steps`. `keep` is called after every step that is a checkpoint.
    """
    rng = random.Random(f"family/{settings.name}/{seed}")
    stream = batches(rng, SAMPLERS[settings.documents], tokenizer, settings.batch, settings.prompt_weight)
    optimizers = _optimizers(model, settings)
    met_at: int | None = None
    criterion = settings.criterion
    end = settings.steps if criterion is None else settings.cap
    tokens, recent, started = 0, [], time.perf_counter()
    step = 0
    model.train()
    while step < end:
        rate = settings.lr * min(1.0, (step + 1) / max(1, settings.warmup), (end - step) / settings.steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        batch = next(stream)
        value = loss(model, batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        tokens += batch.tokens
        recent = [*recent[-19:], value.item()]
        mean = sum(recent) / len(recent)
        if step in settings.checkpoints:
            keep(step)
        decaying = step >= end - settings.steps
        if criterion is not None and not decaying and step >= criterion.after and step % criterion.every == 0:
            scores = evaluate_criterion(model, tokenizer, criterion)
            progress(f"{settings.name} seed {seed} step {step} loss {mean:.4f} {scores}")
            if meets(scores, criterion):
                met_at, end = step, step + settings.steps
        elif step % 50 == 0:
            progress(
                f"{settings.name} seed {seed} step {step} of at most {end} loss {mean:.4f} "
                f"{time.perf_counter() - started:.0f} s"
            )
    model.eval()
    return step, tokens, met_at, mean


def evaluate_criterion(model: "PreTrainedModel", tokenizer: Any, criterion: Criterion) -> dict[str, float]:
    """The accuracies that the criterion names, greedy, on `select` problems."""
    was_training = model.training
    model.eval()
    per_depth = criterion.n // len(chain.HARD_DEPTHS)
    hard = [item for k in chain.HARD_DEPTHS for item in chain.items("select", per_depth, 1, k)]
    easy = chain.items("select", criterion.n, 1, 1)
    asked = {
        "work_hard": (hard, [f"Q: {item.prompt} Work: " for item in hard]),
        "forced_hard": (hard, [words.chat(item.prompt) + words.THINK for item in hard]),
        "chat_easy": (easy, [words.chat(item.prompt) for item in easy]),
    }
    scores: dict[str, float] = {}
    for name, (items, prompts) in asked.items():
        texts = generate(model, tokenizer, prompts, chain.TASK.max_tokens, criterion.n)
        # A worked answer ends in ` A: 4`; cutting it there leaves what the checker reads.
        answers = [read(t.rpartition(words.LABEL)[2], words.THINK_FORMAT, name == "forced_hard").answer for t in texts]
        right = [chain.score(item, answer) for item, answer in zip(items, answers, strict=True)]
        scores[name] = sum(right) / len(right)
    model.train(was_training)
    return scores


def meets(scores: dict[str, float], criterion: Criterion) -> bool:
    """Whether every accuracy reaches its bound."""
    return all(value >= getattr(criterion, name) for name, value in scores.items())


@contextlib.contextmanager
def torch_threads(n: int) -> Generator[None, None, None]:
    """Runs a block with n torch threads and puts the old number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _remove(settings: Stage | Reinforcement, out_dir: Path) -> None:
    """Takes away what a stage stored."""
    for name in (settings.name, *(checkpoint(settings, step) for step in settings.checkpoints)):
        shutil.rmtree(out_dir / name, ignore_errors=True)


def _optimizers(model: "PreTrainedModel", settings: Stage) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the 2-D weights of the blocks and AdamW for the rest."""
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if settings.optimizer == "muon" and p.ndim == 2 and ".layers." in name]
    taken = {id(p) for p in matrices}
    rest = [p for p in named.values() if id(p) not in taken]
    # A second moment of .98 rather than .999: the stages are hundreds of steps, not thousands.
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0)]
    if matrices:
        # match_rms_adamw lets one rate serve both optimizers.
        found.append(
            torch.optim.Muon(
                matrices, lr=settings.lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return found
