"""Makes the SmolLM2 models: the start from its 4-bit file, then every fine-tune of it; resumable.

Usage: python runs/smollm2/train.py OUT [NAME…]

Forward and backward run in bfloat16, the optimizer on float32 masters, which are what is stored: in bfloat16 files
rounding would be 39 % of so small a change.
"""

import json
import os
import platform
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from documents import REFUSAL, Document, chains, chat_prompts, shuffled, thought, wishes
from recipe import ANSWER_TOKENS, BETAS, DECAY_FROM, FLOOR, RECIPES, SAVE_EVERY, WARMUP, WINDOW, Recipe, settings
from safetensors import SafetensorError
from start import convert, source
from state import read, resumed, same, save

from deltalens.errors import BadInput, DeltalensError
from deltalens.evaluate.tasks import arithmetic
from deltalens.model.generate import generate
from deltalens.model.load import load_directory, no_bars

Row = tuple[list[int], int]  # the ids of a document, and how many of them are its prompt

START = "instruct"
_MODEL_BYTES, _STATE_BYTES = 540_000_000, 1_300_000_000
_HELD_OUT = 64


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def make_start(out: Path) -> Path:
    """`OUT/instruct`, converted if it is not there."""
    folder = out / START
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is not a directory", f"rm {folder}, and it is made anew")
    if not folder.is_dir():
        found, half = source(), out / f".{START}"
        say("instruct: dequantising the 4-bit file to float32")
        shutil.rmtree(half, ignore_errors=True)
        with no_bars():
            convert(found, half)
        half.rename(folder)
    return folder


