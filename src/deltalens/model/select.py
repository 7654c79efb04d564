"""Which tokens an intervention or a measurement touches, as data; right under padding, cached decoding and turns.

Indices into one forward pass mean something else at every step of cached decoding and beside every padding. So a
`Track` follows what each row has read, in the order of its real tokens, and a selector is asked about that. Every
condition looks at a token and what stands before it, never at what follows in the text: a token is chosen when it is
decoded exactly if it is chosen when the whole text is read again.
"""

import contextlib
import functools
import inspect
import re
from collections.abc import Generator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from deltalens.checkpoint.chat import ThinkFormat
from deltalens.errors import BadInput, Refused

Turns = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Where:
    """Tokens of which every stated condition holds.

    Args:
        phase: Read as part of a prompt, or generated.
        positions: Offsets from the end of the prompt: -1 is its last token, 0 the first generated one. Each prompt of
            a conversation has an end of its own.
        tokens: Token ids.
        inside: Ids of an opening and of a closing tag: tokens after a whole opening tag and before the closing tag is
            whole.
        after: Ids of a span: tokens after its first occurrence.
        before: Ids of a span: tokens before its first occurrence is whole; all of them if there is none.
    """

    phase: Literal["prompt", "generation", "all"] = "all"
    positions: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None
    inside: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    after: tuple[int, ...] | None = None
    before: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Selector:
    """Tokens that any of `include` names and none of `exclude`."""

    include: tuple[Where, ...]
    exclude: tuple[Where, ...] = ()


LAST = Selector((Where(positions=(-1,)),))
PROMPT = Selector((Where("prompt"),))
GENERATION = Selector((Where("generation"),))
EVERYWHERE = Selector((Where(),))


def parse_selector(text: str, think: ThinkFormat | None = None) -> Selector:
    """A selector from its text form, such as `last`, `prompt,!-1` or `generation+think`.

    Terms joined by `,` are united and those with `!` excluded; a term joins conditions by `+`. Conditions are `last`,
    `prompt`, `generation`, `all`, `think` (inside the think block), `answer` (after its first closing tag), and
    offsets from the prompt's end such as `-3`.

    Raises:
        BadInput: An unknown condition, nothing included, or a think block where the model has no think format.
    """
    terms = [term.strip() for term in text.split(",")]
    include = tuple(_where(term, think) for term in terms if not term.startswith("!"))
    exclude = tuple(_where(term[1:], think) for term in terms if term.startswith("!"))
    if not include:
        raise BadInput(f"the selector {text} includes no token", "a term without !, such as all")
    return Selector(include, exclude)


def _where(term: str, think: ThinkFormat | None) -> Where:
    found: dict[str, Any] = {}
    for word in term.split("+"):
        if word in ("prompt", "generation", "all"):
            found["phase"] = word
        elif word == "last" or re.fullmatch(r"-?\d+", word):
            found["positions"] = (-1 if word == "last" else int(word),)
        elif word in ("think", "answer"):
            if think is None:
                raise BadInput(f"{word} needs a think format, and this model has none", "prompt, generation or all")
            found |= {"inside": (think.open_ids, think.close_ids)} if word == "think" else {"after": think.close_ids}
        else:
            raise BadInput(
                f"{word or 'nothing'} selects no tokens", "last, prompt, generation, all, think, answer or an offset"
            )
    return Where(**found)


@dataclass(frozen=True, slots=True)
class _Batch:
    rows: tuple[int, ...]
    turns: Turns | None


_BATCH: ContextVar[_Batch | None] = ContextVar("batch", default=None)


@contextlib.contextmanager
def batch(rows: Sequence[int], turns: Turns | None = None) -> Generator[None, None, None]:
    """Says what a forward pass within the block holds, to whatever hooks the model.

    Args:
        rows: Which of the caller's rows stands in each row of the batch; a continuing batch may have lost some.
        turns: For a pass that begins texts: of every row, the lengths of its prompt, of what was generated, of the
            next prompt, and so on, in tokens. What lies beyond them is of the next kind: `(len(prompt),)` is a prompt
            and then its completion. Without it a first pass is all prompt.
    """
    token = _BATCH.set(_Batch(tuple(rows), turns))
    try:
        yield
    finally:
        _BATCH.reset(token)


