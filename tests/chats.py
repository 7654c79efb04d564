"""Tiny chat checkpoints for tests: templates that behave like those in use, and a BPE tokenizer trained on the spot."""

import json
from pathlib import Path
from typing import Any

import torch
from factories import write_checkpoint

from deltalens.checkpoint.chat import Chat, read_chat
from deltalens.checkpoint.source import open_checkpoint

TAGS = ("<think>", "</think>")
R1 = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}
{%- for m in messages %}
    {%- if m['role'] == 'system' %}{{ m['content'] }}{% endif %}
    {%- if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{% endif %}
    {%- if m['role'] == 'assistant' %}
        {%- set said = m['content'] %}
        {%- if '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif %}
        {{- '<|Assistant|>' + said + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>' }}{% endif %}"""
QWQ = """\
{%- for m in messages %}
    {%- if m.role == "assistant" and not loop.last %}
        {{- '<|im_start|>assistant\n' + m.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
{%- endif %}
"""
CHATML = """\
{%- set ns = namespace(last=-1) %}
{%- for m in messages[::-1] %}
{%- if m.role == 'user' and ns.last < 0 %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}ENDING{% endif %}
"""
PLAIN_CHATML = CHATML.replace("ENDING", "")
BLOCK = "<think>\n\n</think>\n\n"
QWEN3 = CHATML.replace(
    "ENDING", "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{{ '' }}{% endif %}"
)
# A hybrid that opens the block itself, and one that closes it at once.
OPENING = CHATML.replace("ENDING", "{{ '</think>' if thinking is defined and not thinking else '<think>\\n' }}")
# A hybrid that also tells the model in the system turn.
TOLD = "{{ '/no_think\\n' if enable_thinking is false }}" + QWEN3
# What else a template may use, outputs that only the right settings give.
SINK = """\
{% if true %}
  {% generation %}
  indented {{ messages | tojson }}
  {% endgeneration %}
{% endif %}
{{ {'<a>': ["é", 1.5]} | tojson(indent=2) }} {{ strftime_now('%Y-%m') }} {{ tools is none }} {{ documents is none }}
{%- for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ loop.length ~ m.role }}{% endfor %}
{%- macro shout(text) %}{{ text | upper }}{% endmacro %}{{ shout('x') }}{{ unknown }}{{ eos_token }}{{ pad_token }}
"""
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "<think>\none and one\n</think>\n2"},
    {"role": "user", "content": "And <b>3 & 'é'?"},
]


def bpe(folder: Path, template: str | None, added: tuple[str, ...] = TAGS, across: bool = False, **config: Any) -> None:
    """A byte-level BPE tokenizer for a checkpoint, a tiny one if there is none; with `across` merges cross lines."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not across)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(["think Answer:< question user", ">\n</", ">\n", "\n</"] * 9, trainer)
    specials = ["<s>", "<|end|>", "<|User|>", "<|Assistant|>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    if not folder.exists() or not list(folder.glob("*.safetensors")):
        write_checkpoint(folder, {"w": torch.zeros(2, 2)})
    backend.save(str(folder / "tokenizer.json"))
    config |= {"bos_token": "<s>", "eos_token": {"content": "<|end|>", "__type": "AddedToken"}, "pad_token": None}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


def opened(folder: Path) -> Chat:
    return read_chat(open_checkpoint(folder))


def family() -> Chat:
    return read_chat(open_checkpoint("family:reasoning"))
