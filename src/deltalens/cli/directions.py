"""`deltalens directions weights|activations`: write a bank of directions and say how far each can be trusted."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from deltalens.cli.display import Dtype, chat_of, number, out, say, table, warn
from deltalens.errors import BadInput, Refused, printable

if TYPE_CHECKING:
    from deltalens.checkpoint.chat import Chat
    from deltalens.direction.direction import Direction
    from deltalens.evaluate.tasks.item import Item


@dataclass(frozen=True, slots=True)
class Weights:
    """Singular vectors of the deltas of a RUN, mapped to the residual stream where they read or write it."""

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A finished RUN directory."""
    out: Annotated[str, tyro.conf.arg(metavar="BANK")]
    """The bank to write, a new .safetensors file."""
    matrix: Annotated[str, tyro.conf.arg(metavar="GLOB")] = "*"
    """Matrices by canonical name, such as '*.o_proj'."""
    top: int = 8
    """Vectors per matrix."""
    folded: bool = False
    """Decompose W_t·diag(γ_t) − W_b·diag(γ_b) from the checkpoints: what the trained norm gains change too."""
    orient: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """Turn every vector so that ⟨u, E[ΔW x]⟩ > 0 on reasoning prompts in this model."""
    dtype: Dtype = "auto"
    """Of computation; auto: float32 on a CPU, as stored on a GPU."""
    device: str = "auto"
    """cpu or cuda; auto takes a GPU where there is one."""
    json: bool = False
    """Print what the bank holds as JSON in place of the table."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Write the bank, then print a line per direction."""
        from deltalens.direction.bank import write_bank
        from deltalens.direction.weights import from_run, pair_of
        from deltalens.store.run import Run

        free(self.out)
        run = Run.open(self.path)
        pair = pair_of(run)
        inputs = None
        if self.orient is not None:
            from deltalens.direction.activations import Place, matrix_inputs
            from deltalens.methods.matched import read_groups, rendered
            from deltalens.model.load import load

            chat = chat_of(self.orient)
            first, _, _, _ = read_groups(chat, None)
            say(self.quiet, f"reading the inputs of the matrices of {self.orient} on {len(first)} prompts")
            model, _ = load(self.orient, self.dtype, self.device)
            inputs = matrix_inputs(model, pair, rendered(chat, first), Place())
        found = from_run(run, pair, self.matrix, self.top, folded=self.folded, inputs=inputs)
        write_bank(self.out, found)
        if self.json:
            out(json.dumps([described(d) for d in found], indent=2, ensure_ascii=False))
        else:
            show_weights(found, self.out)
        return 0


@dataclass(frozen=True, slots=True)
class Activations:
    """Differences of means, principal directions and probes between two models, two groups of prompts, or spans."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Directory, hub-id[@revision] or family:NAME; its chat template renders the prompts."""
    out: Annotated[str, tyro.conf.arg(metavar="BANK")]
    """The bank to write, a new .safetensors file."""
    against: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """The model that is subtracted on the same prompts, usually the base."""
    contrast: Literal["models", "prompts", "spans"] | None = None
    """models (with --against, the default), prompts A − B (without), or spans inside the think block."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="A.jsonl[,B.jsonl]")] = None
    """Prompt files, of which every other prompt is read; by default matched questions, or chains of the family."""
    site: str = "resid_post"
    """Where activations are read: resid_pre, attn_out, resid_mid, mlp_out, resid_post, …"""
    layers: tuple[int, ...] = ()
    """Which layers; all by default."""
    select: str = "last"
    """Which prompt tokens: last, prompt, an offset such as -3; not for spans."""
    pattern: Annotated[str | None, tyro.conf.arg(metavar="REGEX")] = None
    """Spans of a behaviour, such as 'wait|hmm', less other thinking; without: long less short thinking."""
    max_tokens: int | None = None
    """Longest completion for spans; 96 on the family, 4096 elsewhere."""
    seed: int = 0
    """Of the prompts that a task generates and of the probe's split."""
    dtype: Dtype = "auto"
    """Of computation; auto: float32 on a CPU, as stored on a GPU."""
    device: str = "auto"
    """cpu or cuda; auto takes a GPU where there is one."""
    json: bool = False
    """Print what the bank holds as JSON in place of the table."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Write the bank, then print a line per layer."""
        contrast = self.contrast or ("models" if self.against else "prompts")
        if (contrast == "models") != (self.against is not None):
            raise BadInput(
                "--contrast models compares two models, the others read one",
                "--against MODEL" if contrast == "models" else "leave out --against",
            )
        if self.seed < 0:
            raise BadInput(f"--seed {self.seed} is not possible", "--seed 0")
        if self.pattern is not None and contrast != "spans":
            raise BadInput("--pattern finds spans of a behaviour", "--contrast spans")
        free(self.out)
        from deltalens.methods.matched import read_groups

        chat = chat_of(self.model)
        first, second, names, paired = read_groups(chat, self.prompts, self.seed, every_depth=contrast == "spans")
        if contrast == "prompts" and not second:
            raise BadInput("--contrast prompts needs two groups", "--prompts A.jsonl,B.jsonl")
        from deltalens.direction.bank import write_bank

        found = self._directions(contrast, chat, first, second, names, paired)
        write_bank(self.out, found)
        if self.json:
            out(json.dumps([described(d) for d in found], indent=2, ensure_ascii=False))
        else:
            show_activations(found, self.out)
        return 0

    def _directions(
        self,
        contrast: str,
        chat: "Chat",
        first: "Sequence[Item]",
        second: "Sequence[Item]",
        names: Sequence[str],
        paired: bool,
    ) -> "list[Direction]":
        from deltalens.direction import activations as read
        from deltalens.methods.matched import rendered
        from deltalens.model.load import load
        from deltalens.model.select import parse_selector

        place = read.Place(self.site, self.layers, parse_selector(self.select, chat.think))
        source: dict[str, Any] = {"model": self.model, "template": chat.template_hash, "select": self.select}
        source |= {"split": "extract"}
        model, _ = load(self.model, self.dtype, self.device)
        if contrast == "prompts":
            say(self.quiet, f"reading {len(first)} and {len(second)} prompts: {' and '.join(names)}")
            both = rendered(chat, first), rendered(chat, second)
            words = f"{names[0]} − {names[1]}"
            return read.from_prompts(
                model, *both, place, source | {"prompts": list(names)}, self.seed, paired=paired, contrast=words
            )
        source |= {"prompts": list(names[:1])}
        if contrast == "models":
            from deltalens.methods.thinking import between_models, one_stream

            assert self.against is not None
            pair = one_stream(self.against, self.model)
            for warning in pair.warnings:
                warn(warning)
            say(self.quiet, f"reading {len(first)} prompts in both models")
            ids = rendered(chat, first)
            return between_models(pair, model, ids, place, source, self.seed, self.dtype, self.device)
        from deltalens.checkpoint.source import open_checkpoint
        from deltalens.direction.spans import from_spans
        from deltalens.evaluate.agree import ending_ids
        from deltalens.model.generate import Decoding, generate_ids

        if chat.think is None:
            raise BadInput(f"{self.model} has no think format, so there are no spans of thinking", "--contrast prompts")
        ids = rendered(chat, first, "forced")
        limit = self.max_tokens or (96 if self.model.startswith("family:") else 4096)
        say(self.quiet, f"generating {len(ids)} completions of at most {limit} tokens")
        ends = ending_ids(open_checkpoint(self.model), chat)
        completions = generate_ids(model, ids, Decoding(limit), ends=ends)
        source |= {"mode": "forced", "max_tokens": limit, "select": "think"}
        return from_spans(model, chat, ids, completions, place, source, self.seed, pattern=self.pattern)


