"""How a model's activations project on one direction per layer: prompt by prompt, and token by token.

Raw is ⟨h, v̂⟩, normalised ⟨h, v̂⟩/‖h‖. z is the raw value less its mean over the second group's test prompts, in standard
deviations there; it takes all their tokens but the first, where attention sinks sit with norms far above the others'.
z orders prompts as raw does.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from deltalens.direction.activations import Place, read
from deltalens.direction.direction import Direction
from deltalens.errors import BadInput
from deltalens.methods.matched import Contrast
from deltalens.methods.separation import Readings
from deltalens.model.capture import capture_rows
from deltalens.model.generate import Decoding, generate_ids
from deltalens.model.select import EVERYWHERE, Selector
from deltalens.model.sites import Site, sites_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from deltalens.checkpoint.chat import Chat

Lines = Mapping[Site, Float32[Tensor, "one d"]]
"""v̂ as a row, by the site where it is read."""

_TINY = 1e-30  # a norm or spread of 0 has projections of 0, and 0 is then the ratio


def lines_of(
    model: "PreTrainedModel", directions: Sequence[Direction], site: str
) -> dict[Site, Float32[Tensor, "1 d"]]:
    """The unit vector of every direction at a site of its layer.

    Raises:
        BadInput: The model lacks the site or the layer, or has another width there.
        Refused: The site did not pass its validation.
    """
    known = sites_of(model)
    found = {}
    for d in directions:
        place = Site(site, d.layer)
        known.point(place)
        if known.size(place) != d.vectors.shape[1]:
            raise BadInput(
                f"direction {d.id} has {d.vectors.shape[1]} entries ({d.space}), {place} has {known.size(place)}",
                "a direction made from this model, or the --site that it belongs to",
            )
        wide = d.vectors.astype(np.float64)
        found[place] = torch.from_numpy((wide / np.linalg.norm(wide)).astype(np.float32))
    return found


def readings(model: "PreTrainedModel", lines: Lines, contrast: Contrast, select: Selector) -> list[Readings]:
    """What every layer holds of all prompts, in the order of the lines."""
    groups = [*contrast.extract, *contrast.test]
    first = next(iter(lines))
    place = Place(first.name, tuple(site.layer for site in lines if site.layer is not None), select)
    values = read(model, [ids for group in groups for ids in group], place).values
    ends = np.cumsum([len(group) for group in groups])[:-1]
    test = [*contrast.test[0], *contrast.test[1]]
    rows = capture_rows(model, test, list(lines), select, project=lines)
    found = []
    for site, line in lines.items():
        assert site.layer is not None
        row, ratio = rows[site].row.numpy(), _ratio(rows[site].values[:, 0], rows[site].norm)
        mean = np.bincount(row, ratio.numpy()) / np.bincount(row)
        a, b, c, d = np.split(values[site.layer], ends)
        found.append(Readings(site.layer, line[0].numpy(), (a, b), (c, d), (mean[: len(c)], mean[len(c) :])))
    return found


def tokens(
    model: "PreTrainedModel", chat: "Chat", lines: Lines, contrast: Contrast, max_tokens: int, ends: Collection[int]
) -> list[dict[str, Any]]:
    """The first test prompt of each group with its greedy completion: rows of `store.results.TOKENS`."""
    neutral = capture_rows(model, contrast.test[1], list(lines), EVERYWHERE, project=lines)
    prompts = [group[0] for group in contrast.test]
    completions = generate_ids(model, prompts, Decoding(max_tokens), ends=ends)
    texts = [[*prompt, *new] for prompt, new in zip(prompts, completions, strict=True)]
    read = capture_rows(model, texts, list(lines), EVERYWHERE, project=lines, turns=[(len(p),) for p in prompts])
    found = []
    for site, rows in read.items():
        raw, ratio = rows.values[:, 0].double(), _ratio(rows.values[:, 0], rows.norm)
        others = neutral[site].values[:, 0].double()[neutral[site].position > 0]
        z = (raw - others.mean()) / others.std().clamp(min=_TINY)
        columns = [x.tolist() for x in (rows.row, rows.position, raw, ratio, z)]
        for group, position, *numbers in zip(*columns, strict=True):
            found.append(
                {
                    "item": contrast.items[group][0].id,
                    "group": contrast.names[group],
                    "phase": "prompt" if position < len(prompts[group]) else "generation",
                    "position": position,
                    "token": chat.decode([texts[group][position]]),
                    "layer": site.layer,
                    **dict(zip(("raw", "normalised", "z"), numbers, strict=True)),
                }
            )
    return found


def _ratio(raw: Float[Tensor, "tokens"], norm: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    return raw.double() / norm.double().clamp(min=_TINY)
