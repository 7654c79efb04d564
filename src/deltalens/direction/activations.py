"""Directions from activations: what differs in the residual stream between models, prompts or spans of thinking.

Every group is one row per prompt and layer, the mean over that prompt's selected tokens, so that prompts and not tokens
are what is counted, permuted and resampled. Each layer gives a difference of means, of pairs also their principal
direction, a logistic probe, and the rows themselves (kind `samples`) for nulls and intervals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from deltalens.checkpoint.names import LINEAR
from deltalens.checkpoint.pair import Pair
from deltalens.direction.direction import SAMPLES, Direction
from deltalens.direction.estimate import difference, principal, probe, samples
from deltalens.direction.folded import Folded
from deltalens.direction.spaces import SPACE_OF, gain, role_kind, sides
from deltalens.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from deltalens.model.select import Selector

FEWEST_PROBED = 8
"""Rows per group below which a probe with a quarter held out says nothing."""

Ids = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Reading:
    """One group of prompts, read at one site of some layers.

    Attributes:
        values: By layer, the mean over each prompt's selected tokens.
        norms: By layer, the root mean square of ‖h‖ over the same tokens.
        counts: Selected tokens of each prompt.
    """

    values: dict[int, Float32[np.ndarray, "n d"]]
    norms: dict[int, Float64[np.ndarray, " n"]]
    counts: Int64[np.ndarray, " n"]

    def take(self, rows: slice) -> "Reading":
        """Some of its prompts."""
        return Reading(
            {layer: values[rows] for layer, values in self.values.items()},
            {layer: norms[rows] for layer, norms in self.norms.items()},
            self.counts[rows],
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Where activations are read.

    Attributes:
        site: A name of `model.sites`.
        layers: Which layers; empty for all.
        select: Which tokens of a prompt.
    """

    site: str = "resid_post"
    layers: tuple[int, ...] = ()
    select: "Selector | None" = None


def from_models(
    tuned: "PreTrainedModel", base: "PreTrainedModel", prompts: Ids, place: Place, source: Mapping[str, Any], seed: int
) -> list[Direction]:
    """Tuned less base on the same prompts, by default at the last prompt token.

    Args:
        tuned: The model that the direction points to.
        base: The other one.
        prompts: Rendered prompts as token ids, the same for both.
        place: Where to read.
        source: What the directions record of their making.
        seed: Of the probe's split.
    """
    first, second = read(tuned, prompts, place), read(base, prompts, place)
    return estimates(first, second, True, place.site, "tuned − base", source, seed)


def from_prompts(
    model: "PreTrainedModel",
    first: Ids,
    second: Ids,
    place: Place,
    source: Mapping[str, Any],
    seed: int,
    *,
    paired: bool = False,
    contrast: str = "A − B",
) -> list[Direction]:
    """Prompts A less prompts B in one model; with harmful and harmless prompts this is the refusal direction.

    (Arditi et al., 2406.11717, take it at every position of the template's end and select; we take the last token.)

    Args:
        model: The model.
        first: Rendered prompts that the direction points to, as token ids.
        second: The others.
        place: Where to read.
        source: What the directions record of their making.
        seed: Of the probe's split.
        paired: Whether prompt i of both belong together.
        contrast: The two groups in words.
    """
    both = read(model, [*first, *second], place)
    parts = both.take(slice(0, len(first))), both.take(slice(len(first), None))
    return estimates(*parts, paired, place.site, contrast, source, seed)


def read(
    model: "PreTrainedModel", prompts: Ids, place: Place, tokens: Sequence[Sequence[int]] | None = None
) -> Reading:
    """The mean of every prompt's selected tokens at one site of some layers.

    Args:
        model: The model.
        prompts: Token ids.
        place: Where to read.
        tokens: Of every prompt, the indices of its tokens that are read, in place of the selector.
    """
    from deltalens.model.capture import capture_moments
    from deltalens.model.select import GENERATION, LAST
    from deltalens.model.sites import Site, sites_of

    if not prompts:
        raise BadInput("there is no prompt to read")
    layers = place.layers or tuple(range(sites_of(model).layers))
    sites = {layer: Site(place.site, layer) for layer in layers}
    # A selector is the same for every row; what differs between rows are their turns, so that is how tokens are named.
    select = (place.select or LAST) if tokens is None else GENERATION
    turns = None if tokens is None else [_turns(list(chosen)) for chosen in tokens]
    moments = capture_moments(model, prompts, list(sites.values()), select, groups=range(len(prompts)), turns=turns)
    values, norms = {}, {}
    for layer, site in sites.items():
        values[layer] = moments[site].mean.numpy().astype(np.float32)
        norms[layer] = np.sqrt(moments[site].square.numpy().sum(axis=1))
    return Reading(values, norms, moments[next(iter(sites.values()))].count.numpy())


