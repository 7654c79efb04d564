"""Chat templates and think formats: found by rendering, equal to transformers' own, harmless when hostile."""

import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import BLOCK, OPENING, PLAIN_CHATML, QWEN3, QWQ, R1, SINK, TAGS, TALK, TOLD, bpe, family, opened
from factories import write_checkpoint, write_tokenizer

from deltalens.checkpoint.chat import Chat, ThinkFormat
from deltalens.errors import BadInput


def found(chat: Chat) -> ThinkFormat:
    assert chat.think is not None
    return chat.think


@pytest.mark.parametrize(
    ("template", "by_template", "switch", "block", "tail", "forced", "closed"),
    [
        (R1, True, None, BLOCK, "<|Assistant|>", "<think>", BLOCK),
        (QWQ, True, None, BLOCK, "assistant\n", "<think>\n", BLOCK),
        (
            QWEN3,
            False,
            "enable_thinking",
            BLOCK,
            "assistant\n",
            "<think>",
            BLOCK,
        ),
        (OPENING, True, "thinking", "</think>", "assistant\n", "<think>\n", "</think>"),
        (PLAIN_CHATML, False, None, BLOCK, "assistant\n", "<think>", BLOCK),
        (None, False, None, BLOCK, "\nAnswer:", "<think>", BLOCK),
    ],
    ids=["r1", "qwq", "qwen3", "opening", "none", "plain"],
)
@pytest.mark.parametrize("single", [True, False], ids=["single", "several"])
def test_the_format_is_found_by_rendering(
    tmp_path: Path,
    template: str | None,
    by_template: bool,
    switch: str | None,
    block: str,
    tail: str,
    forced: str,
    closed: str,
    single: bool,
) -> None:
    bpe(tmp_path, template, TAGS if single else ())
    chat = opened(tmp_path)
    think = found(chat)
    assert (think.open, think.close) == TAGS
    assert (think.opened_by_template, think.switch, think.empty_block) == (by_template, switch, block)
    tokens = [[chat.tokenizer.id_to_token(i) for i in ids] for ids in (think.open_ids, think.close_ids)]
    assert tokens == ([["<think>"], ["</think>"]] if single else [["<", "think", ">"], ["</", "think", ">"]])
    free = chat.render("1+1?")
    assert free.endswith(tail)
    assert free.count("1+1?") == 1
    assert chat.render("1+1?", "forced") == free + forced
    assert chat.render("1+1?", "closed") == free + closed
    assert (chat.template_hash == "plain") == (template is None)


def test_the_family_has_single_tags_and_no_blank_lines() -> None:
    chat = family()
    assert chat.think == ThinkFormat("<think>", "</think>", (3,), (4,), False, None, "<think></think>")
    assert chat.render("c?") == "<|im_start|>user\nc?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.encode(chat.render("c=b?", "closed"))[-2:] == [3, 4]


def test_a_switch_may_change_the_whole_prompt(tmp_path: Path) -> None:
    bpe(tmp_path, TOLD)
    chat = opened(tmp_path)
    assert found(chat).switch == "enable_thinking"
    assert found(chat).empty_block == BLOCK
    assert chat.render("x", "closed") == "/no_think\n" + chat.render("x") + BLOCK


@pytest.mark.parametrize("template", [R1, QWQ, QWEN3, OPENING, TOLD, PLAIN_CHATML, SINK])
@pytest.mark.parametrize("added", [TAGS, ()], ids=["single", "several"])
def test_text_and_ids_equal_those_of_transformers(tmp_path: Path, template: str, added: tuple[str, ...]) -> None:
    from transformers import AutoTokenizer

    bpe(tmp_path, template, added)
    chat = opened(tmp_path)
    oracle: Any = AutoTokenizer.from_pretrained(tmp_path)
    think = found(chat)
    native = "forced" if think.opened_by_template else "free"
    for talk in (TALK, TALK[1:2], TALK[1:]):
        for mode, on in ((native, True), ("closed", False)):
            if mode == "closed" and think.switch is None:
                continue
            said: dict[str, Any] = {} if think.switch is None else {think.switch: on}
            text = oracle.apply_chat_template(talk, tokenize=False, add_generation_prompt=True, **said)
            ids = oracle.apply_chat_template(talk, add_generation_prompt=True, return_dict=False, **said)
            assert chat.render(talk, mode) == text
            assert chat.encode(text) == ids
            assert chat.decode(ids) == oracle.decode(ids) == text


