"""Parents: known models, the family, declared bases; recognised by place and by what config and card say."""

from pathlib import Path
from typing import Any

import pytest
from factories import tiny_config, tiny_tensors, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from deltalens.checkpoint import source as source_module
from deltalens.checkpoint.pair import Pair
from deltalens.checkpoint.parentage import KNOWN, card_bases, front_matter, identified, parentage
from deltalens.checkpoint.source import Checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHILD = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
PARENT = "Qwen/Qwen2.5-Math-7B"


def hub(name: str, **config: Any) -> Checkpoint:
    """A checkpoint as it is opened from the hub."""
    return Checkpoint(name, Path("/nowhere"), COMMIT, (), {}, config)


def local(folder: Path, card: str | bytes | None = None, **config: Any) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    if card is not None:
        (folder / "README.md").write_bytes(card.encode() if isinstance(card, str) else card)
    return Checkpoint(str(folder), folder, None, (), {}, config)


def cached(folder: Path, name: str, **config: Any) -> Checkpoint:
    return local(folder / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT, **config)


@pytest.mark.parametrize("child", [name for name, bases in KNOWN.items() if len(bases) == 1])
def test_known_models(child: str) -> None:
    (parent,) = KNOWN[child]
    found = parentage(hub(f"{parent}@main"), hub(child))
    short = child.partition("/")[2]
    assert (found.verdict, found.expected) == ("right", (parent,))
    assert found.evidence == f"{short} was trained from {parent}"
    assert parentage(hub(parent.upper()), hub(child.lower())).verdict == "right"
    wrong = parentage(hub("Qwen/Qwen2.5-7B-Instruct"), hub(child))
    assert (wrong.verdict, wrong.expected) == ("wrong", (parent,))
    assert wrong.evidence == f"{short} was trained from {parent}, not Qwen/Qwen2.5-7B-Instruct"
    swapped = parentage(hub(child), hub(parent))
    assert (swapped.verdict, swapped.evidence) == (
        "wrong",
        f"{short} was trained from {parent}: are the sides swapped?",
    )


def test_a_renamed_repository_is_the_same() -> None:
    child = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert parentage(hub("meta-llama/Meta-Llama-3.1-8B"), hub(child)).verdict == "right"
    assert parentage(hub("meta-llama/Llama-3.1-8B-Instruct"), hub(child)).verdict == "wrong"


@pytest.mark.parametrize("parent", ["Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct"])
def test_an_unsettled_base(parent: str) -> None:
    found = parentage(hub(parent), hub("Qwen/QwQ-32B"))
    assert (found.verdict, len(found.expected)) == ("unsettled", 2)
    assert "to be tested against Qwen/Qwen2.5-32B and Qwen/Qwen2.5-32B-Instruct" in found.evidence
    assert parentage(hub("Qwen/Qwen2.5-14B"), hub("Qwen/QwQ-32B")).verdict == "wrong"


def test_a_folder_of_the_cache_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert identified(cached(tmp_path, PARENT)) == PARENT
    assert identified(local(tmp_path / "models--gpt2" / "snapshots" / COMMIT)) == "gpt2"
    assert identified(local(tmp_path / "models--a--b--c" / "snapshots" / COMMIT)) is None
    assert identified(local(tmp_path / "models--a--b" / "blobs")) is None
    link = tmp_path / "link"
    link.symlink_to(cached(tmp_path, CHILD).path)
    assert identified(local(link)) == CHILD
    assert parentage(cached(tmp_path, PARENT), local(link)).verdict == "right"
    assert parentage(cached(tmp_path, "Qwen/Qwen2.5-7B"), local(link)).verdict == "wrong"
    monkeypatch.chdir(cached(tmp_path, PARENT).path)
    assert identified(Checkpoint(".", Path(), None, (), {}, {})) == PARENT


