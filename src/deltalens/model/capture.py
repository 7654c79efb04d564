"""Activations at chosen tokens: their moments, summed in float64 batch by batch, or the rows themselves.

One pass per prompt, stopped as soon as every site has been met. What is held at a time: of one batch, the activations
of the chosen tokens at all sites, in the model's dtype; of moments, groups × d float64 (with `outer`, groups × d²) per
site; of rows, every one in float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from deltalens.errors import BadInput, Refused
from deltalens.model.forward import check_prompts, forward, in_batches, left_padded
from deltalens.model.points import attach
from deltalens.model.select import LAST, Selector, Track, Turns, batch
from deltalens.model.sites import Site, sites_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Moments of a site's activations x over the chosen tokens of each group of prompts, on the CPU.

    Args:
        count: Tokens.
        mean: E[x].
        square: E[x²] of every entry.
        outer: E[xxᵀ], uncentred, where asked for.
    """

    count: Int64[Tensor, "groups"]
    mean: Float64[Tensor, "groups d"]
    square: Float64[Tensor, "groups d"]
    outer: Float64[Tensor, "groups d d"] | None


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A site's activations at the chosen tokens in order of prompt and position, on the CPU.

    Args:
        values: The activations x, or their inner products with given vectors.
        norm: ‖x‖.
        row: Index of the prompt.
        position: Index of the token in its prompt.
    """

    values: Float32[Tensor, "tokens k"]
    norm: Float32[Tensor, "tokens"]
    row: Int64[Tensor, "tokens"]
    position: Int64[Tensor, "tokens"]


def capture_moments(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    sites: Sequence[Site],
    select: Selector = LAST,
    *,
    groups: Sequence[int] | None = None,
    outer: bool = False,
    turns: Turns | None = None,
    batch_size: int = 64,
) -> dict[Site, Moments]:
    """Count, mean and second moments of activations, per group of prompts.

    Args:
        model: A causal language model in evaluation mode.
        prompts: Token ids of any lengths.
        sites: Where.
        select: Which tokens.
        groups: Of every prompt, its group, numbered from 0; one group if left out.
        outer: Whether E[xxᵀ] is wanted; it costs d² in memory per site and group.
        turns: Of every prompt, the lengths of prompt and completion, as `select.batch` takes them.
        batch_size: Prompts at a time.

    Raises:
        BadInput: A site that the model lacks, groups that leave out a number, or an empty prompt.
        Refused: A group in which the selector matches no token.
    """
    member = [0] * len(prompts) if groups is None else list(groups)
    n = max(member, default=-1) + 1
    if not prompts or len(member) != len(prompts) or set(member) != set(range(n)):
        raise BadInput("the prompts do not form groups 0, 1, …", "at least one prompt, and one group number for each")
    sums: dict[Site, list[Tensor]] = {}
    labels = torch.tensor(member)
    for caught in _passes(model, prompts, sites, select, turns, batch_size):
        for site, (x, row, _) in caught.items():
            x, label = x.double(), labels[row]
            if site not in sums:
                d = x.shape[1]
                shapes = [(n,), (n, d), (n, d), *([(n, d, d)] if outer else [])]
                sums[site] = [x.new_zeros(shape) for shape in shapes]
            for group in sorted(set(label.tolist())):
                mine = x[(label == group).to(x.device)]
                parts = [x.new_tensor(len(mine)), mine.sum(0), mine.square().sum(0)]
                for total, part in zip(sums[site], [*parts, *([mine.T @ mine] if outer else [])], strict=True):
                    total[group] += part
    found = {site: [total.cpu() for total in totals] for site, totals in sums.items()}
    empty = (found[sites[0]][0] == 0).nonzero().flatten().tolist() if found else range(n)
    for group in empty:
        raise Refused(f"the selector matches no token of group {group}", "another selector or other prompts")
    return {site: _moments(*found[site]) for site in sites}


def _moments(count: Tensor, total: Tensor, square: Tensor, outer: Tensor | None = None) -> Moments:
    per = count[:, None]
    return Moments(count.long(), total / per, square / per, None if outer is None else outer / per[..., None])


def capture_rows(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    sites: Sequence[Site],
    select: Selector = LAST,
    *,
    project: Mapping[Site, Float[Tensor, "k d"]] | None = None,
    turns: Turns | None = None,
    batch_size: int = 64,
) -> dict[Site, Rows]:
    """The activations themselves, one row per chosen token.

    Args:
        model: A causal language model in evaluation mode.
        prompts: Token ids of any lengths.
        sites: Where.
        select: Which tokens.
        project: Of a site, the vectors whose inner products are kept instead of the activation.
        turns: Of every prompt, the lengths of prompt and completion, as `select.batch` takes them.
        batch_size: Prompts at a time.

    Raises:
        BadInput: A site that the model lacks, projections of another width, or an empty prompt.
        Refused: The selector matches no token.
    """
    project = project or {}
    known = sites_of(model)
    for site, vectors in project.items():
        if vectors.shape[-1] != known.size(site):
            raise BadInput(f"{site} has width {known.size(site)}, the directions {vectors.shape[-1]}")
    pieces: dict[Site, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {site: [] for site in sites}
    for caught in _passes(model, prompts, sites, select, turns, batch_size):
        for site, (x, row, position) in caught.items():
            wide = x.float()
            values = wide @ project[site].to(wide).T if site in project else wide
            pieces[site].append((values.cpu(), wide.norm(dim=-1).cpu(), row, position))
    if not pieces[sites[0]]:
        raise Refused("the selector matches no token", "another selector or other prompts")
    return {site: _ordered(*(torch.cat(parts) for parts in zip(*pieces[site], strict=True))) for site in sites}


def _ordered(values: Tensor, norm: Tensor, row: Tensor, position: Tensor) -> Rows:
    order = (row * (position.max() + 1) + position).argsort()
    return Rows(values[order], norm[order], row[order], position[order])


class _EnoughError(Exception):
    """Every site has been met: the rest of the pass is not needed."""


Caught = dict[Site, tuple[Tensor, Tensor, Tensor]]


def _passes(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    sites: Sequence[Site],
    select: Selector,
    turns: Turns | None,
    batch_size: int,
) -> "Iterator[Caught]":
    """For every batch with a chosen token: of each site the activations [tokens, d], prompt indices and positions."""
    if not sites:
        raise BadInput("no site to capture")
    known = sites_of(model)
    points = {site: known.point(site) for site in sites}
    check_prompts(model, prompts, [0] * len(prompts))

    @torch.no_grad()
    def work(where: list[int]) -> Caught:
        ids, mask = left_padded([prompts[i] for i in where], model.device)
        track = Track()
        caught: Caught = {}
        handles: list[RemovableHandle] = [model.register_forward_pre_hook(track.observe, with_kwargs=True)]

        def visit(x: Float[Tensor, "rows new d"], site: Site) -> None:
            chosen, count = track.chosen(select)
            if count:
                caught[site] = (x[chosen.to(x.device)], *_places(track, chosen))
            if not count or len(caught) == len(points):
                raise _EnoughError

        try:
            for site, point in points.items():
                handles += attach(model, point, lambda x, site=site: visit(x, site), lambda: len(where))
            with batch(where, None if turns is None else [turns[i] for i in where]):
                forward(model, ids, mask, keep=ids.shape[1] if Site("logits") in points else 1)
        except _EnoughError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return caught

    for _, caught in in_batches(work, [len(prompt) for prompt in prompts], batch_size):
        if caught:
            yield caught


def _places(track: Track, chosen: Bool[Tensor, "rows new"]) -> tuple[Tensor, Tensor]:
    """Prompt and position of every chosen token, on the CPU."""
    at, column = chosen.nonzero(as_tuple=True)
    return track.rows[at].cpu(), track.position[at, column].cpu()
