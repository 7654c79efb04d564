"""A matched pair of prompt files that is shipped: 60 questions that take several steps, 60 that take none.

They come in pairs of one topic with like lengths (words within 3 in every pair, .5 apart on average) and one last
character. Written for deltalens; nothing in them is anyone's data.
"""

from pathlib import Path

REASONING = Path(__file__).parent / "reasoning.jsonl"
PLAIN = Path(__file__).parent / "plain.jsonl"