def test_a_config_names_its_model(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    named = local(b, _name_or_path=CHILD)
    assert parentage(hub(PARENT), named).verdict == "right"
    assert parentage(local(a, _name_or_path=PARENT), named).verdict == "right"
    wrong = parentage(local(a, _name_or_path="Qwen/Qwen2.5-7B-Instruct"), named)
    assert (wrong.verdict, wrong.expected) == ("wrong", (PARENT,))
    inside = f"/home/me/.cache/models--Qwen--Qwen2.5-Math-7B/snapshots/{COMMIT}"
    assert parentage(local(a, _name_or_path=inside), named).verdict == "right"
    found = parentage(local(a, _name_or_path="runs/step-100"), named)  # a folder of somebody's disk
    assert (found.verdict, found.expected) == ("unknown", (PARENT,))
    assert "the base given is not recognised" in found.evidence


def test_a_config_may_name_the_parent(tmp_path: Path) -> None:
    found = parentage(hub("me/start"), local(tmp_path, _name_or_path="me/start"))
    assert (found.verdict, found.expected) == ("declared", ("me/start",))
    # What was trained further from a known model is no copy of it.
    further = parentage(hub(CHILD), local(tmp_path, _name_or_path=CHILD))
    assert (further.verdict, further.expected) == ("declared", (CHILD,))


@pytest.mark.parametrize("value", [None, 3, ["x"], "", "a/b/c", "\x1b[2J/x", "x" * 10**5, "../..", f"{CHILD}\n"])
def test_a_config_that_names_nothing(value: Any, tmp_path: Path) -> None:
    found = parentage(hub("me/start"), local(tmp_path, _name_or_path=value))
    assert (found.verdict, found.expected) == ("unknown", ())


CARDS: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "scalar": ("---\nlicense: mit\nbase_model: a/b\ntags:\n- x/y\n---\n# Title", ("a/b",)),
    "quoted": ("---\nbase_model: 'a/b'  # the parent\n---\n", ("a/b",)),
    "double quoted": ('---\r\nbase_model: "a/b"\r\n---\r\n', ("a/b",)),
    "list": ("---\nbase_model:\n- a/b\n# and\n\n- 'c/d'\ntags:\n- x/y\n---\n", ("a/b", "c/d")),
    "indented list": ("---\nbase_model:\n  - a/b\n  - c/d\n---\n", ("a/b", "c/d")),
    "inline list": ('---\nbase_model: [a/b, "c/d", a/b]\n---\n', ("a/b", "c/d")),
    "byte order mark": (b"\xef\xbb\xbf---\nbase_model: a/b\n---\n", ("a/b",)),
    "not UTF-8": (b"---\nauthor: \xff\xfe\nbase_model: a/b\n---\n\xff", ("a/b",)),
    "no end": ("---\nbase_model: a/b\n", ()),
    "not at the start": ("# Title\n---\nbase_model: a/b\n---\n", ()),
    "in the body": ("---\nlicense: mit\n---\nbase_model: a/b\n", ()),
    "another key": ("---\nbase_model_relation: a/b\nmy_base_model: a/b\n  base_model: a/b\n---\n", ()),
    "empty": ("---\nbase_model:\n---\n", ()),
    "empty list": ("---\nbase_model: []\n---\n", ()),
    "a mapping": ("---\nbase_model:\n  name: a/b\n---\n", ()),
    "a folder": ("---\nbase_model: /home/me/model\n---\n", ()),
    "one word": ("---\nbase_model: model\n---\n", ()),
    "control characters": ("---\nbase_model: a/\x1b[31mb\n---\n", ()),
    "far down": ("---\n" + "x: y\n" * 10**5 + "base_model: a/b\n---\n", ()),
    "no text": (b"", ()),
    "zero bytes": (b"\0" * 1000, ()),
}


@pytest.mark.parametrize("kind", CARDS)
def test_cards(kind: str, tmp_path: Path) -> None:
    card, expected = CARDS[kind]
    assert card_bases(local(tmp_path, card)) == expected


@given(st.text(alphabet="-[]{}:,'\"#ab/ \n\t\r\x00\x85\u2028", max_size=80))
def test_any_card_is_read(text: str) -> None:
    for name in front_matter(f"---\nbase_model:{text}\n---\n", "base_model") + front_matter(text, "base_model"):
        assert isinstance(name, str)