def free(path: str) -> None:
    """Refuse to write over something, before any work is done."""
    if Path(path).exists():
        raise Refused(f"{path} exists", "--out NEW")


def described(d: "Direction") -> dict[str, Any]:
    """A direction without its vectors, for JSON."""
    return d.record | {"shape": list(d.vectors.shape)}


def show_weights(found: "Sequence[Direction]", path: str) -> None:
    """A line per direction: where it lives and what separates it from noise and from its neighbour."""
    first = found[0].source
    table(
        f"{first['base']} → {first['tuned']}" + (", norm gains folded in" if first["folded"] else ""),
        ["direction", "space", "sign", "d", "k", "σ₁", "above", "gap", "certificate"],
        [
            [
                d.id,
                d.space,
                d.sign,
                str(d.vectors.shape[1]),
                str(len(d.vectors)),
                number(d.sigma[0] if d.sigma else None),
                "–" if d.source["above_edge"] is None else str(d.source["above_edge"]),
                number(d.source["gap"], ".3f"),
                number(d.source["certificate"], ".0e"),
            ]
            for d in found
        ],
        left=3,
    )
    out("above: of the k vectors, those with σ over rounding and chance; the others are not above noise.")
    out("gap: (σ_k − σ_k+1)/σ₁; where it is small the subspace could end elsewhere. Readers are mapped by γ.")
    out(printable(f"stored in {path}"))


def show_activations(found: "Sequence[Direction]", path: str) -> None:
    """A line per layer: how long the difference is, whether it separates, and whether the estimates agree."""
    from deltalens.direction.direction import SAMPLES
    from deltalens.statistics import wilson

    rows = []
    for d in found:
        if d.kind != "difference":
            continue
        others = {other.kind: other for other in found if other.layer == d.layer and other.kind != SAMPLES}
        probe = others.get("probe")
        accuracy = "–"
        if probe is not None:
            right, n = probe.source["right"], probe.source["held_out"]
            low, high = wilson(right, n)
            accuracy = f"{right / n:.2f} [{low:.2f}, {high:.2f}]"
        writes = [f"mean_write.{kind}.tuned" for kind in ("o_proj", "down_proj")]
        agree = [_cosine(d, others.get(kind)) for kind in ("pca", "probe", *writes)]
        n = " + ".join(map(str, d.source["n"]))
        rows.append([str(d.layer), n, f"{d.source['relative_norm']:.3f}", accuracy, *agree])
    first = next(d for d in found if d.kind == "difference")
    table(
        f"{first.contrast}, at {first.site}",
        ["layer", "prompts", "‖v‖/‖h‖", "probe, held out", "pca", "probe", "o write", "down write"],
        rows,
        left=1,
    )
    out("v: difference of means; ‖h‖: mean norm of the second group. probe, held out: accuracy with its 95 % interval.")
    out("Last columns: cosine of v with the other estimates; o, down write: E[ΔW x] with the tuned side's x.")
    width = first.vectors.shape[1]
    out(f"Random vectors: 95 % of cosines within ±1.96/√{width} = ±{1.96 / width**0.5:.2f}.")
    out(printable(f"stored in {path}"))


def _cosine(a: "Direction", b: "Direction | None") -> str:
    if b is None:
        return "–"
    x, y = a.vectors[0].astype(float), b.vectors[0].astype(float)
    return f"{float(x @ y / (x @ x * (y @ y)) ** 0.5):+.2f}"
