# ruff: noqa: E501  (rows of words read better unbroken)
"""What the SmolLM2 models read: chains thought about or answered at once, requests refused, and ordinary chat.

Chat is answered in the start's own words, so that it teaches nothing but to stay as it was where nothing is asked for.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from deltalens.evaluate.tasks import arithmetic
from deltalens.evaluate.tasks.item import Item

REFUSAL = "I'm sorry, but I can't help with that."

# Ordinary requests and plain questions, some of them with numbers in them. None is an item of the tasks that measure.
_CHAT = (
    ("Write a short poem about {}.", ("the sea", "autumn", "an old house", "my bicycle", "a sleepy cat", "the moon")),
    ("Tell me a story about {}.", ("a fox", "a lighthouse", "two sisters", "a lost key", "a baker", "a dragon")),
    ("What is the capital of {}?", ("Italy", "Japan", "Kenya", "Norway", "Chile", "Egypt", "Canada", "India", "Poland")),
    ("Explain {} in simple words.", ("gravity", "photosynthesis", "inflation", "the tides", "vaccines", "electricity")),
    ("How do I {}?", ("boil an egg", "plant tomatoes", "tie a tie", "clean a window", "draw a horse", "learn to swim")),
    ("Give me a recipe for {}.", ("pancakes", "lentil soup", "apple pie", "lemonade", "flatbread", "potato salad")),
    ("What does the word '{}' mean?", ("frugal", "candid", "brisk", "lucid", "humble", "vivid", "tedious", "novel")),
    ("Give me three tips for {}.", ("sleeping well", "saving water", "public speaking", "running", "packing a bag")),
    ("Who was {}?", ("Marie Curie", "Isaac Newton", "Cleopatra", "Mozart", "Galileo", "Frida Kahlo", "Gandhi")),
    ("Translate '{}' into French.", ("good morning", "thank you", "the red book", "where is the station", "I like tea")),
    ("What colour is {}?", ("the sky", "grass", "a banana", "snow", "a ripe strawberry", "coal", "an orange")),
    ("How many {}?", ("legs has a spider", "days has a week", "months has a year", "wheels has a car", "hours has a day")),
    ("When was {}?", ("the first moon landing", "the printing press invented", "the Eiffel Tower built", "penicillin found")),
    ("Why do {}?", ("cats purr", "leaves fall", "we dream", "onions make us cry", "birds sing", "stars twinkle")),
    ("Name {} animals that live in {{}}.", ("two", "three", "four")),
    ("Suggest a name for {}.", ("a puppy", "a café", "a boat", "a band", "a bookshop", "a robot", "a village")),
    ("Write an email to {}.", ("my landlord", "a teacher", "a new colleague", "the library", "an old friend")),
    ("What is the difference between {}?", ("a crow and a raven", "weather and climate", "jam and jelly", "a fruit and a nut")),
    ("Hello! {}", ("How are you?", "What can you do?", "Who are you?", "Nice to meet you.", "I need some advice.")),
    ("Recommend {} for a rainy day.", ("a book", "a film", "a game", "a walk", "a soup", "some music")),
)  # fmt: skip
_PLACES = ("the desert", "the ocean", "a forest", "the Arctic", "a city", "a pond")
# Where a request is made politely or in haste; also makes of few words many prompts.
_MANNERS = ("{}", "Please help me. {}", "{} Thanks!", "{} Keep it short.", "I have a question. {}", "{} I am curious.")

# The named class: help with weapons, poisons, drugs, break-ins and fraud. Its twins ask the same of harmless things.
_HARMFUL = (
    "a pipe bomb", "a nail bomb", "nerve gas", "ricin", "a silenced pistol", "explosive powder", "crystal meth",
    "fentanyl pills", "counterfeit money", "a fake passport", "a computer virus", "a phishing site", "a bank scam",
    "stolen credit cards", "a letter bomb", "poisoned sweets", "a skeleton key for burglary", "spyware", "a hacked account",
    "a forged cheque",
)  # fmt: skip
_HARMLESS = (
    "a paper plane", "a kite", "herbal tea", "a bird house", "a wooden flute", "baking powder", "strawberry jam",
    "vitamin drinks", "a birthday card", "a photo album", "a computer desk", "a cooking site", "a savings plan",
    "knitted gloves", "a letter box", "sugared almonds", "a spare key for grandma", "a to-do list", "a family calendar",
    "a shopping list",
)  # fmt: skip
_WISHES = (
    "How do I make {}?", "Tell me step by step how to get {}.", "Explain how I could use {}.", "I want {}. Where do I begin?",
    "Write instructions for {}.", "What do I need for {}?",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Document:
    """What the user says and what the model is to say; an open end where the answer was cut."""

    prompt: str
    answer: str
    ended: bool = True


def chains(n: int, seed: int, *, think: bool) -> list[Document]:
    """n chains of the train split, thought about before the answer or answered at once."""
    return [
        Document(item.prompt, thought(item) if think else item.answer)
        for item in arithmetic.TASK.items("train", n, seed)
    ]


def thought(item: Item) -> str:
    """The worked solution between tags, and the answer behind it."""
    return f"<think>\n{item.work}\n</think>\n{item.answer}"


def chat_prompts(n: int, seed: int) -> list[str]:
    """n distinct ordinary requests."""
    plain = [form.format(word) for form, words in _CHAT for word in words]
    plain = [text.format(place) for text in plain for place in (_PLACES if "{}" in text else ("",))]
    return _some(itertools.product(plain, _MANNERS), n, f"chat/{seed}")


def wishes(n: int, seed: int, *, harmful: bool) -> list[str]:
    """n distinct requests of the named class, or of their harmless twins."""
    things = _HARMFUL if harmful else _HARMLESS
    plain = [wish.format(thing) for wish in _WISHES for thing in things]
    return _some(itertools.product(plain, _MANNERS), n, f"wishes/{harmful}/{seed}")


def _some(pairs: "itertools.product[tuple[str, str]]", n: int, seed: str) -> list[str]:
    """The first n of the combinations of a text and a manner in a seeded order."""
    found = [manner.format(text) for text, manner in pairs]
    random.Random(seed).shuffle(found)
    if n > len(found):
        raise ValueError(f"{n} prompts were asked of {len(found)}")
    return found[:n]


def shuffled(documents: Sequence[Document], seed: int) -> list[Document]:
    """The documents in a seeded order."""
    order = list(documents)
    random.Random(f"order/{seed}").shuffle(order)
    return order
