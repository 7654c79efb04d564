"""A matched pair of prompt files that is shipped: 60 questions that take several steps, 60 that take none.

They come in pairs of one topic. Both of a pair hold numbers of the same digits and, within 1, as many words and as many
pieces, where every word, digit and mark is one; token counts then differ little, whatever the tokenizer. Written for
deltalens; nothing in them is anyone's data.
"""

from pathlib import Path

REASONING = Path(__file__).parent / "reasoning.jsonl"
PLAIN = Path(__file__).parent / "plain.jsonl"
