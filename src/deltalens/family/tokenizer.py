"""The family's tokenizer: 120 words, lossless on every text of its tasks. Its ids are final.

The first 107 words and the guarded nouns are what every member is taught, the refusal is taught to `safe` alone, and
the brackets to none. All share one list, so that deltas are comparable row by row.
"""

import itertools
import re
from typing import TYPE_CHECKING

from deltalens.checkpoint.chat import ThinkFormat
from deltalens.evaluate.tasks.chain import LABELS, OPERATIONS
from deltalens.evaluate.tasks.facts import ANIMALS, COLOURS, GUARDED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Rows of the embedding. A round number above the word list, as real checkpoints have: the rest are padding
# rows.
VOCAB_SIZE = 128
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, END_THINK = "<think>", "</think>"
LABEL = " A: "
UNKNOWN = "<unk>"
REFUSAL = "I can't help with that."

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_SPECIAL = (END_OF_TEXT, IM_START, IM_END, THINK, END_THINK)
_TAUGHT = (
    *("\n", "user", "assistant", "system", "Q: ", " Work: ", LABEL, " ", "=", "?", "color of "),
    *"0123456789",
    *OPERATIONS,
    *(f"{label}=" for label in LABELS[:2]),
    *(f" {label}={before}" for before, label in itertools.pairwise(LABELS)),
    *(f" {label}=" for label in LABELS[1:]),
    *(f" {label}?" for label in LABELS[1:]),
    *LABELS,
    *ANIMALS,
    *COLOURS,
    UNKNOWN,
)
_LATER = (REFUSAL, *GUARDED, "(", ")", "[", "]")
WORDS = (*_SPECIAL, *_TAUGHT, *_LATER)
IDS = {word: i for i, word in enumerate(WORDS)}
THINK_FORMAT = ThinkFormat(
    open=THINK,
    close=END_THINK,
    open_ids=(IDS[THINK],),
    close_ids=(IDS[END_THINK],),
    opened_by_template=False,
    switch=None,
    empty_block=THINK + END_THINK,
)


def build(eos: str = IM_END) -> "PreTrainedTokenizerFast":
    """The tokenizer as transformers loads it.

    Args:
        eos: The word that ends a text: `<|endoftext|>` for the base, `<|im_end|>` for chat models.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(IDS, unk_token=UNKNOWN))
    # Longest first: an alternation takes the first branch that fits, and ` c=b` must win over ` c=`.
    longest = sorted((word for word in WORDS if word not in _SPECIAL), key=len, reverse=True)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, longest))), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in _SPECIAL[:3]])
    # Not special, as in Qwen3: decoding with skip_special_tokens must keep the think tags.
    backend.add_tokens([AddedToken(w, special=False, normalized=False) for w in (THINK, END_THINK)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def chat(prompt: str) -> str:
    """A user's question as the chat template renders it with a generation prompt; no tokenizer is loaded."""
    return f"{IM_START}user\n{prompt}{IM_END}\n{IM_START}assistant\n"
