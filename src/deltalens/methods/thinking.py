"""The two directions that an experiment rests on: towards thinking, between two models, and towards refusal, in one."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deltalens.checkpoint.chat import read_chat
from deltalens.checkpoint.pair import Pair
from deltalens.checkpoint.source import open_checkpoint
from deltalens.direction.direction import Direction
from deltalens.errors import Refused
from deltalens.evaluate.tasks.registry import can, task
from deltalens.methods.matched import Ids, read_groups, rendered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from deltalens.direction.activations import Place

REFUSAL_SPLITS = ("extract", "select")
"""Never test: that is what verdicts on behaviour are shown on."""


def one_stream(base: str, tuned: str) -> Pair:
    """Two models whose residual streams are one space.

    Raises:
        BadInput: One cannot be opened.
        Refused: They do not compare, or are of two architectures: equal widths do not make their streams one space.
    """
    pair = Pair.open(base, tuned)
    kinds = [checkpoint.setting("model_type") for checkpoint in (pair.base, pair.tuned)]
    if kinds[0] != kinds[1]:
        found = f"{base} is a {kinds[0]} model, {tuned} a {kinds[1]} model"
        raise Refused(found, "--against the model that it was trained from")
    return pair


def between_models(
    pair: Pair,
    tuned: "PreTrainedModel",
    ids: Ids,
    place: "Place",
    source: dict[str, Any],
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
) -> list[Direction]:
    """Differences of means tuned − base on the same prompts, and what the writers' ΔW writes there on average.

    Args:
        pair: From `one_stream`.
        tuned: Its tuned side, loaded; the base is loaded here.
        ids: Rendered prompts.
        place: Where activations are read.
        source: What every direction records of how it was made.
        seed: Of the probe's split.
        dtype: Of the base's computation.
        device: Of the base.
    """
    from deltalens.direction.activations import from_models, mean_writes
    from deltalens.model.load import load

    base, _ = load(pair.base.source, dtype, device)
    made = source | {"against": pair.base.source}
    found = from_models(tuned, base, ids, place, made, seed)
    norms = {d.layer: d.source["mean_norm"] for d in found if d.layer is not None}
    return [*found, *mean_writes(pair, {"base": base, "tuned": tuned}, ids, place, made, norms)]


def thinking_directions(
    base: str, tuned: str, seed: int = 0, dtype: str = "auto", device: str = "auto"
) -> list[Direction]:
    """What `deltalens directions activations TUNED --against BASE` writes: last prompt token, every layer.

    Raises:
        BadInput: A model cannot be opened or loaded.
        Refused: They are not of one architecture.
    """
    from deltalens.direction.activations import Place
    from deltalens.model.load import load

    pair = one_stream(base, tuned)
    chat = read_chat(pair.tuned)
    prompts, _, names, _ = read_groups(chat, None, seed)
    made: dict[str, Any] = {"model": tuned, "template": chat.template_hash, "select": "last", "split": "extract"}
    model, _ = load(tuned, dtype, device)
    made |= {"prompts": list(names[:1])}
    return between_models(pair, model, rendered(chat, prompts), Place(), made, seed, dtype, device)


def refusal_directions(
    source: str,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> list[Direction]:
    """Harmful less harmless requests at the last prompt token, layer by layer, from requests no evaluation is shown on.

    Args:
        source: A model that refuses.
        seed: Of the null draws.
        dtype: Of computation.
        device: Of the model.
        say: Told what will be read.

    Raises:
        BadInput: The model cannot be opened or loaded, or no refusal task suits its tokenizer.
    """
    from deltalens.direction.activations import Place, from_prompts
    from deltalens.model.load import load

    chat = read_chat(open_checkpoint(source))
    asked = task("refusal", can(chat))
    splits = (asked.items(split, asked.limit(split) or 0, seed) for split in REFUSAL_SPLITS)
    items = {item.id: item for split in splits for item in split}.values()
    harmful, harmless = ([item for item in items if item.group == group] for group in ("harmful", "harmless"))
    say(f"reading {len(harmful)} harmful and {len(harmless)} harmless requests of task {asked.name}")
    model, _ = load(source, dtype, device)
    made = {"model": source, "template": chat.template_hash, "prompts": [asked.name], "select": "last"}
    both = rendered(chat, harmful), rendered(chat, harmless)
    found = from_prompts(model, *both, Place(), made, seed, contrast="harmful − harmless")
    return [d for d in found if d.kind in ("difference", "samples")]