@pytest.mark.parametrize(
    ("template", "added", "expected"),
    [
        ("{{ messages[0].content }}<reasoning>", (), ("<reasoning>", "</reasoning>")),
        ("{{ messages[0].content.split('</thinking>')[-1] }}", (), ("<thinking>", "</thinking>")),
        (PLAIN_CHATML, ("[THINK]", "[/THINK]"), ("[THINK]", "[/THINK]")),
        ("{# <thinking> #}{{ messages[0].content }}", ("[THINK]", "[/THINK]"), ("<thinking>", "</thinking>")),
        ("{# <thinking> #}{{ messages[0].content }}<think>", (), TAGS),
        (PLAIN_CHATML, ("[THINK]",), TAGS),
    ],
)
def test_other_tags_where_they_are_named(
    tmp_path: Path, template: str, added: tuple[str, ...], expected: tuple[str, str]
) -> None:
    bpe(tmp_path, template, added)
    think = found(opened(tmp_path))
    assert (think.open, think.close) == expected
    assert think.empty_block == "{}\n\n{}\n\n".format(*expected)


def test_a_tag_that_merges_with_the_prompt_is_encoded_alone(tmp_path: Path) -> None:
    bpe(tmp_path, None, added=())
    chat = opened(tmp_path)
    joined = [chat.tokenizer.id_to_token(i) for i in chat.encode("Answer:<think>")]
    assert ":<" in joined
    assert [chat.tokenizer.id_to_token(i) for i in found(chat).open_ids] == ["<", "think", ">"]


def test_a_tokenizer_that_cannot_write_tags_has_no_format(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    write_checkpoint(tmp_path, {"w": torch.zeros(2, 2)})
    backend = Tokenizer(models.WordLevel({"?": 0, "one": 1}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    chat = opened(tmp_path)
    assert chat.think is None
    assert chat.render("one") == "Question: one\nAnswer:"
    for mode in ("forced", "closed"):
        with pytest.raises(BadInput, match="can encode none"):
            chat.render("one", mode)


def test_a_plain_prompt_begins_as_the_tokenizer_begins_every_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    bpe(tmp_path, None)
    assert opened(tmp_path).render("x") == "Question: x\nAnswer:"
    assert opened(tmp_path).render(TALK[:2], "forced") == "Question: Be brief.\n1+1?\nAnswer:<think>"
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    backend.save(str(tmp_path / "tokenizer.json"))
    chat = opened(tmp_path)
    ids = chat.encode(chat.render("x"))
    assert ids == backend.encode("Question: x\nAnswer:").ids
    assert [i for i in ids if i == bos] == ids[:1]


def test_a_tokenizer_file_may_not_cut_or_pad(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    bpe(tmp_path, QWQ)
    text = opened(tmp_path).render("a long question " * 20)
    whole = opened(tmp_path).encode(text)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(8)
    backend.enable_padding(direction="left", length=500)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert opened(tmp_path).encode(text) == whole


def test_where_a_template_is_looked_for(tmp_path: Path) -> None:
    bpe(tmp_path, None, chat_template="one {{ eos_token }}")
    assert opened(tmp_path).render("x") == "one <|end|>"
    named = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    bpe(tmp_path, None, chat_template=named)
    assert opened(tmp_path).render("x") == "three"
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "no", "cls_token": "C"}')
    (tmp_path / "chat_template.jinja").write_text("four {{ cls_token }} {{ eos_token }} {{ pad_token }}")
    assert opened(tmp_path).render("x") == "four C <|end|> "
    before = opened(tmp_path).template_hash
    (tmp_path / "chat_template.jinja").write_text("five")
    assert opened(tmp_path).template_hash != before
    assert len(before) == 16


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer_config.json", '{"chat_template": [{"name": "rag", "template": "x"}]}', "no default chat template"),
        ("tokenizer_config.json", '{"chat_template": 3}', "no default chat template"),
        ("tokenizer_config.json", "[]", "array, not an object"),
        ("tokenizer.json", "{}", "cannot be read"),
        ("tokenizer.json", "no json", "cannot be read"),
        ("chat_template.jinja", "{% if %}", "cannot be rendered"),
        ("chat_template.jinja", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_malformed_files_are_told(tmp_path: Path, file: str, content: str | bytes, said: str) -> None:
    bpe(tmp_path, None)
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=said) as caught:
        opened(tmp_path)
    assert str(tmp_path) in caught.value.error
    assert caught.value.fix


def test_a_missing_tokenizer_says_how_to_write_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"w": torch.zeros(2, 2)})
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(BadInput, match=r"has no tokenizer\.json") as caught:
        opened(tmp_path)
    assert "save_pretrained" in (caught.value.fix or "")


def test_a_tokenizer_of_another_kind_is_bad_input(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"w": torch.zeros(2, 2)})
    write_tokenizer(tmp_path, ["a"], {5: "<think>"})
    with pytest.raises(BadInput, match="cannot be read"):
        opened(tmp_path)


