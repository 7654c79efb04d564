"""What bfloat16 files would have made of the change: copies of `instruct` and `think` as they are usually stored.

Usage: python runs/smollm2/rounded.py OUT
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from train import START, ran

from deltalens.errors import BadInput

THINK, WEIGHTS = "think", "model.safetensors"


def rounded(folder: Path, out: Path) -> Path:
    """A copy of a model directory with every tensor rounded to bfloat16, in place of an earlier one."""
    half = out.with_name(f".{out.name}")
    for stale in (half, out):
        shutil.rmtree(stale, ignore_errors=True)
    shutil.copytree(folder, half, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {name: t.bfloat16() for name, t in load_file(folder / WEIGHTS).items()}
    save_file(tensors, half / WEIGHTS, {"format": "pt"})
    return half.rename(out)


def error(out: Path) -> dict[str, float]:
    """‖Δ′ − Δ‖/‖Δ‖ over the matrices of the blocks, Δ′ between the rounded files, and the lengths it is made of."""
    files = [load_file(out / name / WEIGHTS) for name in (START, THINK, f"{START}-bf16", f"{THINK}-bf16")]
    base, tuned, base16, tuned16 = files
    names = [name for name, t in base.items() if t.ndim == 2 and ".layers." in name]

    def norm(of: dict[str, torch.Tensor]) -> float:
        return sum(float(of[name].double().square().sum()) for name in names) ** 0.5

    delta = {name: tuned[name] - base[name] for name in names}
    seen = {name: tuned16[name].float() - base16[name].float() for name in names}
    return {
        "change": norm(delta) / norm(base),
        "error": norm({name: seen[name] - delta[name] for name in names}) / norm(delta),
    }


def main(arguments: Sequence[str]) -> None:
    """Writes both copies and `rounding.json`."""
    out = Path(arguments[0])
    if missing := [name for name in (START, THINK) if not (out / name / WEIGHTS).is_file()]:
        raise BadInput(f"{out} holds no model {missing[0]}", f"python runs/smollm2/train.py {out} {THINK}")
    for name in (START, THINK):
        rounded(out / name, out / f"{name}-bf16")
    (out / "rounding.json").write_text(json.dumps(error(out), indent=1))


if __name__ == "__main__":
    sys.exit(ran(main, sys.argv[1:], __doc__))
