"""Whether a base is the one that the tuned side was trained from, as far as names can tell."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deltalens.checkpoint.header import read_json
from deltalens.checkpoint.source import Checkpoint, family_root, hub_id, repository
from deltalens.errors import BadInput

_DEEPSEEK = "deepseek-ai/DeepSeek-R1-Distill-"
KNOWN: dict[str, tuple[str, ...]] = {
    f"{_DEEPSEEK}Qwen-1.5B": ("Qwen/Qwen2.5-Math-1.5B",),
    f"{_DEEPSEEK}Qwen-7B": ("Qwen/Qwen2.5-Math-7B",),
    f"{_DEEPSEEK}Qwen-14B": ("Qwen/Qwen2.5-14B",),
    f"{_DEEPSEEK}Qwen-32B": ("Qwen/Qwen2.5-32B",),
    f"{_DEEPSEEK}Llama-8B": ("meta-llama/Llama-3.1-8B",),
    f"{_DEEPSEEK}Llama-70B": ("meta-llama/Llama-3.3-70B-Instruct",),
    "Qwen/QwQ-32B": ("Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct"),
}
"""Reasoning models and what they were trained from; more than one candidate means that it is not settled."""

_RENAMED = {"meta-llama/meta-llama-3.1-8b": "meta-llama/Llama-3.1-8B"}  # the hub redirects these
_OWNERS = {name.partition("/")[0].casefold() for names in KNOWN.items() for name in (names[0], *names[1])}
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_CACHED = re.compile(r"(?:^|[/\\])models--([\w.-]+?)[/\\]snapshots(?:[/\\]|$)", re.ASCII)
_CARD_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Parentage:
    """What is known about the base of the tuned side.

    Args:
        verdict: right or wrong by the table of known models, the family's recipe or (wrong) the model card;
            unsettled where several bases are possible and this is one; declared where only the tuned side itself
            names its base, and nothing contradicts it; else unknown.
        expected: The bases that are known or declared.
        evidence: One sentence.
    """

    verdict: Literal["right", "wrong", "unsettled", "unknown", "declared"]
    expected: tuple[str, ...]
    evidence: str


def parentage(base: Checkpoint, tuned: Checkpoint) -> Parentage:
    """Judge whether `tuned` was trained from `base`; neither's weights are read.

    A side is known by its place (a family name, a hub id, a folder of the hub's cache) or, less surely, by the
    `_name_or_path` in its config, which may also name its parent.
    """
    placed, recorded, origin = identified(base), _recorded(base), _origin(tuned)
    parent = placed or recorded
    child = identified(tuned)
    if child is None and not _same(origin, parent) and known_parents(_recorded(tuned)):
        child = _recorded(tuned)
    if child is not None and _same(child, parent):
        return Parentage("unknown", (), f"both sides are {child}")
    if parent is not None and any(_same(child, name) for name in known_parents(parent)):
        return Parentage("wrong", (), f"{_short(parent)} was trained from {child}: are the sides swapped?")
    if child is not None and (expected := known_parents(child)):
        return _judge(child, expected, parent)
    if _same(origin, parent) and parent is not None:
        return Parentage("declared", (parent,), f"the config of the tuned side names {parent}")
    if declared := card_bases(tuned):
        names = " and ".join(declared)
        if any(_same(parent, name) for name in declared):
            return Parentage("declared", declared, f"the card of the tuned side names {names}")
        if any(_same(placed, base) for name in declared for base in known_parents(name)):
            said = f"the card of the tuned side names {names}, which was trained from {placed}"
            return Parentage("declared", declared, said)  # a re-upload's card names the original as its base
        if placed is not None:  # a recorded name is too weak to contradict a card
            return Parentage("wrong", declared, f"the card of the tuned side names {names}, not {placed}")
        return Parentage("declared", declared, f"the card names {names}; the base given is not recognised")
    return Parentage("unknown", (), "neither a known model nor a card names the parent")


def identified(ckpt: Checkpoint) -> str | None:
    """The hub id or `family:NAME` of a checkpoint by where it comes from."""
    path = _resolved(ckpt.path)
    for folder in (path, path.parent):
        if folder.parent == _resolved(family_root()):
            return f"family:{folder.name}"
    if hub_id(ckpt.source):
        return _canonical(repository(ckpt.source))
    return _cached(str(ckpt.path.absolute())) or _cached(str(path))


def known_parents(name: str | None) -> tuple[str, ...]:
    """The bases of a known model or family member, none where it is not known or was trained from scratch."""
    if name is None:
        return ()
    if name.startswith("family:"):
        return _family_parents(name.removeprefix("family:"))
    return next((bases for known, bases in KNOWN.items() if _same(known, name)), ())


def card_bases(ckpt: Checkpoint) -> tuple[str, ...]:
    """The hub ids under `base_model` in the front matter of a checkpoint's README.md; other values do not count."""
    try:
        path = ckpt.file("README.md")
        if path is None:
            return ()
        with path.open("rb") as file:
            text = file.read(_CARD_BYTES).decode("utf-8-sig", errors="replace")
    except (BadInput, OSError):
        return ()
    names = (_canonical(name) for name in front_matter(text, "base_model") if _ID.fullmatch(name))
    return tuple(dict.fromkeys(names))


def front_matter(text: str, key: str) -> list[str]:
    """The value of one key of a card's YAML front matter: a scalar, `[a, b]`, or lines of `- a`."""
    lines = re.split(r"\r?\n", text)
    if lines[0].rstrip() != "---" or "---" not in (ends := [line.rstrip() for line in lines[1:]]):
        return []
    body = lines[1 : 1 + ends.index("---")]
    start = next((i for i, line in enumerate(body) if re.match(rf"{re.escape(key)}\s*:(\s|$)", line)), None)
    if start is None:
        return []
    value = _plain(body[start].partition(":")[2])
    if value.startswith("["):
        return [_plain(part) for part in value.strip("[]").split(",") if _plain(part)]
    if value:
        return [value]
    found: list[str] = []
    for line in body[start + 1 :]:
        item = line.strip()
        if item.startswith("- "):
            found.append(_plain(item[2:]))
        elif item and not item.startswith("#"):
            break
    return found


def _judge(child: str, expected: tuple[str, ...], parent: str | None) -> Parentage:
    names = " or ".join(expected)
    if parent is None:
        return Parentage(
            "unknown", expected, f"{_short(child)} was trained from {names}; the base given is not recognised"
        )
    if not any(_same(parent, name) for name in expected):
        if any(_same(_short(parent), _short(name)) for name in expected):
            said = f"{_short(child)} was trained from {names}; {parent} may be a copy of it"
            return Parentage("unknown", expected, said)
        return Parentage("wrong", expected, f"{_short(child)} was trained from {names}, not {parent}")
    if len(expected) > 1:
        both = " and ".join(expected)
        return Parentage("unsettled", expected, f"the base of {_short(child)} is to be tested against {both}")
    return Parentage("right", expected, f"{_short(child)} was trained from {names}")


def _recorded(ckpt: Checkpoint) -> str | None:
    """The name in a config, where its owner is one that we know: elsewhere it may be a folder of somebody's disk."""
    name = _origin(ckpt)
    return name if name is not None and name.partition("/")[0].casefold() in _OWNERS else None


def _origin(ckpt: Checkpoint) -> str | None:
    """What `_name_or_path` says: the checkpoint's own id, or the one that its training started from."""
    said = ckpt.config.get("_name_or_path")
    if not isinstance(said, str):
        return None
    return _canonical(said) if _ID.fullmatch(said) else _cached(said)


def _cached(path: str) -> str | None:
    """The hub id of a path in the hub's cache, `…/models--owner--name/snapshots/…`."""
    found = _CACHED.search(path)
    if found is None or not 1 <= len(parts := found[1].split("--")) <= 2:
        return None
    return _canonical("/".join(parts))


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return path


def _family_parents(name: str) -> tuple[str, ...]:
    try:
        recipe = read_json(family_root() / "recipe.json")
        parents = {stage["name"]: stage["parent"] for stage in recipe["stages"]}
    except (BadInput, KeyError, TypeError):
        return ()
    parent = parents.get(name)
    return (f"family:{parent}",) if isinstance(parent, str) else ()


def _canonical(name: str) -> str:
    return _RENAMED.get(name.casefold(), name)


def _same(a: str | None, b: str | None) -> bool:
    """The hub takes ids in any case."""
    return a is not None and b is not None and a.casefold() == b.casefold()


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _plain(value: str) -> str:
    """A YAML scalar without its comment and quotes."""
    value = re.split(r"(?:^|\s)#", value.strip(), maxsplit=1)[0].strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
