"""How a model is talked to: its chat template and the tags of its thinking, from its small files; no transformers."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deltalens.checkpoint.header import CORRUPT, one_line, unreadable
from deltalens.checkpoint.source import Checkpoint, read_config
from deltalens.checkpoint.vocabulary import TOKENIZER
from deltalens.errors import BadInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODES = ("free", "forced", "closed")
# Tags in use, the commonest first; all but the first pair count only where a template or an added token names them.
TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)
_SWITCHES = ("enable_thinking", "thinking")
_PROBE = [{"role": "user", "content": "1+1?"}]


@dataclass(frozen=True, slots=True)
class ThinkFormat:
    """How a model marks its thinking, found by rendering its template (docs/behaviour.md §1).

    Args:
        open: The opening tag.
        close: The closing tag.
        open_ids: The opening tag's ids at the first free position of a prompt; several where it is no single token.
        close_ids: The closing tag's ids, behind an opening one.
        opened_by_template: Whether the template's generation prompt itself ends with the opening tag.
        switch: The template's variable that turns thinking off, None if there is none.
        empty_block: What stands for no thinking: the template's own block, else an empty one.
    """

    open: str
    close: str
    open_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    opened_by_template: bool
    switch: str | None
    empty_block: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat template with its tokenizer.

    Args:
        template: The template's text, None for a model without one, which gets plain prompts.
        specials: The special tokens that a template may name (`bos_token`, …), as text.
        think: How thinking is marked, None where the tokenizer can encode no tag.
        tokenizer: What encodes.
        template_hash: First 16 hex digits of the template's SHA-256, `plain` without one.
    """

    template: str | None
    specials: dict[str, str]
    think: ThinkFormat | None
    tokenizer: "Tokenizer"
    template_hash: str

    def render(self, prompt: str | Sequence[Mapping[str, str]], mode: str = "free") -> str:
        """The text up to the first free position.

        Args:
            prompt: The user's text, or a conversation of `role` and `content`.
            mode: `free`: thinking on where it can be switched, and an opening tag that the template writes taken away
                (with the line break behind it), so that the model decides. `forced`: with the opening tag.
                `closed`: thinking switched off, or `free` with an empty block.

        Raises:
            BadInput: The template fails on this conversation, or a tag is asked of a tokenizer that has none.
        """
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        think = self.think
        if think is None:
            if mode != "free":
                raise BadInput(f"mode {mode} needs think tags, and this tokenizer can encode none")
            return self._written(messages)
        switched = {} if think.switch is None else {think.switch: mode != "closed"}
        native = self._written(messages, **switched)
        if mode == "closed" and think.switch is not None:
            return native
        free = _without(native, think.open) if think.opened_by_template else native
        if mode == "free":
            return free
        if mode == "closed":
            return free + think.empty_block
        return native if think.opened_by_template else free + think.open

    def encode(self, text: str) -> list[int]:
        """The ids of a text as it stands: nothing is added, special tokens in it are parsed."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def _written(self, messages: Sequence[Mapping[str, str]], **switched: bool) -> str:
        """A conversation with its generation prompt as the template writes it, or the plain prompt."""
        if self.template is None:
            # Tokenizers that begin every text with a special token belong to models that need it.
            first = self.tokenizer.encode("", add_special_tokens=True).tokens[:1]
            bos = self.specials.get("bos_token", "")
            text = "\n".join(message["content"] for message in messages)
            return f"{bos if first == [bos] else ''}Question: {text}\nAnswer:"
        from deltalens.checkpoint.template import render

        fixed: dict[str, Any] = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        return render(self.template, fixed | self.specials | switched)


def read_chat(ckpt: Checkpoint) -> Chat:
    """The chat format of a checkpoint, from tokenizer.json, tokenizer_config.json and its template.

    Raises:
        BadInput: There is no tokenizer.json, a file is malformed, or the template cannot be rendered.
    """
    tokenizer = _tokenizer(ckpt)
    template, specials = read_template(ckpt)
    chat = Chat(template, specials, None, tokenizer, template_hash(template))
    try:
        return replace(chat, think=_think(chat))
    except BadInput as problem:
        raise BadInput(f"{ckpt.source}: {problem.error}", problem.fix) from None


def read_template(ckpt: Checkpoint) -> tuple[str | None, dict[str, str]]:
    """The chat template, None if there is none, and the special tokens that it may name.

    As transformers reads them: chat_template.jinja before tokenizer_config.json, of several named ones `default`.

    Raises:
        BadInput: A file is malformed, or no template is the default one.
    """
    config = _settings(ckpt, "tokenizer_config.json")
    named = _settings(ckpt, "special_tokens_map.json") | config
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    specials = {key: text for key, text in texts.items() if key.endswith("_token") and isinstance(text, str)}
    template: Any = config.get("chat_template")
    if (path := ckpt.file("chat_template.jinja")) is not None:
        try:
            template = path.read_text(encoding="utf-8")
        except OSError as problem:
            raise unreadable(path, problem) from None
        except UnicodeDecodeError:
            raise BadInput(f"{path} is not UTF-8 text", CORRUPT) from None
    elif isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = entries[0].get("template") if entries else template
    if not isinstance(template, str | None):
        fix = "save the template to use as chat_template.jinja beside the weights"
        raise BadInput(f"tokenizer_config.json of {ckpt.source} names no default chat template", fix)
    return template, specials


def template_hash(template: str | None) -> str:
    """What tells two templates apart: 16 hex digits, `plain` where there is none."""
    return "plain" if template is None else hashlib.sha256(template.encode()).hexdigest()[:16]


def _settings(ckpt: Checkpoint, name: str) -> dict[str, Any]:
    path = ckpt.file(name)
    return {} if path is None else read_config(path)


def _tokenizer(ckpt: Checkpoint) -> "Tokenizer":
    path = ckpt.file(TOKENIZER)
    if path is None:
        fix = "write one: load it with transformers' AutoTokenizer and save_pretrained beside the weights"
        raise BadInput(f"{ckpt.source} has no {TOKENIZER}", fix)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as problem:  # the library raises nothing more specific
        raise BadInput(f"{TOKENIZER} of {ckpt.source} cannot be read ({one_line(problem)})", CORRUPT) from None
    # A file may ask for either; prompts are encoded whole and padded by the batch.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _think(chat: Chat) -> ThinkFormat | None:
    """The think format of a chat whose own is not known yet, from renderings of one short question."""
    switch = next((name for name in _SWITCHES if _switches(chat, name)), None)
    on = chat._written(_PROBE, **({} if switch is None else {switch: True}))
    opening, closing = _tags(chat, on)
    free = _without(on, opening)
    forced = on if free != on else free + opening
    open_ids, close_ids = _behind(chat, free, opening), _behind(chat, forced, closing)
    if chat.decode(open_ids).strip() != opening or chat.decode(close_ids).strip() != closing:
        return None
    # The family's closed list of words has no blank lines between tags and answer.
    gap = "" if type(chat.tokenizer.model).__name__ == "WordLevel" else "\n\n"
    block = opening + gap + closing + gap
    if switch is not None:
        off = chat._written(_PROBE, **{switch: False})
        written = re.search(rf"(?:{re.escape(opening)}\s*)?{re.escape(closing)}\s*\Z", off)
        block = written[0] if written else block
    return ThinkFormat(opening, closing, open_ids, close_ids, free != on, switch, block)


def _switches(chat: Chat, name: str) -> bool:
    return chat._written(_PROBE, **{name: True}) != chat._written(_PROBE, **{name: False})


def _tags(chat: Chat, prompt: str) -> tuple[str, str]:
    """The pair that the generation prompt opens, else one that the template or the vocabulary names, else the first."""
    added = {token.content for token in chat.tokenizer.get_added_tokens_decoder().values()}
    tests = (
        lambda pair: _without(prompt, pair[0]) != prompt,
        lambda pair: chat.template is not None and any(tag in chat.template for tag in pair),
        lambda pair: added.issuperset(pair),
    )
    return next((pair for test in tests for pair in TAGS if test(pair)), TAGS[0])


def _without(prompt: str, opening: str) -> str:
    """A prompt without the opening tag that ends it and the line break behind that."""
    kept = prompt.rstrip()
    return kept.removesuffix(opening) if kept.endswith(opening) else prompt


def _behind(chat: Chat, prompt: str, tag: str) -> tuple[int, ...]:
    """The ids of a tag behind a prompt; of the tag alone where its first characters merge with the prompt's last."""
    before, both = chat.encode(prompt), chat.encode(prompt + tag)
    return tuple(both[len(before) :] if both[: len(before)] == before else chat.encode(tag))
