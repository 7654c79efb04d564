"""Which string stands behind a token id: read from tokenizer.json, and compared between the sides of a pair."""

import json
from dataclasses import dataclass
from typing import Any

from deltalens.checkpoint.header import CORRUPT, MAX_JSON_BYTES, json_type, one_line, unreadable
from deltalens.checkpoint.source import Checkpoint
from deltalens.errors import BadInput

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Token:
    """A token id that is not the same token on both sides.

    Args:
        id: The row of embed and lm_head.
        base: Its string in the base, None where the base has no such token.
        tuned: Its string in the tuned side.
    """

    id: int
    base: str | None
    tuned: str | None


def vocabulary(ckpt: Checkpoint) -> dict[int, str] | None:
    """The token string of every id, None where a checkpoint has no tokenizer.json.

    Raises:
        BadInput: The file is malformed or cannot be read.
    """
    text = _text(ckpt)
    return None if text is None else _parse(text, ckpt)


def differing(base: dict[int, str], tuned: dict[int, str]) -> tuple[Token, ...]:
    """The ids that do not stand for the same string on both sides, in order."""
    ids = sorted(base.keys() | tuned.keys())
    return tuple(Token(i, base.get(i), tuned.get(i)) for i in ids if base.get(i) != tuned.get(i))


def compare_vocabularies(base: Checkpoint, tuned: Checkpoint) -> tuple[tuple[Token, ...] | None, list[str]]:
    """The differing ids of two sides, None where they cannot be known, and what to warn of.

    No tokenizer is needed to compare weights: a damaged one is a warning.
    """
    try:
        first = _text(base)
        second = None if first is None else _text(tuned)
        if first is None or second is None:
            return None, []
        if first == second:  # the usual case, and ten times faster than parsing
            return (), []
        tokens = differing(_parse(first, base), _parse(second, tuned))
    except BadInput as problem:
        return None, [f"the token ids of the sides were not compared: {problem.error}"]
    changed = sum(token.base is not None and token.tuned is not None for token in tokens)
    if not changed:
        return tokens, []
    some = f"{changed} token ids mean" if changed > 1 else "1 token id means"
    return tokens, [
        f"{some} different strings in the two sides (plan lists them): such rows of embed and lm_head belong to "
        "different tokens"
    ]


def _text(ckpt: Checkpoint) -> bytes | None:
    path = ckpt.file(TOKENIZER)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
    except OSError as problem:
        raise unreadable(path, problem) from None
    if len(text) > MAX_JSON_BYTES:
        raise BadInput(f"{path} is larger than {MAX_JSON_BYTES // 10**6} MB")
    return text


def _parse(text: bytes, ckpt: Checkpoint) -> dict[int, str]:
    where = f"{TOKENIZER} of {ckpt.source}"
    try:
        content = json.loads(text)
    except RecursionError:
        raise BadInput(f"{where} is nested too deeply", CORRUPT) from None
    except ValueError as problem:  # also UnicodeDecodeError, and integers of thousands of digits
        raise BadInput(f"{where} is no valid JSON ({one_line(problem)})", CORRUPT) from None
    if not isinstance(content, dict):
        raise BadInput(f"{where} is a JSON {json_type(content)}, not an object", CORRUPT)
    model, added = content.get("model"), content.get("added_tokens")
    found = _model(model.get("vocab") if isinstance(model, dict) else None, where)
    for entry in added if isinstance(added, list) else []:
        if not isinstance(entry, dict) or not _id(entry.get("id")) or not isinstance(entry.get("content"), str):
            raise BadInput(f"{where} has an added token without id and content", CORRUPT)
        found[entry["id"]] = entry["content"]
    return found


def _model(vocab: Any, where: str) -> dict[int, str]:
    """The strings by id of BPE, WordPiece and WordLevel (token → id) or Unigram ([token, score], the id its place)."""
    if isinstance(vocab, dict):
        if not all(map(_id, vocab.values())):
            raise BadInput(f"{where} has a token whose id is no whole number", CORRUPT)
        return {i: token for token, i in vocab.items()}
    if isinstance(vocab, list):
        if not all(isinstance(entry, list) and entry and isinstance(entry[0], str) for entry in vocab):
            raise BadInput(f"{where} has a vocabulary entry that is no [token, score]", CORRUPT)
        return {i: entry[0] for i, entry in enumerate(vocab)}
    raise BadInput(f"{where} has no vocabulary", CORRUPT)


def _id(value: Any) -> bool:
    return type(value) is int and value >= 0
