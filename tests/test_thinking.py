"""Reading completions: every way in which a block can be open, closed, empty, nested or missing."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from chats import QWQ, bpe, family, opened

from deltalens.checkpoint.chat import Chat, ThinkFormat
from deltalens.evaluate.thinking import Reading, read, think_tokens

THINK = ThinkFormat("<think>", "</think>", (3,), (4,), False, None, "<think></think>")
LONG = "12+5=17, so"


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("42", False, Reading(False, False, False, "", "42")),
        (f"<think>{LONG}</think> 42\n", False, Reading(True, True, True, LONG, "42")),
        (f"{LONG}</think>42", True, Reading(True, True, True, LONG, "42")),
        (f"Well. <think>{LONG}</think>42", False, Reading(True, True, True, LONG, "42")),
        # Empty and token blocks: eight non-space characters make a thought, seven do not.
        ("<think>\n\n</think>\n\n42", False, Reading(True, True, False, "\n\n", "42")),
        ("<think>1234 567\n</think>42", False, Reading(True, True, False, "1234 567\n", "42")),
        ("<think>1234 5678\n</think>42", False, Reading(True, True, True, "1234 5678\n", "42")),
        # Cut inside the block, also inside its closing tag: no answer, however much was thought.
        (f"<think>{LONG} 42", False, Reading(True, False, False, f"{LONG} 42", "")),
        (f"{LONG} 42", True, Reading(True, False, False, f"{LONG} 42", "")),
        (f"<think>{LONG}</thi", False, Reading(True, False, False, f"{LONG}</thi", "")),
        ("", True, Reading(True, False, False, "", "")),
        ("", False, Reading(False, False, False, "", "")),
        # Several blocks: one thought is enough, the answer stands behind the last, none while one is open.
        (f"<think>a</think>b<think>{LONG}</think>42", False, Reading(True, True, True, f"a\n{LONG}", "42")),
        (f"<think>{LONG}</think>41<think>no", False, Reading(True, False, True, f"{LONG}\nno", "")),
        # A tag repeated after the prompt's own, and nested ones: the first closing tag ends the block.
        (f"<think>{LONG}</think>42", True, Reading(True, True, True, f"<think>{LONG}", "42")),
        (f"<think>{LONG}<think>b</think>c</think>42", False, Reading(True, True, True, f"{LONG}<think>b", "42")),
        # A closing tag alone closes nothing; what stands behind it is still the answer.
        (f"{LONG}</think>42", False, Reading(False, False, False, "", "42")),
    ],
)
def test_a_completion_is_read(text: str, given: bool, expected: Reading) -> None:
    assert read(text, THINK, given) == expected


def test_without_a_format_all_is_answer() -> None:
    assert read(" <think>x</think>42 ", None, True) == Reading(False, False, False, "", "<think>x</think>42")


def test_other_tags_are_read_as_literally() -> None:
    think = replace(THINK, open="[THINK]", close="[/THINK]")
    assert read(f"[THINK]{LONG}[/THINK]42", think) == Reading(True, True, True, LONG, "42")
    assert read("T42", think) == Reading(False, False, False, "", "T42")


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("<think>a=6 b=6-5=1</think>1", False, 7),
        ("a=6 b=6-5=1</think>1", True, 7),
        ("a=6 b=6-5=1", True, 7),
        ("<think>a=6 b=6-5=1", False, 7),
        ("<think></think>1", False, 0),
        ("1", False, 0),
        ("", True, 0),
        ("<think>12</think>3<think>456", False, 5),
    ],
)
def test_thinking_is_counted_between_single_token_tags(text: str, given: bool, expected: int) -> None:
    chat = family()
    assert think_tokens(chat.encode(text), chat, given) == expected


def test_no_format_no_thinking_tokens() -> None:
    chat = replace(family(), think=None)
    assert think_tokens(chat.encode("<think>12</think>3"), chat) == 0


def spans(ids: list[int], chat: Chat, at: int, end: int) -> int:
    """The oracle, for ASCII: tokens that lie in [at, end), their places from the lengths of their own strings."""
    count = place = 0
    for i in ids:
        length = len(chat.decode([i]))
        count += at <= place and place + length <= end
        place += length
    return count


@pytest.mark.parametrize("merged", [False, True])
def test_tags_of_several_tokens_and_merged_ones(tmp_path: Path, merged: bool) -> None:
    """With `merged` the tokenizer has tokens such as `>` with a line break, that hold an end of a tag and more."""
    bpe(tmp_path, QWQ, added=(), across=merged)
    chat = opened(tmp_path)
    rng = random.Random(0)
    straddled = 0
    for _ in range(50):
        content = "".join(rng.choice(["\n", "so ", "12", ">", "think", "</", "=3"]) for _ in range(rng.randrange(9)))
        text = f"<think>{content}</think>\n42"
        ids = chat.encode(text)
        inside = spans(ids, chat, 7, 7 + len(content))
        straddled += sum(len(chat.decode([i])) for i in ids) > 0 and inside < len(chat.encode(content))
        assert think_tokens(ids, chat) == inside
        cut = ids[: len(ids) // 2]
        cut_text = chat.decode(cut)
        if cut_text.startswith("<think>") and "</think>" not in cut_text:
            assert think_tokens(cut, chat) == spans(cut, chat, 7, len(cut_text))
            assert read(cut_text, chat.think) == Reading(True, False, False, cut_text[7:], "")
    assert bool(straddled) == merged


def test_characters_of_several_tokens_are_counted_as_tokens(tmp_path: Path) -> None:
    bpe(tmp_path, QWQ, added=())
    chat = opened(tmp_path)
    for content in ("🙂🙂", "é", "x🙂", "🙂x"):
        ids = chat.encode(f"<think>{content}</think>🙂")
        assert think_tokens(ids, chat) == len(chat.encode(content))