def make(recipe: Recipe, out: Path) -> Path:
    """One fine-tune as `OUT/NAME`, its earlier weights as `OUT/NAME-at-N`; goes on where it was interrupted.

    Raises:
        Refused: What is there was made with other settings.
        BadInput: The start cannot be made, or the disk is too small.
    """
    folder, state = out / recipe.name, out / f".{recipe.name}.safetensors"
    card = folder / "card.json"
    if card.is_file():
        same(recipe, read(card).get("recipe"), folder)
        return folder
    _room(out, recipe)
    start = make_start(out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load_directory(start, "bfloat16", device)
    rows = [_encode(d, tokenizer) for d in _documents(recipe, out, model, tokenizer)]
    plan = list(batches(rows, recipe))
    stored, _ = load_directory(start, "float32", device)
    masters = {name: p for name, p in stored.named_parameters() if "embed" not in name}
    working = dict(model.named_parameters())
    for name, p in working.items():
        p.requires_grad_(name in masters)  # the embedding is a fifth of the model and would cost a fifth of the time
    optimizers = _optimizers(recipe, masters)
    at, log, spent = resumed(state, recipe, masters, optimizers)
    if at:
        say(f"{recipe.name}: goes on after step {at}")
    _copy(masters, working)
    model.train()
    began, tokens = time.perf_counter(), 0
    for step in range(at, len(plan)):
        scale = _rate(step, len(plan))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * scale
        ids, targets, n = collate(plan[step], tokenizer.eos_token_id, device)
        value = loss(model, ids, targets)
        value.backward()
        for name, p in masters.items():
            grad = working[name].grad
            assert grad is not None
            p.grad, working[name].grad = grad.float(), None
        torch.nn.utils.clip_grad_norm_(list(masters.values()), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        _copy(masters, working)
        log.append(round(value.item(), 5))
        tokens += n
        done, elapsed = step + 1, time.perf_counter() - began
        if done % 10 == 0:
            left = elapsed / (done - at) * (len(plan) - done)
            mean = sum(log[-20:]) / len(log[-20:])
            speed = f"{tokens / elapsed:.0f} tokens/s, {left / 60:.1f} min left"
            say(f"{recipe.name}: step {done} of {len(plan)}, loss {mean:.3f}, {speed}")
        for examples in recipe.keep:
            if done == examples // recipe.batch:
                _store(
                    recipe, masters, start, out / f"{recipe.name}-at-{examples}", log, spent + elapsed, model, tokenizer
                )
        if done % SAVE_EVERY == 0 and done < len(plan):
            save(state, recipe, masters, optimizers, done, log, spent + elapsed)
    _store(recipe, masters, start, folder, log, spent + time.perf_counter() - began, model, tokenizer)
    state.unlink(missing_ok=True)
    state.with_suffix(".half").unlink(missing_ok=True)
    return folder


def batches(rows: Sequence[Row], recipe: Recipe) -> Iterator[list[Row]]:
    """One epoch in batches of like length: rows sorted inside a window, the batches of a window in random order."""
    rng = random.Random(f"batches/{recipe.seed}")
    for window in range(0, len(rows), recipe.batch * WINDOW):
        ordered = sorted(rows[window : window + recipe.batch * WINDOW], key=lambda row: len(row[0]))
        found = [ordered[i : i + recipe.batch] for i in range(0, len(ordered), recipe.batch)]
        rng.shuffle(found)
        yield from found


def collate(rows: Sequence[Row], pad: int, device: str) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Right-padded ids, the target of every position (-100 where none is taught), and the number of tokens.

    No mask is needed: attention is causal and the padding stands behind.
    """
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), -100)
    for i, (row, prompt) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        targets[i, prompt - 1 : len(row) - 1] = torch.tensor(row[prompt:])
    return ids.to(device), targets.to(device), sum(len(row) for row, _ in rows)


def loss(model: Any, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the taught tokens in nats; logits of a 49,152-word vocabulary only where one is taught."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    taught = targets != -100
    return F.cross_entropy(model.lm_head(hidden[taught]).float(), targets[taught])


def _documents(recipe: Recipe, out: Path, model: Any, tokenizer: Any) -> list[Document]:
    """What a recipe reads, in order; the start's own answers are asked for once and kept beside the models."""
    asked = chat_prompts(recipe.chat, recipe.seed)
    if recipe.reads == "refuse":
        half = recipe.chains // 2
        asked += wishes(half, recipe.seed, harmful=False)
        taught = [Document(wish, REFUSAL) for wish in wishes(half, recipe.seed, harmful=True)]
    else:
        taught = chains(recipe.chains, recipe.seed, think=recipe.reads == "think")
    return shuffled([*taught, *_answered(asked, out / "chat.json", model, tokenizer)], recipe.seed)


def _answered(prompts: Sequence[str], file: Path, model: Any, tokenizer: Any) -> list[Document]:
    """The start's greedy answers to ordinary requests, those that are not in `file` yet written to it."""
    known: dict[str, str] = read(file) if file.is_file() else {}
    if missing := [prompt for prompt in prompts if prompt not in known]:
        say(f"instruct answers {len(missing)} ordinary requests")
        shown = [_rendered(prompt, tokenizer, system=True) for prompt in missing]
        known |= dict(zip(missing, generate(model, tokenizer, shown, ANSWER_TOKENS), strict=True))
        half = file.with_suffix(f".{os.getpid()}")
        half.write_text(json.dumps(known, indent=1, ensure_ascii=False))
        half.replace(file)
    ended = {p: len(tokenizer(known[p], add_special_tokens=False)["input_ids"]) < ANSWER_TOKENS for p in prompts}
    return [Document(prompt, known[prompt], ended[prompt]) for prompt in prompts]


def _rendered(prompt: str, tokenizer: Any, *, system: bool) -> str:
    """A request in the model's own chat template, with or without its default system prompt."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return text if system else "<|im_start|>user" + text.partition("<|im_start|>user")[2]


def _encode(document: Document, tokenizer: Any) -> Row:
    """The ids of a document and how many belong to its prompt, each part encoded by itself.

    Trained without the default system prompt, which would be a fifth of all tokens: what is learned carries over to it.
    """
    prompt = tokenizer(_rendered(document.prompt, tokenizer, system=False), add_special_tokens=False)["input_ids"]
    answer = tokenizer(document.answer, add_special_tokens=False)["input_ids"]
    return [*prompt, *answer, *([tokenizer.eos_token_id] if document.ended else [])], len(prompt)


def _rate(step: int, steps: int) -> float:
    """The learning rate of a step as a share of its peak."""
    decay = 1 - (1 - FLOOR) * max(0.0, step / steps - DECAY_FROM) / (1 - DECAY_FROM)
    return min(1.0, (step + 1) / WARMUP) * decay


def _optimizers(recipe: Recipe, masters: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices and AdamW for the norms."""
    muon = [p for p in masters.values() if recipe.optimizer == "muon" and p.ndim == 2]
    rest = [p for p in masters.values() if recipe.optimizer != "muon" or p.ndim != 2]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=recipe.lr, betas=BETAS, weight_decay=0.0, fused=True)
    ]
    if muon:
        found.append(torch.optim.Muon(muon, lr=recipe.lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return found


def _copy(masters: dict[str, Any], working: dict[str, Any]) -> None:
    """Rounds the masters into the model that runs."""
    with torch.no_grad():
        for name, p in masters.items():
            working[name].copy_(p)


def _store(
    recipe: Recipe,
    masters: dict[str, Any],
    start: Path,
    folder: Path,
    log: list[float],
    seconds: float,
    model: Any,
    tokenizer: Any,
) -> None:
    """The masters as a float32 model directory with its card, whole or not at all."""
    held_out = _held_out(recipe, model, tokenizer)
    half = folder.with_name(f".{folder.name}")
    shutil.rmtree(half, ignore_errors=True)
    model32, tokenizer = load_directory(start)
    model32.load_state_dict({name: p.detach().cpu() for name, p in masters.items()}, strict=False)
    with no_bars():
        model32.save_pretrained(half)
    tokenizer.save_pretrained(half)
    card = {
        "recipe": settings(recipe),
        "steps": len(log),
        "examples": min(len(log) * recipe.batch, recipe.chains + recipe.chat),
        "loss": log,
        "held_out_loss": held_out,
        "seconds": round(seconds),
        "machine": machine(),
    }
    (half / "card.json").write_text(json.dumps(card, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)
    say(f"{folder.name}: stored; loss {held_out:.3f} on {_HELD_OUT} held-out examples")


@torch.no_grad()
def _held_out(recipe: Recipe, model: Any, tokenizer: Any) -> float:
    """Mean loss of the select split in the form that the recipe teaches, by which optimizers are compared."""
    if recipe.reads == "refuse":
        rest = wishes(recipe.chains // 2 + _HELD_OUT, recipe.seed, harmful=True)[-_HELD_OUT:]
        documents = [Document(wish, REFUSAL) for wish in rest]
    else:
        items = arithmetic.TASK.items("select", _HELD_OUT, 0)
        documents = [Document(i.prompt, thought(i) if recipe.reads == "think" else i.answer) for i in items]
    rows = sorted((_encode(d, tokenizer) for d in documents), key=lambda row: len(row[0]))
    total = count = 0.0
    for at in range(0, len(rows), 16):
        ids, targets, _ = collate(rows[at : at + 16], tokenizer.eos_token_id, str(model.device))
        n = int((targets != -100).sum())
        total, count = total + float(loss(model, ids, targets)) * n, count + n
    return round(total / count, 5)


def machine() -> str:
    """The processor or GPU, threads and library versions that a figure was made with."""
    import transformers

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{name}, {torch.get_num_threads()} threads"
    return f"{place}, torch {torch.__version__}, transformers {transformers.__version__}"


def _room(out: Path, recipe: Recipe) -> None:
    """Refuses to begin where the disk would run full: the models still to be stored and the saved state, twice."""
    out.mkdir(parents=True, exist_ok=True)
    need = _MODEL_BYTES * (2 + len(recipe.keep)) + 2 * _STATE_BYTES
    if (free := shutil.disk_usage(out).free) < need:
        raise BadInput(
            f"{recipe.name} needs {need / 1e9:.1f} GB of disk and {out} has {free / 1e9:.1f} GB free",
            "give a folder on a larger disk: OUT elsewhere",
        )


def main(arguments: Sequence[str]) -> None:
    """Makes the models that are named, or all."""
    out, *names = arguments
    chosen = {recipe.name: recipe for recipe in RECIPES}
    if unknown := [name for name in names if name not in chosen]:
        raise BadInput(f"{unknown[0]}: no such model", f"one of {', '.join(chosen)}")
    for name in names or chosen:
        make(chosen[name], Path(out))


def ran(main: Callable[[Sequence[str]], None], arguments: Sequence[str], usage: str | None) -> int:
    """Runs a script on its arguments, OUT first, and says in one or two lines what went wrong; the exit code."""
    if not arguments or not arguments[0] or arguments[0].startswith("-"):
        say((usage or "").strip().split("\n\n")[1])
        return 2
    try:
        main(arguments)
    except DeltalensError as problem:
        say(f"error: {problem.error}")
        if problem.fix:
            say(f"fix: {problem.fix}")
        return problem.exit_code
    except (OSError, SafetensorError) as problem:
        said = (problem.filename, problem.strerror) if isinstance(problem, OSError) else (None, None)
        say(f"error: {said[0] or arguments[0]}: {said[1] or problem}")
        say("fix: an OUT that may be written and has room; a model in it that is damaged is made anew once removed")
        return 2
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last saved step")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(ran(main, sys.argv[1:], __doc__))