LONG, LARGE, FULL = "within 100,000 steps", "more than 10,000,000", "MemoryError"
HOSTILE = {
    "endless": (LONG, "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
    "recursion": ("recursion depth", "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}"),
    "branching": (LONG, "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"),
    "nested": ("recursion depth", "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}"),
    "internals": ("unsafe", "{{ ''.__class__.__mro__ }}"),
    "globals": ("unsafe", "{{ cycler.__init__.__globals__.os.system('true') }}"),
    "mutation": ("unsafe", "{{ messages.append(1) }}"),
    "repeat": (LARGE, "{{ 'a' * 10000000000 }}"),
    "output": (LARGE, "{% for i in range(99999) %}{{ 'aaaaaaaaaa' * 100 }}{% endfor %}"),
    "square": (LARGE, "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}"),
    "power": ("raises to a power", "{{ 10 ** 10 ** 10 }}"),
    "width": (FULL, "{{ '%10000000000d' % 1 }}"),
    "centre": (FULL, "{{ 'a' | center(10000000000) }}"),
    "replace": (FULL, "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}"),
    "doubling": (FULL, "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"),
    "raises": ("roles must alternate", "{{ raise_exception('roles must alternate') }}"),
    "undefined": ("undefined", "{{ a.b.c }}"),
    "division": ("division by zero", "{{ 1 / 0 }}"),
}


@pytest.mark.parametrize(("reason", "template"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_bad_input(tmp_path: Path, reason: str, template: str) -> None:
    if reason == FULL and not Path("/proc/self/statm").exists():
        pytest.skip("memory is bounded on Linux only")
    bpe(tmp_path, template)
    limits, start = resource.getrlimit(resource.RLIMIT_AS), time.perf_counter()
    with pytest.raises(BadInput, match=rf"chat template cannot be rendered \(.*{reason}"):
        opened(tmp_path)
    assert time.perf_counter() - start < 10  # a second or so on an idle machine
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


def test_what_a_template_says_when_it_refuses_is_shown(tmp_path: Path) -> None:
    bpe(
        tmp_path,
        "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0].content }}",
    )
    chat = opened(tmp_path)
    assert chat.render("x") == "x"
    with pytest.raises(BadInput, match="one turn only"):
        chat.render(TALK)