@dataclass(slots=True)
class Track:
    """What every row of a batch has read so far, kept up by `observe` as a forward pre-hook of the whole model.

    A pass over an empty cache begins new texts. A pass of one token over a filled cache generates; one of several
    tokens reads a further prompt, whose first token may be the last generated one (generation never reads that one).
    Beam search, which exchanges rows without a word, is not followed.

    Attributes:
        ids: Token ids, -1 where padded or unknown.
        real: Not padded.
        offset: Distance from the end of the prompt: negative within it, from 0 on for generated tokens.
        rows: The caller's row of every row.
        new: Columns of the current pass.
    """

    ids: Int[Tensor, "rows seen"] = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    real: Bool[Tensor, "rows seen"] = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.bool))
    offset: Int[Tensor, "rows seen"] = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    rows: Int[Tensor, "rows"] = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    new: int = 0
    _chosen: dict[tuple[Selector, int], tuple[Tensor, int]] = field(default_factory=dict)

    @property
    def position(self) -> Int[Tensor, "rows seen"]:
        """Index of every token among its row's real tokens."""
        return self.real.long().cumsum(-1) - 1

    def observe(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes in the tokens of the pass that is about to run."""
        given = dict(zip(_parameters(type(model)), args, strict=False)) | kwargs
        ids = given.get("input_ids")
        if ids is None:
            ids = given["inputs_embeds"][..., 0].long().fill_(-1)
        cache = next((given[name] for name in ("cache", "past_key_values") if given.get(name) is not None), None)
        seen = 0 if cache is None else int(cache.get_seq_length())
        real = _real(given.get("attention_mask"), ids, seen, self.real)
        told = _BATCH.get()
        rows = tuple(range(len(ids))) if told is None else told.rows
        self.new = ids.shape[1]
        self._chosen = {}
        if seen == 0:
            self.rows, self.real = torch.tensor(rows, device=ids.device), real
            self.ids = ids.masked_fill(~real, -1)
            self.offset = _offsets(real, None if told is None else told.turns)
            return
        self._keep(rows)
        order = real.long().cumsum(-1)
        if self.new == 1:
            # The last real token's offset; behind it, or first behind a prompt.
            last = self.offset.gather(1, self.real.long().cumsum(-1).argmax(-1, keepdim=True))
            offset = last.clamp(min=-1) + 1
        else:
            offset = order - 1 - order[:, -1:]
        self.ids = torch.cat([self.ids, ids.masked_fill(~real, -1)], dim=1)
        self.real = torch.cat([self.real, real], dim=1)
        self.offset = torch.cat([self.offset, offset], dim=1)

    def _keep(self, rows: tuple[int, ...]) -> None:
        """Leaves out the rows that the batch has lost."""
        before = self.rows.tolist()
        if not set(rows) <= set(before):
            raise Refused("a batch goes on with rows that it did not begin with")
        if list(rows) != before:
            if _BATCH.get() is None:
                raise Refused("a batch has lost rows without saying which", "wrap its passes in model.select.batch")
            kept = torch.tensor([before.index(row) for row in rows], device=self.real.device)
            self.ids, self.real, self.offset, self.rows = (
                x[kept] for x in (self.ids, self.real, self.offset, self.rows)
            )

    def chosen(self, selector: Selector, last: int | None = None) -> tuple[Bool[Tensor, "rows new"], int]:
        """Which tokens of the current pass a selector names, and how many; worked out once per pass.

        Args:
            selector: Names tokens.
            last: Only these many of the last columns, where an activation (the logits) has no others.
        """
        if not self.new:
            raise Refused("a part of the model ran by itself", "call the whole model, not a module of it")
        columns = self.new if last is None else last
        if (selector, columns) not in self._chosen:
            mask = self._any(selector.include) & ~self._any(selector.exclude) & self.real
            mask = mask[:, -columns:]
            self._chosen[selector, columns] = mask, int(mask.sum())
        return self._chosen[selector, columns]

    def _any(self, conditions: tuple[Where, ...]) -> Bool[Tensor, "rows seen"]:
        found = torch.zeros_like(self.real)
        for where in conditions:
            found |= self._all(where)
        return found

    def _all(self, where: Where) -> Bool[Tensor, "rows seen"]:
        found = torch.ones_like(self.real)
        if where.phase != "all":
            found &= (self.offset < 0) == (where.phase == "prompt")
        for values, wanted in ((self.offset, where.positions), (self.ids, where.tokens)):
            if wanted is not None:
                found &= torch.isin(values, torch.tensor(wanted, device=values.device, dtype=values.dtype))
        if where.inside is not None:
            opened, closed = (_latest(self._ends(tag)) for tag in where.inside)
            found &= _before(opened, -1) > closed
        if where.after is not None:
            found &= _before(_latest(self._ends(where.after)), -1) >= 0
        if where.before is not None:
            found &= _latest(self._ends(where.before)) < 0
        return found

    def _ends(self, span: tuple[int, ...]) -> Bool[Tensor, "rows seen"]:
        """Where an occurrence of a span ends, padding within it skipped."""
        order = (~self.real).long().argsort(dim=-1, stable=True)  # real tokens first, in their order
        ids = self.ids.gather(-1, order)
        found = torch.ones_like(self.real)
        for back, token in enumerate(reversed(span)):
            at = ids
            for _ in range(back):
                at = _before(at, -1)
            found &= at == token
        return torch.zeros_like(found).scatter(-1, order, found)


def _before(x: Int[Tensor, "rows seen"], first: int) -> Int[Tensor, "rows seen"]:
    """Every column holds what the one before it held."""
    return torch.cat([torch.full_like(x[:, :1], first), x[:, :-1]], dim=1)


def _latest(found: Bool[Tensor, "rows seen"]) -> Int[Tensor, "rows seen"]:
    """The last column up to each where something was found, -1 for none."""
    columns = torch.arange(found.shape[1], device=found.device).expand(found.shape)
    return columns.masked_fill(~found, -1).cummax(dim=-1).values


def _real(
    mask: Any, ids: Int[Tensor, "rows new"], seen: int, before: Bool[Tensor, "kept seen"]
) -> Bool[Tensor, "rows new"]:
    """Which of the new tokens are no padding; refuses a pass that does not follow from those before it."""
    if seen and before.shape[1] != seen:
        raise Refused(
            f"the cache holds {seen} tokens, of which the hooks have seen {before.shape[1]}",
            "hook the model before the prompt is read, one batch at a time",
        )
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape != (len(ids), seen + ids.shape[1]):
        raise Refused(
            "the attention mask does not say which tokens are padding", f"a mask of {seen + ids.shape[1]} columns"
        )
    return mask[:, seen:].bool()


def _offsets(real: Bool[Tensor, "rows new"], turns: Turns | None) -> Int[Tensor, "rows new"]:
    """The offset of every token of a first pass; padding gets any value."""
    order = real.long().cumsum(-1)
    if turns is None:
        return order - 1 - order[:, -1:]
    offset = torch.zeros_like(order)
    for row, (length, lengths) in enumerate(zip(order[:, -1].tolist(), turns, strict=True)):
        if sum(lengths) > length:
            raise BadInput(f"a row of {length} tokens is said to have turns of {', '.join(map(str, lengths))}")
        stretches = [*lengths, length - sum(lengths)]
        values = [at - n * (turn % 2 == 0) for turn, n in enumerate(stretches) for at in range(n)]
        offset[row, real[row]] = torch.tensor(values, dtype=offset.dtype, device=offset.device)
    return offset


@functools.cache
def _parameters(kind: type[nn.Module]) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]
