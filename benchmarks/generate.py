"""Greedy tokens per second beside `transformers.generate`: same model, prompts, batch size and process.

Both write the same tokens, which is asserted. transformers gets batches in the order of the prompts, as its users do.
Where all completions are equally long there is little to win. Where they are not, its finished rows are computed until
the last one ends, and ours leave the batch. Medians of several runs in turn, so that a slow moment hits both.

    python benchmarks/generate.py [--threads 2] [--repeats 5] [--batch 64]
"""

import argparse
import statistics
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch

from deltalens.checkpoint.plan import cores
from deltalens.evaluate.tasks import chain
from deltalens.family.tokenizer import chat
from deltalens.model.forward import left_padded
from deltalens.model.generate import Decoding, ending_ids, generate_ids
from deltalens.model.load import load

MAX_NEW_TOKENS = 64
WORKLOADS = {
    "64 chains of depth 8, equally long": chain.items("test", 64, 1, chain.MAX_DEPTH),
    "256 chains of depths 1 to 8": chain.TASK.items("test", 256, 1),
}


def transformers_generate(
    model: Any, prompts: Sequence[list[int]], ends: Sequence[int], batch_size: int
) -> list[list[int]]:
    """What `model.generate` writes, up to and including the first ending token."""
    rows: list[list[int]] = []
    for at in range(0, len(prompts), batch_size):
        ids, mask = left_padded(prompts[at : at + batch_size], model.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=0,
            eos_token_id=list(ends),
        )
        for row in out[:, ids.shape[1] :].tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            rows.append(row[:end])
    return rows


def main() -> None:
    """Time both workloads and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load("family:reasoning", device="cpu")
    ends = sorted(ending_ids(model, tokenizer))
    print(f"family:reasoning, batch {options.batch}, threads {options.threads}, medians of {options.repeats}")
    print(f"{'greedy tokens per second':<38}{'transformers':>14}{'deltalens':>12}{'ratio':>8}")
    for name, items in WORKLOADS.items():
        prompts = [tokenizer(chat(item.prompt), add_special_tokens=False)["input_ids"] for item in items]
        work = {
            "transformers": lambda p=prompts: transformers_generate(model, p, ends, options.batch),
            "deltalens": lambda p=prompts: generate_ids(
                model, p, Decoding(MAX_NEW_TOKENS), ends=ends, batch_size=options.batch
            ),
        }
        rows = work["deltalens"]()
        assert work["transformers"]() == rows, "both must write the same tokens"
        seconds: dict[str, list[float]] = {who: [] for who in work}
        for _ in range(options.repeats):
            for who, run in work.items():
                began = perf_counter()
                run()
                seconds[who].append(perf_counter() - began)
        theirs, ours = (sum(map(len, rows)) / statistics.median(seconds[who]) for who in work)
        print(f"{name:<38}{theirs:>14.0f}{ours:>12.0f}{ours / theirs:>7.2f}×")


if __name__ == "__main__":
    main()