def estimates(
    first: Reading, second: Reading, paired: bool, site: str, contrast: str, source: Mapping[str, Any], seed: int
) -> list[Direction]:
    """Every estimate of the direction from the second group to the first, layer by layer.

    Ids are `layers.N.difference`, `.pca` (pairs only), `.probe` and `.samples`. Each records ‖v‖/mean‖h‖ with the norms
    of the second group. A layer in which the groups do not differ has none.

    Raises:
        BadInput: The groups differ in no layer.
    """
    found: list[Direction] = []
    for layer in first.values:
        a, b = first.values[layer], second.values[layer]
        read_here = samples(a, b, paired)
        mean = difference(read_here)
        if not mean.any():
            continue
        norm = float(second.norms[layer].mean())
        shared = {**source, "n": [len(a), len(b)], "paired": paired, "mean_norm": norm}

        def made(
            kind: str,
            vector: Float64[np.ndarray, " d"],
            extra: Mapping[str, Any],
            layer: int = layer,
            norm: float = norm,
            shared: Mapping[str, Any] = shared,
        ) -> Direction:
            length = {"relative_norm": float(np.linalg.norm(vector) / norm)}
            return Direction(
                id=f"layers.{layer}.{kind}",
                vectors=vector[None].astype(np.float32),
                layer=layer,
                kind=kind,
                space=SPACE_OF[site],
                site=site,
                sign="contrast",
                contrast=contrast,
                source={**shared, **length, "samples": f"layers.{layer}.{SAMPLES}", **extra},
                seeds=(seed,),
            )

        found.append(made("difference", mean, {}))
        if paired:
            found.append(made("pca", principal(read_here.rows), {}))
        if min(len(a), len(b)) >= FEWEST_PROBED:
            fitted = probe(a, b, paired, seed)
            found.append(made("probe", fitted.vector, {"right": fitted.right, "held_out": fitted.held_out}))
        found.append(
            Direction(
                id=f"layers.{layer}.{SAMPLES}",
                vectors=read_here.rows,
                layer=layer,
                kind=SAMPLES,
                space=SPACE_OF[site],
                site=site,
                contrast=contrast,
                source={**shared, "first": read_here.first},
                seeds=(seed,),
            )
        )
    if not found:
        raise BadInput(f"the groups of {contrast} do not differ at {site}", "other prompts, another site or model")
    return found


def mean_writes(
    pair: Pair,
    models: Mapping[str, "PreTrainedModel"],
    prompts: Ids,
    place: Place,
    source: Mapping[str, Any],
    norms: Mapping[int, float],
) -> list[Direction]:
    """E[ΔW x] of every o_proj and down_proj, with x of each side: what the change writes on real inputs.

    Where the sublayer's output is normalised the gain is multiplied in and named, its norm is not taken.

    Args:
        pair: The two checkpoints.
        models: `base` and `tuned`, loaded.
        prompts: Rendered prompts as token ids.
        place: Layers and selector; its site does not apply.
        source: What the directions record of their making.
        norms: By layer, mean‖h‖ for ‖v‖/mean‖h‖; only these layers are taken.
    """
    found = []
    for side, model in models.items():
        inputs = matrix_inputs(model, pair, prompts, place, ("o_proj", "down_proj"))
        for row in pair.rows:
            name, layer = row.name.name, row.name.layer
            if name not in inputs or layer not in norms:
                continue
            assert row.tuned is not None and layer is not None
            output, _ = sides(pair.tuned, row.tuned.name, row.name.kind)
            write = Folded(row).times(inputs[name])
            if output.norm is not None:
                write = write * gain(pair.tuned, output.norm)
            if not write.any():
                continue
            length = {"relative_norm": float(np.linalg.norm(write) / norms[layer]), "mean_norm": norms[layer]}
            found.append(
                Direction(
                    id=f"{name}.write.{side}",
                    vectors=write[None].astype(np.float32),
                    layer=layer,
                    kind=f"mean_write.{row.name.kind}.{side}",
                    space="residual",
                    site=output.site,
                    sign="contrast",
                    contrast=f"E[ΔW x], x of the {side} side",
                    source={**source, **length, "matrix": name, "norm": output.norm, "role": "write", "input": False},
                )
            )
    return found


def matrix_inputs(
    model: "PreTrainedModel", pair: Pair, prompts: Ids, place: Place, kinds: Sequence[str] = LINEAR
) -> dict[str, Float64[np.ndarray, " n"]]:
    """E[x] at the input of the matrices of some of the seven linear kinds, by canonical name; experts are left out."""
    from deltalens.model.capture import capture_moments
    from deltalens.model.select import LAST
    from deltalens.model.sites import input_of

    wanted = {}
    for row in pair.rows:
        if row.status != "measured" or row.tuned is None or row.name.layer is None or row.name.expert is not None:
            continue
        kind = role_kind(row.tuned.name, row.name.kind)
        if kind in kinds:
            wanted[row.name.name] = input_of(kind, row.name.layer)
    if not wanted:
        return {}
    moments = capture_moments(model, prompts, list(dict.fromkeys(wanted.values())), place.select or LAST)
    return {name: moments[site].mean[0].numpy() for name, site in wanted.items()}


def _turns(chosen: Sequence[int]) -> tuple[int, ...]:
    """Lengths of the alternating stretches of tokens left out and chosen; what follows is left out."""
    lengths, at = [], 0
    for index in chosen:
        if not lengths or index > at:
            lengths += [index - at, 0]
        lengths[-1] += 1
        at = index + 1
    return tuple(lengths)
