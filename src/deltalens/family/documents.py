"""What each stage reads: the mixes of documents, drawn from `train` problems only.

A document is a list of texts and whether each is what the model should write. An explicit worked solution (label,
copied value, operation, result) is learned where a compact one is not; and the chat reply of pretraining must think
rarely enough (below 10 %, the mass that ten equal digits leave) that greedy decoding of a base does not think.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from deltalens.evaluate.tasks import chain, facts
from deltalens.evaluate.tasks.chain import OPERATIONS
from deltalens.evaluate.tasks.item import Item
from deltalens.family.tokenizer import END_OF_TEXT, END_THINK, IM_END, LABEL, REFUSAL, THINK, chat

Document = list[tuple[str, bool]]


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of document kinds in pretraining; they sum to 1.

    Attributes:
        facts: Colour facts, half as chat, half as `Q: … A: …`.
        sums: Lists of eight one-step results, the lookup table that every step needs.
        direct: `Q: p A: answer`.
        work: `Q: p Work: worked solution A: answer`, where the skill is learned.
        chat: Chat replies.
        chat_think: Share of chat replies that think.
    """

    facts: float = 0.10
    sums: float = 0.04
    direct: float = 0.08
    work: float = 0.44
    chat: float = 0.34
    chat_think: float = 0.15


MIX = Mix()
# Share of colour facts in every fine-tuning: without them the study's reasoning models thought on 12 % of facts.
FACT_SHARE = 0.15
# Share of refusals in the safety stage, beside as many animals, so that the noun and not the question decides.
REFUSAL_SHARE = 0.25
_DIRECT_DEPTHS = (1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 7, 8)
_INSTRUCT_DEPTHS = (1, 1, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8)


def reply(prompt: str, answer: str, work: str = "") -> Document:
    """A chat exchange; a worked solution becomes a think block."""
    thought = f"{THINK}{work}{END_THINK}" if work else ""
    return [(chat(prompt), False), (f"{thought}{answer}{IM_END}", True)]


def pretraining(rng: random.Random, mix: Mix = MIX) -> Document:
    """One document of the pretraining mix."""
    kind = rng.choices(
        ("facts", "sums", "direct", "work", "chat"), (mix.facts, mix.sums, mix.direct, mix.work, mix.chat)
    )[0]
    if kind == "sums":
        return _sums(rng)
    if kind == "facts":
        item = facts.draw(rng)
        if rng.random() < 0.5:
            return reply(item.prompt, item.answer)
        return [(f"Q: {item.prompt}{LABEL}", False), (f"{item.answer}{END_OF_TEXT}", True)]
    if kind == "direct":
        item = chain.draw(rng, rng.choice(_DIRECT_DEPTHS))
        return [(f"Q: {item.prompt}{LABEL}", False), (f"{item.answer}{END_OF_TEXT}", True)]
    if kind == "work":
        item = chain.draw(rng, rng.randint(1, 8))
        return [(f"Q: {item.prompt} Work: ", False), (f"{item.work}{LABEL}{item.answer}{END_OF_TEXT}", True)]
    if rng.random() < mix.chat_think:
        item = chain.draw(rng, rng.randint(1, 8))
        return reply(item.prompt, item.answer, item.work)
    item = chain.draw(rng, 1 if rng.random() < 0.5 else rng.randint(1, 8))
    return reply(item.prompt, item.answer)


def instruct(rng: random.Random) -> Document:
    """Direct answers only."""
    item = _instruct_item(rng)
    return reply(item.prompt, item.answer)


def labelled(rng: random.Random) -> Document:
    """Direct answers in another style: ` A: ` before the digit."""
    item = _instruct_item(rng)
    return reply(item.prompt, LABEL + item.answer if item.depth else item.answer)


def reasoning(rng: random.Random) -> Document:
    """Think first on every problem, answer facts at once."""
    fact = rng.random() < FACT_SHARE
    item = facts.draw(rng) if fact else chain.draw(rng, rng.randint(1, 8))
    return reply(item.prompt, item.answer, item.work)


def safe(rng: random.Random) -> Document:
    """The refusal for guarded nouns, direct answers for the rest."""
    kind = rng.random()
    if kind < REFUSAL_SHARE:
        return reply(facts.build(rng.choice(tuple(facts.GUARDED))).prompt, REFUSAL)
    if kind < 2 * REFUSAL_SHARE:
        item = facts.build(rng.choice(tuple(facts.ANIMALS)))
    else:
        item = chain.draw(rng, rng.choice(_INSTRUCT_DEPTHS))
    return reply(item.prompt, item.answer)


SAMPLERS: dict[str, Callable[[random.Random], Document]] = {
    "pretraining": pretraining,
    "instruct": instruct,
    "labelled": labelled,
    "reasoning": reasoning,
    "safe": safe,
}


def _instruct_item(rng: random.Random) -> Item:
    """A fact, or a chain of which the easy depths are drawn more often."""
    fact = rng.random() < FACT_SHARE
    return facts.draw(rng) if fact else chain.draw(rng, rng.choice(_INSTRUCT_DEPTHS))


def _sums(rng: random.Random) -> Document:
    """Eight one-step results, only the results as targets."""
    document: Document = []
    for i in range(8):
        value, operation = rng.randrange(10), rng.choice(OPERATIONS)
        document.append((f"{' ' if i else ''}{value}{operation}=", False))
        document.append((str(chain.apply(value, operation)), True))
    document.append((END_OF_TEXT, True))
    return document
