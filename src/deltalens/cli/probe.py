"""`deltalens probe`: does a direction fire on reasoning and not elsewhere, beside what chance directions do?"""

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import tyro

from deltalens.cli.display import Dtype, invocation, measuring, out, table, target
from deltalens.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltalens.methods.matched import Contrast
    from deltalens.methods.separation import Separation

_LEGEND = (
    "AUC and Cohen's d of ⟨h, v̂⟩ (÷‖h‖: AUC of ⟨h, v̂⟩/‖h‖) with 95 % intervals. p: permuted labels, Holm over layers.\n"
    "Bands hold 95 % of the d of random directions, and of differences of means under permuted labels made from the\n"
    "other half of the prompts; p_max: of |d| among the latter, corrected over layers.\n"
    "beyond: the interval of |d| lies outside both bands, and both p are at most .05."
)


@dataclass(frozen=True, slots=True)
class Probe:
    """Read a direction in every layer: does it tell two groups of prompts apart, and more than chance directions do?"""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Directory, hub-id[@revision] or family:NAME; its chat template renders the prompts."""
    direction: Annotated[str, tyro.conf.arg(metavar="BANK[#id]")]
    """One direction, or a profile with one per layer such as 'BANK#*.probe'; of a bank its differences of means."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="A.jsonl[,B.jsonl]")] = None
    """Two prompt files, or one with two groups; by default matched reasoning and plain questions, on the family chains
    and facts. Every second prompt is tested, the others give the label-permuted directions."""
    against: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """Read the same ids in this model too, usually the base."""
    site: Annotated[str | None, tyro.conf.arg(metavar="SITE")] = None
    """Where to read: resid_post, attn_out, …; by default where the direction lives."""
    select: str = "last"
    """Which tokens make a prompt's score (their mean): last, prompt, an offset such as -3."""
    max_tokens: int = 64
    """Tokens generated after the example of each group."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Keep every number, and the examples token by token, here; the same command resumes."""
    seed: int = 0
    """Of the family's prompts, of nulls and permutations."""
    dtype: Dtype = "auto"
    """Of computation; auto: float32 on a CPU, as stored on a GPU."""
    device: str = "auto"
    """cpu or cuda; auto takes a GPU where there is one."""
    json: bool = False
    """Print verdict and summary as JSON in place of the tables."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Probe, print a table per model and the verdict."""
        from deltalens.methods.probe import LENGTH, Settings, plan, probe
        from deltalens.store.results import SUMMARY

        where = target(self.out)
        asked = plan(Settings(**{f.name: getattr(self, f.name) for f in fields(Settings)}))
        with measuring(self.quiet, "probe") as progress:
            found = probe(asked, where, progress, invocation())
        if self.json:
            rows = [dict.fromkeys(SUMMARY.names) | row for row in found.summary]
            out(json.dumps({"verdict": found.verdict, "summary": rows}, indent=2, ensure_ascii=False))
            return 0
        for source, layers in found.separations.items():
            show(f"{source}, {asked.site}, {self.select}: {_sizes(asked.contrast)}", layers)
        length = next(row for row in found.summary if row["arm"] == LENGTH)
        out(f"{LENGTH} alone: AUC {_interval((length['value'], length['low'], length['high']), '.2f')}")
        out(_LEGEND)
        out(printable(f"verdict: {found.verdict}"))
        if self.out:
            out(printable(f"stored in {self.out}"))
        return 0


def show(title: str, layers: "Sequence[Separation]") -> None:
    """A line per layer."""
    table(
        title,
        ["layer", "AUC", "÷‖h‖", "d", "p", "random d", "permuted d", "p_max", "beyond"],
        [
            [
                str(row.layer),
                _interval(row.auc, ".2f"),
                _interval(row.auc_normalised, ".2f"),
                _interval(row.d, ".1f"),
                f"{row.p_holm:.3f}",
                *(f"[{band.d[1]:.1f}, {band.d[2]:.1f}]" for band in row.bands.values()),
                f"{row.p_max_t:.3f}",
                "yes" if row.beyond else "no",
            ]
            for row in layers
        ],
        left=1,
    )


def _sizes(contrast: "Contrast") -> str:
    sizes = [f"{len(ids)} {name}" for name, ids in zip(contrast.names, contrast.test, strict=True)]
    return " and ".join(sizes) + (", token counts matched" if contrast.matched else ", token counts NOT matched")


def _interval(values: "Sequence[float]", form: str) -> str:
    value, low, high = values
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
