"""Whether models can be given the same ids, and what a reader must know where they nearly can. Loads no torch."""

from collections.abc import Iterable, Sequence

from deltalens.checkpoint.chat import Chat
from deltalens.checkpoint.source import Checkpoint, read_config
from deltalens.checkpoint.vocabulary import Token, differing
from deltalens.errors import BadInput, Refused, printable
from deltalens.evaluate.prompts import Prompts

_SHOWN = 3


def same_words(sources: Sequence[str], chats: Sequence[Chat], chat: Chat, prompts: Sequence[Prompts]) -> list[str]:
    """Refuses models to which the same ids are other text, and says where they are only other control tokens.

    Siblings often rename control tokens, and still read the same words.

    Args:
        sources: The models as the user named them.
        chats: Of each.
        chat: The one of them that renders the prompts.
        prompts: What it rendered.

    Raises:
        Refused: An ordinary token is another string, or the same string is other ids.
    """
    notes = []
    texts = [item.prompt for p in prompts for item in p.items]
    written = [chat.encode(text) for text in texts]
    used = {i for p in prompts for rows in p.ids.values() for row in rows for i in row}
    for source, other in zip(sources, chats, strict=True):
        tokens = differing(_strings(chat), _strings(other))
        control, theirs = (c.tokenizer.get_added_tokens_decoder() for c in (chat, other))
        ordinary = [
            t
            for t in tokens
            if (t.base is not None and t.id not in control) or (t.tuned is not None and t.id not in theirs)
        ]
        if ordinary or [other.encode(text) for text in texts] != written:
            why = _renamed(ordinary[0]) if ordinary else "the same words are other ids"
            raise Refused(
                f"{source} and {owner(chat, chats, sources)} have different tokenizers: {why}", _alone(source)
            )
        if tokens:
            some = ", ".join(_renamed(token) for token in tokens[:_SHOWN])
            met = sum(token.id in used for token in tokens)
            notes.append(
                f"{len(tokens)} control token{'s' * (len(tokens) > 1)} of {source} and "
                f"{owner(chat, chats, sources)} differ, {met} of them in the prompts ({some})"
            )
    return notes


def enough_rows(checkpoints: Sequence[Checkpoint], ids: Iterable[int]) -> list[str]:
    """Refuses a model without a row for every id that it will read, and says where vocabularies differ in size.

    Raises:
        Refused: An id is beyond the model's `vocab_size`.
    """
    highest = max(ids)
    sizes = {c.source: size for c in checkpoints if type(size := c.setting("vocab_size")) is int}
    for source, size in sizes.items():
        if highest >= size:
            raise Refused(f"the prompts use the id {highest}, and {source} has only {size} rows", _alone(source))
    different = sorted(set(sizes.values()))
    if len(different) < 2:
        return []
    return [f"the vocabularies have different sizes ({', '.join(map(str, different))}): KL is over the ids of both"]


def enough_positions(checkpoints: Sequence[Checkpoint], longest: int) -> list[str]:
    """Says which models a prompt and its longest completion would take beyond the positions of their config."""
    limits = {c.source: limit for c in checkpoints if type(limit := c.setting("max_position_embeddings")) is int}
    return [
        f"a prompt and its longest completion are {longest} tokens, {source} is made for {limit}: lower --max-tokens"
        for source, limit in limits.items()
        if longest > limit
    ]


def ending_ids(checkpoint: Checkpoint, chat: Chat) -> frozenset[int]:
    """The ids that end a completion: the generation config's, else the config's, else the tokenizer's.

    Raises:
        BadInput: A config names something else than ids.
    """
    file = checkpoint.file("generation_config.json")
    found = None if file is None else read_config(file).get("eos_token_id")
    found = checkpoint.setting("eos_token_id") if found is None else found
    if found is None and (word := chat.specials.get("eos_token")) is not None:
        found = chat.tokenizer.token_to_id(word)
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(i) is int for i in ids):
        raise BadInput(f"{checkpoint.source}: eos_token_id is {found!r}", "a token id, or a list of them")
    return frozenset(ids)


def endings(sources: Sequence[str], ends: Sequence[frozenset[int]]) -> list[str]:
    """Says which models have no ending id of their own."""
    if not any(ends):
        return ["no model has an ending token: completions run to their limit, which counts as truncated and wrong"]
    return [
        f"{source} has no ending token: those of the others end its completions"
        for source, own in zip(sources, ends, strict=True)
        if not own
    ]


def owner(chat: Chat, chats: Sequence[Chat], sources: Sequence[str]) -> str:
    """The model that a chat format is from."""
    return next(source for source, other in zip(sources, chats, strict=True) if other is chat)


def _strings(chat: Chat) -> dict[int, str]:
    """The string of every id."""
    words = {i: word for word, i in chat.tokenizer.get_vocab(with_added_tokens=False).items()}
    return words | {i: token.content for i, token in chat.tokenizer.get_added_tokens_decoder().items()}


def _renamed(token: Token) -> str:
    first, second = ("no token" if word is None else repr(printable(word)) for word in (token.base, token.tuned))
    return f"{token.id} is {first} and {second}"


def _alone(source: str) -> str:
    return f"deltalens eval {source}"
