"""Selectors against a slow reference on plain lists: whatever the padding, the chunks and the turns."""

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import shared
from torch import Tensor, nn

from deltalens.checkpoint.chat import ThinkFormat
from deltalens.errors import BadInput, Refused
from deltalens.model.generate import generate_ids
from deltalens.model.select import (
    EVERYWHERE,
    GENERATION,
    LAST,
    PROMPT,
    Selector,
    Track,
    Where,
    batch,
    parse_selector,
)

OPEN, CLOSE = (5, 6), (7,)
SELECTORS = [
    LAST,
    PROMPT,
    GENERATION,
    EVERYWHERE,
    Selector((Where(positions=(-3, -1, 0, 2)),)),
    Selector((Where(tokens=(5, 7)),)),
    Selector((Where(inside=(OPEN, CLOSE)),)),
    Selector((Where(inside=(CLOSE, OPEN)),)),
    Selector((Where(after=OPEN),)),
    Selector((Where(before=OPEN),)),
    Selector((Where("generation", tokens=(5, 6), after=CLOSE), Where("prompt", positions=(-2,)))),
    Selector((Where(),), exclude=(Where(positions=(-1,)), Where(tokens=(4,)))),
]


class Model(nn.Module):
    """What a track sees of a model: the names of its arguments."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, past_key_values: object = None
    ) -> None: ...


class Cache:
    def __init__(self, seen: int) -> None:
        self.seen = seen

    def get_seq_length(self) -> int:
        return self.seen


def reference(ids: Sequence[int], turns: Sequence[int], selector: Selector) -> list[bool]:
    """Straight from the definitions; turns alternate between prompt and generation and cover all ids."""
    phases, offsets = [], []
    for turn, length in enumerate(turns):
        phases += ["prompt" if turn % 2 == 0 else "generation"] * length
        offsets += range(-length, 0) if turn % 2 == 0 else range(length)

    def ended(span: Sequence[int], upto: int) -> list[int]:
        return [e for e in range(upto) if tuple(ids[e - len(span) + 1 : e + 1]) == tuple(span) and e >= len(span) - 1]

    def holds(at: int, where: Where) -> bool:
        checks = [where.phase in ("all", phases[at])]
        if where.positions is not None:
            checks.append(offsets[at] in where.positions)
        if where.tokens is not None:
            checks.append(ids[at] in where.tokens)
        if where.inside is not None:
            opened, closed = ended(where.inside[0], at), ended(where.inside[1], at + 1)
            checks.append(bool(opened) and (not closed or closed[-1] < opened[-1]))
        if where.after is not None:
            checks.append(bool(ended(where.after, at)))
        if where.before is not None:
            checks.append(not ended(where.before, at + 1))
        return all(checks)

    return [
        any(holds(at, w) for w in selector.include) and not any(holds(at, w) for w in selector.exclude)
        for at in range(len(ids))
    ]


def padded(chunks: Sequence[Sequence[int]], padding: str) -> tuple[Tensor, Tensor]:
    width = max(map(len, chunks))
    ids, mask = torch.full((len(chunks), width), 5), torch.zeros(len(chunks), width, dtype=torch.long)
    for row, chunk in enumerate(chunks):
        at = slice(width - len(chunk), width) if padding == "left" else slice(0, len(chunk))
        ids[row, at], mask[row, at] = torch.tensor(chunk), 1
    return ids, mask


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[list[list[int]]], list[int]]:
    """Rows of [prompt, generation, prompt, …]; all rows generate alike, as in a batch, and prompts differ in length."""
    turns = draw(st.integers(1, 4))
    lengths = [draw(st.integers(1, 5)) for _ in range(turns)]
    token = st.integers(4, 8)
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        sizes = [n if turn % 2 else draw(st.integers(2, 6)) for turn, n in enumerate(lengths)]
        rows.append([draw(st.lists(token, min_size=n, max_size=n)) for n in sizes])
    return rows, lengths


@settings(max_examples=60, deadline=None)
@given(conversations(), st.sampled_from(["left", "right"]))
def test_cached_padded_chunks_choose_what_the_definitions_do(
    conversation: tuple[list[list[list[int]]], list[int]], padding: str
) -> None:
    rows, lengths = conversation
    track, model = Track(), Model()
    mask = torch.empty(len(rows), 0, dtype=torch.long)
    chosen: dict[Selector, list[list[bool]]] = {selector: [[] for _ in rows] for selector in SELECTORS}
    for turn in range(len(lengths)):
        steps = [[row[turn]] for row in rows] if turn % 2 == 0 else [[[t] for t in row[turn]] for row in rows]
        for step in zip(*steps, strict=True):
            ids, new = padded(step, padding)
            cache = Cache(mask.shape[1])
            mask = torch.cat([mask, new], dim=1)
            if new.shape[1] == 1 and turn % 2 == 0 and cache.seen:
                return  # a further prompt of one token is taken for generation, as documented
            track.observe(model, (ids,), {"attention_mask": mask, "past_key_values": cache})
            for selector, found in chosen.items():
                marks, count = track.chosen(selector)
                assert count == int(marks.sum())
                assert not bool(marks[new == 0].any()), "padding is never chosen"
                for row, (mark, real) in enumerate(zip(marks, new, strict=True)):
                    found[row] += mark[real.bool()].tolist()
    for selector, found in chosen.items():
        for row, marks in zip(rows, found, strict=True):
            flat = [token for turn in row for token in turn]
            assert marks == reference(flat, [len(turn) for turn in row], selector), selector


@settings(max_examples=60, deadline=None)
@given(conversations(), st.sampled_from(["left", "right"]))
def test_a_whole_text_chooses_what_its_chunks_do(
    conversation: tuple[list[list[list[int]]], list[int]], padding: str
) -> None:
    rows, _ = conversation
    flat = [[token for turn in row for token in turn] for row in rows]
    ids, mask = padded(flat, padding)
    turns = [[len(turn) for turn in row] for row in rows]
    for told in (turns, [row[:-1] for row in turns]):  # the last stretch need not be said
        track = Track()
        with batch(range(len(rows)), told):
            track.observe(Model(), (), {"input_ids": ids, "attention_mask": mask})
        for selector in SELECTORS:
            marks, _ = track.chosen(selector)
            for row in range(len(rows)):
                wanted = reference(flat[row], turns[row], selector)
                assert marks[row][mask[row].bool()].tolist() == wanted, selector


def test_lost_rows_take_their_history_along() -> None:
    track, model = Track(), Model()
    ids = torch.tensor([[5, 6, 4], [4, 4, 4], [4, 5, 6]])
    inside = Selector((Where("generation", inside=(OPEN, CLOSE)),))
    with batch([7, 3, 9]):
        track.observe(model, (ids, None), {})
    assert track.chosen(inside)[1] == 0
    with batch([7, 9]):
        track.observe(model, (torch.tensor([[4], [7]]),), {"past_key_values": Cache(3)})
    assert track.chosen(inside)[0].tolist() == [[True], [False]]
    assert track.rows.tolist() == [7, 9]
    with batch([9]):
        track.observe(model, (torch.tensor([[6]]),), {"past_key_values": Cache(4)})
    assert track.chosen(inside)[1] == 0
    assert track.offset.tolist() == [[-3, -2, -1, 0, 1]]


def test_passes_that_cannot_be_followed_are_refused() -> None:
    ids = torch.tensor([[4, 5], [6, 7]])
    with pytest.raises(Refused, match="holds 5 tokens, of which the hooks have seen 0"):
        Track().observe(Model(), (ids,), {"past_key_values": Cache(5)})
    track = Track()
    track.observe(Model(), (ids,), {})
    with pytest.raises(Refused, match="lost rows without saying which"):
        track.observe(Model(), (ids[:1, :1],), {"past_key_values": Cache(2)})
    with pytest.raises(Refused, match="did not begin with"), batch([0, 5]):
        track.observe(Model(), (ids[:, :1],), {"past_key_values": Cache(2)})
    with pytest.raises(Refused, match="does not say which tokens are padding"):
        Track().observe(Model(), (ids, torch.ones(2, 1, 2, 2)), {})
    with pytest.raises(BadInput, match="a row of 2 tokens is said to have turns of 3"), batch([0, 1], [(3,), (1,)]):
        Track().observe(Model(), (ids,), {})
    with pytest.raises(Refused, match="a part of the model ran by itself"):
        Track().chosen(LAST)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt_neox"])
def test_decoding_is_followed_through_real_caches(architecture: str) -> None:
    """Under generate_ids, whose rows end apart, the track's text is the prompt and its completion."""
    model, random_ = shared(architecture), random.Random(1)
    prompts = [[random_.randrange(2, 128) for _ in range(n)] for n in (5, 9, 2, 12)]
    track, seen = Track(), {}

    def note(module: nn.Module, args: object, output: object) -> None:
        for row, ids, real, offset in zip(track.rows.tolist(), track.ids, track.real, track.offset, strict=True):
            seen[row] = ids[real].tolist(), offset[real].tolist()

    handles = [model.register_forward_pre_hook(track.observe, with_kwargs=True), model.register_forward_hook(note)]
    try:
        completions = generate_ids(model, prompts, ends=range(1, 128, 8), batch_size=3)
    finally:
        for handle in handles:
            handle.remove()
    assert len({len(c) for c in completions}) > 1, "rows must end apart"
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        text = prompt + completion[:-1]  # the last token is never read
        assert seen[row] == (text, [*range(-len(prompt), 0), *range(len(completion) - 1)])


THINK = ThinkFormat("<think>", "</think>", OPEN, CLOSE, False, None, "")


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("last", LAST),
        ("prompt", PROMPT),
        ("generation", GENERATION),
        ("all", EVERYWHERE),
        ("-3", Selector((Where(positions=(-3,)),))),
        ("all,!last", Selector((Where(),), (Where(positions=(-1,)),))),
        ("generation+think, 0", Selector((Where("generation", inside=(OPEN, CLOSE)), Where(positions=(0,))))),
        ("answer", Selector((Where(after=CLOSE),))),
    ],
)
def test_text_form(text: str, selector: Selector) -> None:
    assert parse_selector(text, THINK) == selector


@pytest.mark.parametrize(
    ("text", "error"), [("lst", "lst selects"), ("!last", "includes no"), ("", "nothing"), ("think", "needs a think")]
)
def test_bad_text_form(text: str, error: str) -> None:
    with pytest.raises(BadInput, match=error):
        parse_selector(text)