def test_no_card_and_a_folder_for_a_card(tmp_path: Path) -> None:
    assert card_bases(local(tmp_path)) == ()
    (tmp_path / "README.md").mkdir()
    assert card_bases(local(tmp_path)) == ()


def test_declared_by_a_card(tmp_path: Path) -> None:
    tuned = local(tmp_path / "t", "---\nbase_model: me/start\n---\n")
    agreed = parentage(hub("Me/Start"), tuned)
    assert (agreed.verdict, agreed.evidence) == ("declared", "the card of the tuned side names me/start")
    unseen = parentage(local(tmp_path / "b"), tuned)
    assert (unseen.verdict, unseen.expected) == ("declared", ("me/start",))
    assert "not recognised" in unseen.evidence
    wrong = parentage(hub("me/other"), tuned)
    assert (wrong.verdict, wrong.expected) == ("wrong", ("me/start",))
    assert wrong.evidence == "the card of the tuned side names me/start, not me/other"
    weak = parentage(local(tmp_path / "b", _name_or_path=PARENT), tuned)  # it may be what that base started from
    assert weak.verdict == "declared"


def test_copies_under_other_owners(tmp_path: Path) -> None:
    copy = local(tmp_path, f"---\nbase_model: {CHILD}\n---\n")
    assert parentage(hub(PARENT), copy).verdict == "declared"
    found = parentage(hub("copies/Qwen2.5-Math-7B"), hub(CHILD))
    assert (found.verdict, found.expected) == ("unknown", (PARENT,))
    assert "may be a copy" in found.evidence


def test_nothing_known(tmp_path: Path) -> None:
    assert parentage(local(tmp_path / "a"), local(tmp_path / "b")).verdict == "unknown"
    assert parentage(hub(CHILD), hub(CHILD)).evidence == f"both sides are {CHILD}"
    known = parentage(local(tmp_path / "a"), hub(CHILD))
    assert (known.verdict, known.expected) == ("unknown", (PARENT,))


def test_the_family_knows_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def verdict(base: str, tuned: str) -> str:
        return Pair.open(base, tuned).parentage.verdict

    assert verdict("family:base", "family:instruct") == "right"
    assert verdict("family:instruct", "family:reasoning") == "right"
    assert verdict("family:base", "family:reasoning") == "wrong"
    swapped = Pair.open("family:reasoning", "family:instruct")
    assert swapped.warnings[0].startswith("wrong base: family:reasoning was trained from family:instruct")
    assert verdict("family:base", "family:base") == "unknown"
    folder = str(source_module.family_root() / "instruct")
    assert verdict("family:base", folder) == "right"
    assert verdict("family:base", f"{folder}/model.safetensors") == "right"
    monkeypatch.setattr(source_module, "_FAMILY", tmp_path)
    for name in ("base", "instruct"):
        write_checkpoint(tmp_path / name, tiny_tensors(), tiny_config())
    for recipe in ("{", "[]", '{"stages": [3]}', '{"stages": [{"name": "instruct", "parent": 3}]}', "{}"):
        (tmp_path / "recipe.json").write_text(recipe)
        assert verdict("family:base", "family:instruct") == "unknown"


def test_a_pair_calls_out_a_wrong_base_before_anything_is_read(tmp_path: Path) -> None:
    def snapshot(name: str) -> str:
        folder = cached(tmp_path, name).path
        return str(write_checkpoint(folder, tiny_tensors(), tiny_config()))

    pair = Pair.open(snapshot("Qwen/Qwen2.5-7B-Instruct"), snapshot(CHILD))
    said = f"wrong base: {CHILD.partition('/')[2]} was trained from {PARENT}, not Qwen/Qwen2.5-7B-Instruct"
    assert pair.warnings[0] == said
    assert Pair.open(snapshot(PARENT), snapshot(CHILD)).warnings == ()
