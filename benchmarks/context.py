"""What the context costs beside the delta pass, and what each of its numbers costs at the least.

CPU seconds of this process, so that other work on the machine counts less; the two tasks in turn, so that a slow moment
hits both. Medians of several runs. With several threads the BLAS spins while it waits: read the elapsed ratio there.

    python benchmarks/context.py [--threads 1] [--repeats 5] [--shapes 1536x1536,2048x2048,1536x8960]
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
from measure import write_pair
from threadpoolctl import threadpool_limits

from deltalens.checkpoint.pair import Row
from deltalens.checkpoint.read import read_matrix
from deltalens.spectrum import basis as of_base
from deltalens.spectrum.context import ContextSettings, frame, long, measure_context
from deltalens.spectrum.edge import signs
from deltalens.spectrum.gram import complete_vectors, gram, singular_values, tridiagonalise
from deltalens.spectrum.krylov import SPARE, top_triplets
from deltalens.spectrum.masks import expected, masks, overlaps
from deltalens.spectrum.matrix import Settings, measure_matrix

TARGET = 2.5
"""Times the delta pass."""

K = 16


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and elapsed seconds of one call."""
    cpu, elapsed = process_time(), perf_counter()
    work()
    return process_time() - cpu, perf_counter() - elapsed


def parts(row: Row) -> dict[str, Callable[[], object]]:
    """The steps of one context task by what needs them, each alone."""
    assert row.base is not None and row.tuned is not None
    base, tuned = (read_matrix(info, 2**26) for info in (row.base, row.tuned))
    delta = tuned - base
    basis = of_base.decompose(long(base), K)
    assert basis is not None
    x, d, changed = long(base), long(delta), delta != 0
    form = tridiagonalise(basis.gram.copy(order="F"))
    made, held, norm_sq = of_base.products(basis, d), masks(base, basis), float(np.sum(delta.astype(np.float64) ** 2))

    def flipped() -> np.ndarray:
        return x + d * signs(0, len(x), x.shape[1], 0)

    def masked() -> None:
        masks(base, basis)
        overlaps(held, changed)
        expected(held, base, changed)

    return {
        "every number: float64 Gram of the base": lambda: gram(of_base.slabs(x), x.shape[1]),
        "every number: its form and values": lambda: singular_values(tridiagonalise(basis.gram.copy(order="F"))),
        "energies, tuned Gram: xᵀΔ and ΔᵀΔ": lambda: of_base.products(basis, d),
        "drift, scaling, rotations: tuned form, values, vectors": lambda: frame(basis, d, made),
        "null rotations: signs, Krylov steps": lambda: top_triplets(flipped(), K, basis.short[:, : K + SPARE]),
        "masks and their expectation": masked,
        "κ: all vectors of the base": lambda: complete_vectors(form, K),
        "κ: its product": lambda: of_base.spectral_energy(basis, made, norm_sq),
    }


def main() -> None:
    """Time every shape and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", default="1536x1536,2048x2048,1536x8960")
    options = parser.parse_args()
    print(f"threads {options.threads}, medians of {options.repeats}")
    for shape in options.shapes.split(","):
        rows, cols = map(int, shape.split("x"))
        with tempfile.TemporaryDirectory() as scratch, threadpool_limits(limits=options.threads):
            row = write_pair(Path(scratch), rows, cols).rows[0]
            delta, context = Settings(threads=options.threads), ContextSettings(threads=options.threads)
            tasks = partial(measure_matrix, row, delta), partial(measure_context, row, context)
            tasks[0]()  # warms the file cache
            runs = [(cost(tasks[0]), cost(tasks[1])) for _ in range(options.repeats)]
            unit = median(one[0] for one, _ in runs)
            for what, at in (("CPU", 0), ("elapsed", 1)):
                one, two = (median(pair[side][at] for pair in runs) for side in (0, 1))
                ratios = sorted(pair[1][at] / pair[0][at] for pair in runs)
                print(
                    f"{shape:<11}{what:<8} delta {one:6.2f} s, context {two:6.2f} s, ratio {median(ratios):.2f} "
                    f"[{ratios[0]:.2f}, {ratios[-1]:.2f}] (≤ {TARGET})"
                )
            for name, work in parts(row).items():
                seconds = median(cost(work)[0] for _ in range(options.repeats))
                print(f"{shape:<11}  {seconds / unit:5.2f} × delta  {seconds:6.3f} s  {name}")


if __name__ == "__main__":
    main()
