"""Pairs of tiny saved models that transformers loads, and banks of directions for them, for the tests of edits."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import WIDTH, tiny

from deltalens.checkpoint.source import resolve
from deltalens.direction.bank import write_bank
from deltalens.direction.direction import Direction


def save(model: Any, folder: Path, shard: str = "5GB", dtype: torch.dtype = torch.float32) -> Path:
    """A model as a checkpoint directory, with the family's tokenizer: it has as many tokens."""
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    model.float()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(resolve("family:base") / name, folder / name)
    return folder


def save_pair(
    folder: Path, architecture: str, size: float = 0.05, seed: int = 1, dtype: torch.dtype = torch.float32, **how: Any
) -> tuple[Path, Path]:
    """A random model and the same with every parameter moved: matrices by rank 2 and noise, vectors by noise."""
    shard = how.pop("shard", "5GB")
    model = tiny(architecture, **how)
    base = save(model, folder / "base", shard, dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * 0.1 * torch.randn(p.shape, generator=generator))
            if p.ndim == 2:
                left, right = (torch.randn(n, 2, generator=generator) for n in p.shape)
                p.add_(size * left @ right.T)
    return base, save(model, folder / "tuned", shard, dtype)


def save_bank(
    path: Path, vectors: int = 1, width: int = WIDTH, space: str = "residual", site: str = "resid_post"
) -> str:
    """A bank with one random direction of layer 1; gives `BANK#d`."""
    rows = np.random.default_rng(0).standard_normal((vectors, width)).astype(np.float32)
    write_bank(path, [Direction("d", rows, 1, "difference", space, site)])
    return f"{path}#d"
