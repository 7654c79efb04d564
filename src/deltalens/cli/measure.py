"""`deltalens measure`: the delta pass over any two checkpoints."""

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from deltalens.cli.display import duration, err, invocation, measuring, number, out, table, warn
from deltalens.errors import printable

if TYPE_CHECKING:
    from deltalens.store.run import Run


@dataclass(frozen=True, slots=True)
class Measure:
    """Measure what changed in every matrix, above its noise floor; resumes where it stopped."""

    base: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BASE")]
    """Directory, .safetensors file, hub-id[@revision] or family:NAME."""
    tuned: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TUNED")]
    """The checkpoint that was trained from it."""
    out: Annotated[str, tyro.conf.arg(metavar="RUN")]
    """Directory of the result: new, or the same pair and settings to resume."""
    top: int = 16
    """Singular vectors kept per matrix."""
    both_rounded: bool = False
    """Both sides were rounded from wider masters: count both roundings as noise."""
    context: Literal["auto", "on", "off"] = "auto"
    """Measure Δ against the base's own directions; auto: up to 3 B parameters."""
    nulls: Literal["auto", "off", "default", "full"] = "auto"
    """What a structureless update of this size would show; auto: default where there is context."""
    size_matched: Annotated[str | None, tyro.conf.arg(metavar="RUN2")] = None
    """Scale this Δ to the norms of another RUN, round again, and measure that."""
    match: Annotated[str | None, tyro.conf.arg(metavar="GLOB")] = None
    """Spectra only of tensors whose canonical name matches, such as '*.mlp.*'."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """BLAS threads; all cores by default, those of the RUN when resuming."""
    verify: bool = False
    """Hash every byte of both checkpoints into the identity of the run."""
    json: bool = False
    """Print the run record as JSON in place of the table."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Measure, then print one line per kind and depth third."""
        from deltalens.checkpoint.pair import Pair
        from deltalens.spectrum.measure import measure_diff

        pair = Pair.open(self.base, self.tuned, self.match)
        for warning in pair.warnings:
            warn(warning)
        with measuring(self.quiet) as progress:
            run = measure_diff(
                pair,
                self.out,
                top=self.top,
                both_rounded=self.both_rounded,
                context={"auto": None, "on": True, "off": False}[self.context],
                nulls=None if self.nulls == "auto" else self.nulls,
                size_matched=self.size_matched,
                threads=self.threads,
                verify=self.verify,
                progress=progress,
                say=None if self.quiet else err,
                command=invocation(),
            )
        for warning in run.record["warnings"][len(pair.warnings) :]:
            warn(warning)
        if self.json:
            out(json.dumps(run.record, indent=2, ensure_ascii=False))
        else:
            show(run)
        return 0


def show(run: "Run") -> None:
    """Print the table of a RUN and where it lies."""
    from deltalens.spectrum.summary import summarise

    pair, totals = run.record["pair"], run.record["totals"]
    lines = summarise(run)
    table(
        f"{pair['base']['source']} → {pair['tuned']['source']}",
        [
            "kind",
            "depth",
            "n",
            "‖Δ‖/‖W‖",
            "rank",
            "denoised",
            "above",
            "spikes",
            "zeros",
            "pred.",
        ],
        [
            [
                line.kind,
                line.depth or "–",
                str(line.matrices),
                number(line.relative_change),
                number(line.effective_rank, ".1f"),
                number(line.denoised_effective_rank, ".1f"),
                f"{line.above_floor}/{line.matrices}",
                number(line.spikes, "g"),
                number(line.zero_fraction, ".3f"),
                number(line.predicted_zero_fraction, ".3f"),
            ]
            for line in lines
        ],
    )
    out(
        f"{totals['matrices']} matrices hold {totals['share_measured']:.1%} of ‖Δ‖²; "
        f"‖Δ‖/‖W‖ = {number(totals['relative_change'])} over {totals['compared']} of {totals['tensors']} tensors; "
        f"{duration(totals['seconds'])}, peak {run.record['peak_rss_bytes'] / 1e6:.0f} MB"
    )
    out("rank: median effective rank (Roy–Vetterli), raw beside denoised. above: matrices with any σ over the rounding")
    out("floor. zeros: share of unchanged entries; pred.: what rounding a dense update of this size would leave.")
    out(printable(f"stored in {run.path}; next: deltalens report {shlex.quote(str(run.path))}"))
