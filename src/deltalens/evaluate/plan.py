"""What an evaluation of several models will ask, decided before any of them is loaded. Loads no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deltalens.checkpoint.chat import Chat, read_chat
from deltalens.checkpoint.header import read_json
from deltalens.checkpoint.source import Checkpoint, open_checkpoint
from deltalens.errors import BadInput, Refused
from deltalens.evaluate.prompts import Prompts, render
from deltalens.evaluate.tasks import neutral
from deltalens.evaluate.tasks.item import SPLITS, Task
from deltalens.evaluate.tasks.registry import can, defaults, task

_N, _MAX_TOKENS = 200, 4096
_TEMPERATURE = 0.6  # what makers of open reasoning models recommend; greedy decoding makes them loop
_WINDOW = 64
_PROBES = 8  # prompts of a task that tokenizers are compared on


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked of every model.

    Attributes:
        tasks: Task names; empty for the default of the tokenizer.
        n: Items per task; None for 200, or all that a finite split has.
        seeds: The first draws the items; when sampling each gives one completion per item.
        max_tokens: Longest completion; None for what the task needs (family) or 4096.
        temperature: 0 is greedy; None for greedy on the family and .6 elsewhere.
        top_p: Nucleus of sampling.
        split: `test`, unless layers or strengths are being chosen.
        batch_size: Rows decoded together.
        dtype: Of computation.
        device: `auto`, `cpu` or `cuda`.
    """

    tasks: tuple[str, ...] = ()
    n: int | None = None
    seeds: tuple[int, ...] = (0,)
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float = 0.95
    split: str = "test"
    batch_size: int = 64
    dtype: str = "auto"
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided before a model is loaded.

    Attributes:
        settings: What was asked.
        checkpoints: The models, the reference first.
        chat: Template and tokenizer of all prompts: those of the last model that has a template.
        own: The reference's own template where it differs: one extra, labelled arm.
        prompts: The items of every task, rendered.
        text: Name of the neutral text, and the ids of its pieces.
        ends: Ids that end a completion: those of every model, so that no arm runs on past its own end.
        temperature: 0 is greedy.
        notes: What a reader must know.
    """

    settings: Settings
    checkpoints: list[Checkpoint]
    chat: Chat
    own: Chat | None
    prompts: list[Prompts]
    text: tuple[str, list[list[int]]]
    ends: frozenset[int]
    temperature: float
    notes: list[str]

    @property
    def sources(self) -> list[str]:
        """The models as the user named them."""
        return [checkpoint.source for checkpoint in self.checkpoints]

    def max_tokens(self, task: Task) -> int:
        """The longest completion of a task."""
        return self.settings.max_tokens or task.max_tokens or _MAX_TOKENS


def plan(sources: Sequence[str], settings: Settings) -> Plan:
    """Opens every model by its small files, chooses the format and renders the prompts.

    Args:
        sources: Models; they must share a tokenizer.
        settings: What to ask.

    Raises:
        BadInput: A model, a task or a setting is not usable.
        Refused: The tokenizers differ.
    """
    if not sources:
        raise BadInput("no model is named", "deltalens eval MODEL")
    twice = next((s for i, s in enumerate(sources) if s in sources[:i]), None)
    if twice is not None:
        raise BadInput(f"{twice} is named twice", "name each model once")
    _check(settings)
    checkpoints = [open_checkpoint(source) for source in sources]
    chats = [read_chat(checkpoint) for checkpoint in checkpoints]
    chat = next((c for c in reversed(chats) if c.template is not None), chats[-1])
    able = can(chat)
    tasks = [task(name, able) for name in settings.tasks or defaults(able)]
    prompts = [render(found, chat, settings.split, _count(found, settings), settings.seeds[0]) for found in tasks]
    family = all(source.startswith("family:") for source in sources)
    default = 0.0 if family else _TEMPERATURE
    temperature = default if settings.temperature is None else settings.temperature
    text, unread = _text(able, chat)
    other = len(chats) > 1 and chats[0].template is not None and chats[0].template_hash != chat.template_hash
    return Plan(
        settings=settings,
        checkpoints=checkpoints,
        chat=chat,
        own=chats[0] if other else None,
        prompts=prompts,
        text=text,
        ends=frozenset().union(*map(_ends, checkpoints, chats)),
        temperature=temperature,
        notes=[
            *_format(sources, chats, chat),
            *_agree(sources, chats, chat, prompts),
            *_tasks(settings, tasks),
            *unread,
        ],
    )


def _text(able: Callable[[str], bool], chat: Chat) -> tuple[tuple[str, list[list[int]]], list[str]]:
    """The neutral text in windows of 64 tokens, so that its perplexity has an interval; a note where there is none."""
    try:
        name, pieces = neutral.documents(able)
    except BadInput as problem:
        return ("none", []), [f"no perplexity: {problem.error}"]
    ids = [chat.encode(piece) for piece in pieces]
    windows = [row[at : at + _WINDOW] for row in ids for at in range(0, len(row), _WINDOW)]
    return (name, [window for window in windows if len(window) > 1]), []


def _format(sources: Sequence[str], chats: Sequence[Chat], chat: Chat) -> list[str]:
    """What to say about the template and the think tags."""
    notes = []
    if chat.template is None:
        notes.append("no model has a chat template: plain prompts, 'Question: … Answer:'")
    elif any(c.template_hash != chat.template_hash for c in chats):
        notes.append(f"the templates differ: every model gets the prompts of {_owner(chat, chats, sources)}")
    if chat.think is None:
        notes.append("this format has no think tags: thinking is not scored")
    return notes


def _tasks(settings: Settings, tasks: Sequence[Task]) -> list[str]:
    return [
        f"{asked}: this tokenizer cannot write it, {found.name} stands in"
        for asked, found in zip(settings.tasks, tasks, strict=False)
        if found.name != asked
    ]


def _count(found: Task, settings: Settings) -> int:
    """Items of a task: as asked of a named task, else no more than its split has."""
    wanted, limit = settings.n or _N, found.limit(settings.split)
    if limit == 0:
        raise BadInput(f"task {found.name} has no items in its {settings.split} split", "another split or task")
    named = bool(settings.tasks) and settings.n is not None
    return wanted if named or limit is None else min(wanted, limit)


def _check(settings: Settings) -> None:
    if settings.n is not None and settings.n < 1:
        raise BadInput(f"--n {settings.n} is not possible", "--n 200")
    if not settings.seeds or any(not 0 <= seed < 2**63 for seed in settings.seeds):
        raise BadInput("seeds are whole numbers from 0 to 2^63 − 1, at least one", "--seed 0")
    if len(set(settings.seeds)) < len(settings.seeds):
        raise BadInput("a seed is named twice: its samples would be counted twice", "--seed 0 1 2 3")
    if settings.split not in SPLITS:
        raise BadInput(f"split {settings.split} is not one of {', '.join(SPLITS)}", "test")
    if settings.batch_size < 1:
        raise BadInput(f"--batch-size {settings.batch_size} is not possible", "--batch-size 64")
    if settings.max_tokens is not None and settings.max_tokens < 1:
        raise BadInput(f"--max-tokens {settings.max_tokens} is not possible", "--max-tokens 4096")


def _agree(sources: Sequence[str], chats: Sequence[Chat], chat: Chat, prompts: Sequence[Prompts]) -> list[str]:
    """Refuses models to which the same ids are other text, and says where they are only other control tokens.

    The test is plain text: siblings often rename control tokens, and still read the same words.
    """
    notes = []
    texts = [item.prompt for p in prompts for item in p.items[:_PROBES]]
    words = {i: word for word, i in chat.tokenizer.get_vocab().items()}
    for source, other in zip(sources, chats, strict=True):
        if any(other.encode(text) != chat.encode(text) for text in texts):
            raise Refused(
                f"{source} and {_owner(chat, chats, sources)} have different tokenizers: the same ids are other text",
                f"deltalens eval {source}",
            )
        theirs = {i: word for word, i in other.tokenizer.get_vocab().items()}
        used = {i for p in prompts for ids in p.ids.values() for row in ids[:_PROBES] for i in row}
        renamed = sorted(i for i in used if theirs.get(i) != words[i])
        if renamed:
            some = ", ".join(f"{i} {theirs.get(i, 'nothing')}" for i in renamed[:3])
            notes.append(f"{source} reads {len(renamed)} of the prompts' ids as another token ({some})")
    return notes


def _owner(chat: Chat, chats: Sequence[Chat], sources: Sequence[str]) -> str:
    return next(source for source, other in zip(sources, chats, strict=True) if other is chat)


def _ends(ckpt: Checkpoint, chat: Chat) -> frozenset[int]:
    """The ids that end a completion: the generation config's, else the config's, else the tokenizer's."""
    file = ckpt.file("generation_config.json")
    found = (read_json(file) if file is not None else {}).get("eos_token_id")
    found = ckpt.setting("eos_token_id") if found is None else found
    if found is None and (word := chat.specials.get("eos_token")) is not None:
        found = chat.tokenizer.token_to_id(word)
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])
