"""Token ids: read from every kind of tokenizer.json, compared, and never a reason to fail."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from factories import write_pair, write_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from deltalens.checkpoint.pair import Pair
from deltalens.checkpoint.source import Checkpoint
from deltalens.checkpoint.vocabulary import Token, compare_vocabularies, differing, vocabulary
from deltalens.errors import BadInput

TOKENS = ["<pad>", "a", "Ġb", "σ", "", "\ud800"]


def bare(folder: Path) -> Checkpoint:
    """A checkpoint of which only the folder matters."""
    folder.mkdir(exist_ok=True)
    return Checkpoint(str(folder), folder, None, (), {}, {})


@pytest.mark.parametrize("kind", ["BPE", "WordPiece", "WordLevel", "Unigram"])
def test_every_kind_of_vocabulary(kind: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, TOKENS, {6: "<think>", 1: "<a>"}, kind)
    expected = dict(enumerate(TOKENS)) | {6: "<think>", 1: "<a>"}
    assert vocabulary(bare(tmp_path)) == expected


def test_no_tokenizer_is_none(tmp_path: Path) -> None:
    assert vocabulary(bare(tmp_path)) is None
    (tmp_path / "tokenizer.json").mkdir()
    assert vocabulary(bare(tmp_path)) is None


@given(st.dictionaries(st.integers(0, 20), st.text(max_size=3)), st.dictionaries(st.integers(0, 20), st.text()))
def test_differing_ids(base: dict[int, str], tuned: dict[int, str]) -> None:
    found = differing(base, tuned)
    assert [t.id for t in found] == sorted(i for i in range(21) if base.get(i) != tuned.get(i))
    assert all((t.base, t.tuned) == (base.get(t.id), tuned.get(t.id)) for t in found)
    assert differing(base, base) == ()


def test_a_pair_says_which_ids_changed(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path)
    assert Pair.open(str(base), str(tuned)).vocabulary is None
    write_tokenizer(base, ["a", "b", "c", "d"])
    assert Pair.open(str(base), str(tuned)).vocabulary is None
    write_tokenizer(tuned, ["a", "b", "c", "d"])
    same = Pair.open(str(base), str(tuned))
    assert (same.vocabulary, same.warnings) == ((), ())
    write_tokenizer(tuned, ["a", "B", "C"], {9: "<think>"})
    pair = Pair.open(str(base), str(tuned))
    assert pair.vocabulary == (
        Token(1, "b", "B"),
        Token(2, "c", "C"),
        Token(3, "d", None),
        Token(9, None, "<think>"),
    )
    (warning,) = pair.warnings
    assert warning.startswith("2 token ids mean different strings in the two sides")
    write_tokenizer(tuned, ["a", "b", "c", "d"], {9: "<think>"})
    grown = Pair.open(str(base), str(tuned))
    assert (grown.vocabulary, grown.warnings) == ((Token(9, None, "<think>"),), ())
    (tuned / "tokenizer.json").write_text("{")
    assert Pair.open(str(base), str(tuned), match="layers.*").warnings == ()  # no table is measured: not even read


def content(vocab: Any = None, added: Any = None) -> bytes:
    return json.dumps({"added_tokens": added, "model": {"vocab": {} if vocab is None else vocab}}).encode()


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "truncated": b'{"model": {"vocab": {"a"',
    "not UTF-8": b'{"model": "\xff\xfe\xfa"}',
    "nested": b"[" * 200_000,
    "array": b"[]",
    "null": b"null",
    "no model": b"{}",
    "model is text": b'{"model": "x"}',
    "vocabulary is text": content("x"),
    "id is text": content({"a": "0"}),
    "id is a truth value": content({"a": True}),
    "id is negative": content({"a": -1}),
    "id is a fraction": content({"a": 1.5}),
    "id of 5000 digits": b'{"model": {"vocab": {"a": ' + b"9" * 5000 + b"}}}",
    "unigram of text": content(["a"]),
    "unigram of nothing": content([[]]),
    "added without id": content({}, [{"content": "x"}]),
    "added without content": content({}, [{"id": 1}]),
    "added is text": content({}, ["x"]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_tokenizer_is_one_warning(kind: str, tmp_path: Path) -> None:
    good, bad = bare(tmp_path / "good"), bare(tmp_path / "bad")
    write_tokenizer(good.path, ["a"])
    (bad.path / "tokenizer.json").write_bytes(HOSTILE[kind])
    with pytest.raises(BadInput, match=r"tokenizer\.json"):
        vocabulary(bad)
    for sides in ((good, bad), (bad, good)):
        tokens, warnings = compare_vocabularies(*sides)
        assert tokens is None
        (warning,) = warnings
        assert warning.startswith("the token ids of the sides were not compared: tokenizer.json of ")
        assert "\n" not in warning
        assert len(warning) < 500


def test_an_unreadable_tokenizer_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = bare(write_tokenizer(tmp_path, ["a"]))

    def refuse(path: Path, *args: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert "permission denied" in compare_vocabularies(side, side)[1][0]


def test_extra_keys_and_no_added_tokens_are_fine(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content({"a": 3, "b": 1}))
    assert vocabulary(bare(tmp_path)) == {3: "a", 1: "b"}


def test_a_large_tokenizer_is_quick(tmp_path: Path) -> None:
    tokens = {f"token{i:06d}xxxx": i for i in range(150_000)}
    sides = [bare(tmp_path / side) for side in ("a", "b")]
    for side, word in zip(sides, ("<|im_start|>", "<think>"), strict=True):
        write_tokenizer(side.path, tokens, {150_000: word})
    start = time.perf_counter()
    found, _ = compare_vocabularies(*sides)
    assert found == (Token(150_000, "<|im_start|>", "<think>"),)
    assert time.perf_counter() - start < 2  # 0.2 s on an idle machine
