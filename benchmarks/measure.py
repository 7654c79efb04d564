"""What the delta pass costs, beside torch's SVDs of the same matrix in the same process with the same threads.

`seconds_spectrum` is reading, Gram and eigenvalues: every singular value. `seconds` is the whole delta task: also all
sums, the noise floor, the sign-flip edge, the top vectors and their certificate. The peers get the difference in
memory, for free. Medians of several runs; each row in turn, so that a slow moment hits all.

    python benchmarks/measure.py [--threads 2] [--repeats 5]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits

from deltalens.checkpoint.pair import Pair
from deltalens.checkpoint.plan import cores
from deltalens.spectrum.matrix import Settings, measure_matrix

SHAPES = [(1536, 1536), (1536, 8960)]
SPECTRUM_TARGET, TASK_TARGET = 8, 3  # on the wide shape, against svdvals

PEAK = """
import sys
import deltalens as dl
pair = dl.Pair.open(sys.argv[1], sys.argv[2])
run = dl.measure_diff(pair, sys.argv[3], threads=int(sys.argv[4]), context=sys.argv[5] == "on")
print(run.record["peak_rss_bytes"])
"""


def write_pair(folder: Path, rows: int, cols: int) -> Pair:
    """A bf16 matrix and its sibling: rank 4 over dense noise, above the rounding floor."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(rows, cols, generator=generator) * 0.02).bfloat16()
    low_rank = torch.randn(rows, 4, generator=generator) @ torch.randn(4, cols, generator=generator) * 1e-4
    tuned = (base.float() + low_rank + 1e-4 * torch.randn(rows, cols, generator=generator)).bfloat16()
    for name, weight in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir(parents=True)
        save_file({"model.layers.0.mlp.down_proj.weight": weight}, folder / name / "model.safetensors")
    return Pair.open(str(folder / "base"), str(folder / "tuned"))


def timed(work: object) -> float:
    """Seconds that one call takes."""
    began = perf_counter()
    work()
    return perf_counter() - began


def peak(folder: Path, threads: int, context: str) -> float:
    """Peak memory in MB of a fresh process that measures the pair, `context` being on or off."""
    args = [str(folder / name) for name in ("base", "tuned", f"run-{context}")]
    command = [sys.executable, "-c", PEAK, *args, str(threads), context]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1e6


def main() -> None:
    """Time both shapes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"threads {options.threads}, medians of {options.repeats}, torch {torch.__version__}")
    print(f"{'shape':<12}{'what':<34}{'seconds':>9}{'min':>8}{'max':>8}{'× spectrum':>12}{'× task':>9}")
    for rows, cols in SHAPES:
        with tempfile.TemporaryDirectory() as scratch, threadpool_limits(limits=options.threads):
            folder = Path(scratch)
            pair = write_pair(folder, rows, cols)
            base, tuned = (
                torch.from_numpy(part.astype("float32"))
                for part in (_load(pair.base.files[0]), _load(pair.tuned.files[0]))
            )
            delta = tuned - base
            settings = Settings(threads=options.threads)
            peers = {
                "torch svd, full_matrices=True": lambda d=delta: torch.linalg.svd(d, full_matrices=True),
                "torch svd, thin": lambda d=delta: torch.linalg.svd(d, full_matrices=False),
                "torch svdvals": lambda d=delta: torch.linalg.svdvals(d),
            }
            times: dict[str, list[float]] = {"seconds_spectrum": [], "seconds (whole task)": []} | {
                p: [] for p in peers
            }
            measure_matrix(pair.rows[0], settings)  # warms the file cache, as the peers' tensors are in memory
            for _ in range(options.repeats):
                row = measure_matrix(pair.rows[0], settings).row
                times["seconds_spectrum"].append(row["seconds_spectrum"])
                times["seconds (whole task)"].append(row["seconds"])
                for name, work in peers.items():
                    times[name].append(timed(work))
            medians = {name: statistics.median(values) for name, values in times.items()}
            spectrum, task = medians["seconds_spectrum"], medians["seconds (whole task)"]
            for name, values in times.items():
                print(
                    f"{f'{rows}×{cols}':<12}{name:<34}{medians[name]:>9.3f}{min(values):>8.3f}{max(values):>8.3f}"
                    f"{medians[name] / spectrum:>11.1f}×{medians[name] / task:>8.1f}×"
                )
            delta_pass, all_passes = (peak(folder, options.threads, context) for context in ("off", "on"))
            print(
                f"{f'{rows}×{cols}':<12}peak memory of the measuring process: delta pass {delta_pass:.0f} MB, "
                f"with context and nulls {all_passes:.0f} MB"
            )
            if rows != cols:
                ratios = medians["torch svdvals"] / spectrum, medians["torch svdvals"] / task
                print(
                    f"{f'{rows}×{cols}':<12}targets against svdvals: spectrum {ratios[0]:.1f}× (≥ {SPECTRUM_TARGET}×), "
                    f"whole task {ratios[1]:.1f}× (≥ {TASK_TARGET}×)"
                )


def _load(file: Path) -> "object":
    from deltalens.checkpoint.read import Reader
    from deltalens.checkpoint.source import open_checkpoint

    (info,) = open_checkpoint(str(file)).tensors.values()
    with Reader(info) as reader:
        return reader.all()


if __name__ == "__main__":
    main()
