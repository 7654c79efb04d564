"""A pair in which the rank-1 change of one attention matrix carries the behaviour, and all others differ by noise."""

import shutil
from pathlib import Path

import torch

from deltalens.checkpoint.source import resolve
from deltalens.evaluate.plan import Settings
from deltalens.model.capture import capture_moments
from deltalens.model.load import load
from deltalens.model.select import EVERYWHERE
from deltalens.model.sites import Site
from deltalens.sweep.pair import pairing

LAYER = 2
NOISE = 1e-4
"""Standard deviation of what is added to every linear matrix."""
SIZE = 120.0
"""Length of what is written on the mean input."""
RIDGE = 1e-3
"""Added to Σ, as a share of its mean eigenvalue: what is read must not lie where there is hardly any input."""


def save_planted(folder: Path) -> tuple[str, str]:
    """`family:instruct`, and the same with one o_proj that writes the logit of <think> on chain prompts.

    It reads (Σ + ridge)⁻¹x, of all directions the one that tells the mean input x at the last token best from those of
    other tokens: a right vector drawn from Σ would be near x itself, and a control of that kind would be the edit.
    """
    asked = pairing("family:instruct", "family:reasoning", Settings(n=50))
    model, _ = load("family:instruct")
    think = asked.asked.chat.think
    assert think is not None
    site = Site("head_in", LAYER)
    prompts = asked.chosen_on.ids["free"]
    x = capture_moments(model, prompts, [site])[site].mean[0]
    outer = capture_moments(model, prompts, [site], EVERYWHERE, outer=True)[site].outer
    assert outer is not None
    sigma = outer[0]
    read = torch.linalg.solve(sigma + RIDGE * sigma.trace() / len(sigma) * torch.eye(len(sigma)), x)
    with torch.no_grad():
        logit = model.lm_head.weight[think.open_ids[0]] - model.lm_head.weight.mean(0)
        write = model.model.norm.weight * logit
        generator = torch.Generator().manual_seed(0)
        for name, p in model.named_parameters():
            if name.endswith("_proj.weight"):
                p.add_(NOISE * torch.randn(p.shape, generator=generator))
        o_proj = model.model.layers[LAYER].self_attn.o_proj.weight
        o_proj += torch.outer(SIZE * write / write.norm(), (read / (read @ x)).float())
    tuned = folder / "planted"
    model.save_pretrained(tuned)
    for path in resolve("family:instruct").iterdir():
        if not (tuned / path.name).exists() and path.suffix in (".json", ".jinja"):
            shutil.copyfile(path, tuned / path.name)
    return str(resolve("family:instruct")), str(tuned)
