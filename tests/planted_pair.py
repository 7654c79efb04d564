"""A pair in which the rank-1 change of one attention matrix carries the behaviour, and all others differ by noise."""

import shutil
from pathlib import Path

import torch

from deltalens.checkpoint.source import resolve
from deltalens.evaluate.plan import Settings
from deltalens.methods.pair import pairing
from deltalens.model.capture import capture_moments
from deltalens.model.load import load
from deltalens.model.sites import Site

LAYER = 2
NOISE = 1e-4
"""Standard deviation of what is added to every linear matrix."""


def save_planted(folder: Path) -> tuple[str, str]:
    """`family:instruct`, and the same with one o_proj that writes the logit of <think> on chain prompts."""
    asked = pairing("family:instruct", "family:reasoning", Settings(n=50), "rank")
    model, _ = load("family:instruct")
    think = asked.asked.chat.think
    assert think is not None
    site = Site("head_in", LAYER)
    x = capture_moments(model, asked.chosen_on.ids["free"], [site])[site].mean[0].float()
    with torch.no_grad():
        logit = model.lm_head.weight[think.open_ids[0]] - model.lm_head.weight.mean(0)
        write = model.model.norm.weight * logit
        generator = torch.Generator().manual_seed(0)
        for name, p in model.named_parameters():
            if name.endswith("_proj.weight"):
                p.add_(NOISE * torch.randn(p.shape, generator=generator))
        model.model.layers[LAYER].self_attn.o_proj.weight += torch.outer(SIZE * write / write.norm(), x / (x @ x))
    tuned = folder / "planted"
    model.save_pretrained(tuned)
    for path in resolve("family:instruct").iterdir():
        if not (tuned / path.name).exists() and path.suffix in (".json", ".jinja"):
            shutil.copyfile(path, tuned / path.name)
    return str(resolve("family:instruct")), str(tuned)


SIZE = 200.0
"""Length of what is written on the mean input."""
