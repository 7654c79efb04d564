"""What an evaluation of several models will ask, decided before any of them is loaded. Loads no torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deltalens.checkpoint.chat import Chat, read_chat
from deltalens.checkpoint.source import Checkpoint, open_checkpoint
from deltalens.errors import BadInput
from deltalens.evaluate.agree import ending_ids, endings, enough_positions, enough_rows, owner, same_words
from deltalens.evaluate.prompts import Prompts, render
from deltalens.evaluate.tasks import neutral
from deltalens.evaluate.tasks.item import Task
from deltalens.evaluate.tasks.registry import can, defaults, task
from deltalens.model.decoding import COLDEST, Decoding
from deltalens.model.load import DEVICES, DTYPES

MOST = 100_000
"""Items of a task; more would be drawn and written out for minutes before anything else is said."""

_N, _MAX_TOKENS = 200, 4096
_TEMPERATURE = 0.6  # what makers of open reasoning models recommend; greedy decoding makes them loop
_WINDOW = 64
_SPLIT = "test"


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
        prompts: The items of every task, rendered.
        own: The same in the reference's own format, where that differs: one extra, labelled arm.
        text: Name of the neutral text, and the ids of its pieces.
        ends: Ids that end a completion: those of every model, so that no arm runs on past its own end.
        temperature: 0 is greedy.
        notes: What a reader must know.
    """

    settings: Settings
    checkpoints: list[Checkpoint]
    chat: Chat
    prompts: list[Prompts]
    own: list[Prompts]
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
        return _max_tokens(self.settings, task)

    def decoding(self, task: Task) -> Decoding:
        """How the completions of a task are chosen."""
        return Decoding(self.max_tokens(task), self.temperature, self.settings.top_p if self.temperature else 1.0)


def plan(sources: Sequence[str], settings: Settings) -> Plan:
    """Opens every model by its small files, chooses the format and renders the prompts.

    Args:
        sources: Models; they must share a tokenizer.
        settings: What to ask.

    Raises:
        BadInput: A model, a task or a setting is not usable.
        Refused: The tokenizers differ, or a model has no rows for the ids of the prompts.
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
    tasks, standing_in = _tasks(settings.tasks or defaults(able), able)
    prompts = [render(found, chat, _SPLIT, _count(found, settings), settings.seeds[0]) for found in tasks]
    own, unwritten = _own(chats[0], chat, prompts, settings)
    family = all(source.startswith("family:") for source in sources)
    default = 0.0 if family else _TEMPERATURE
    temperature = default if settings.temperature is None else settings.temperature
    text, unread = _text(able, chat)
    ends = list(map(ending_ids, checkpoints, chats))
    tags = () if chat.think is None else (*chat.think.open_ids, *chat.think.close_ids)
    used = [*tags, *(i for row in (*_rows(prompts), *text[1]) for i in row)]
    longest = max(len(row) + _max_tokens(settings, p.task) for p in (*prompts, *own) for row in _rows([p]))
    return Plan(
        settings=settings,
        checkpoints=checkpoints,
        chat=chat,
        prompts=prompts,
        own=own,
        text=text,
        ends=frozenset().union(*ends),
        temperature=temperature,
        notes=[
            *_format(sources, chats, chat),
            *unwritten,
            *same_words(sources, chats, chat, prompts),
            *enough_rows(checkpoints, used),
            *enough_positions(checkpoints, longest),
            *endings(sources, ends),
            *standing_in,
            *_seeds(settings, temperature),
            *unread,
        ],
    )


def _rows(prompts: Sequence[Prompts]) -> list[list[int]]:
    """The ids of every prompt, in every mode."""
    return [row for p in prompts for rows in p.ids.values() for row in rows]


def _own(own: Chat, chat: Chat, prompts: Sequence[Prompts], settings: Settings) -> tuple[list[Prompts], list[str]]:
    """The items in the reference's own format, if that is another; a note where it cannot be written."""
    if own.template_hash == chat.template_hash:
        return [], []
    try:
        return [render(p.task, own, _SPLIT, len(p.items), settings.seeds[0]) for p in prompts], []
    except BadInput as problem:
        return [], [f"no row for the first model in its own format: {problem.error}"]


def _max_tokens(settings: Settings, found: Task) -> int:
    return settings.max_tokens or found.max_tokens or _MAX_TOKENS


def _text(able: Callable[[str], bool], chat: Chat) -> tuple[tuple[str, list[list[int]]], list[str]]:
    """The neutral text in windows of 64 tokens, so that its perplexity has an interval; a note where there is none."""
    try:
        name, pieces = neutral.documents(able)
    except BadInput as problem:
        return ("none", []), [f"no perplexity: {problem.error}"]
    ids = [chat.encode(piece) for piece in pieces]
    return (name, [window for row in ids for window in _windows(row)]), []


def _windows(row: list[int]) -> list[list[int]]:
    """A text in windows of 64 tokens; a short rest belongs to the last of them."""
    starts = range(0, max(1, len(row) - _WINDOW // 2), _WINDOW)
    return [row[a:b] for a, b in zip(starts, [*starts[1:], len(row)], strict=True)]


def _format(sources: Sequence[str], chats: Sequence[Chat], chat: Chat) -> list[str]:
    """What to say about the template and the think tags."""
    notes = []
    if chat.template is None:
        notes.append("no model has a chat template: plain prompts, 'Question: … Answer:'")
    elif any(c.template_hash != chat.template_hash for c in chats):
        notes.append(f"the templates differ: every model gets the prompts of {owner(chat, chats, sources)}")
    if chat.think is None:
        notes.append("this format has no think tags: thinking is not scored")
    return notes


def _tasks(names: Sequence[str], able: Callable[[str], bool]) -> tuple[list[Task], list[str]]:
    """The tasks of these names, each once, and what to say where one stands in for another."""
    found: dict[str, Task] = {}
    notes = []
    for name in names:
        one = task(name, able)
        if ":" not in name and one.name != name:
            notes.append(f"{name}: this tokenizer cannot write it, {one.name} stands in")
        if one.name in found:
            notes.append(f"{name} comes to {one.name}, which is asked already")
        found.setdefault(one.name, one)
    return list(found.values()), notes


def _seeds(settings: Settings, temperature: float) -> list[str]:
    if temperature or len(settings.seeds) == 1:
        return []
    return [f"greedy decoding gives one completion per item: of the seeds only {settings.seeds[0]} is used"]


def _count(found: Task, settings: Settings) -> int:
    """Items of a task: as asked of a named task, else no more than its split has."""
    wanted, limit = settings.n or _N, found.limit(_SPLIT)
    if limit == 0:
        raise BadInput(f"task {found.name} has no items in its {_SPLIT} split", "another task")
    named = bool(settings.tasks) and settings.n is not None
    return wanted if named or limit is None else min(wanted, limit)


def _check(settings: Settings) -> None:
    if settings.n is not None and not 1 <= settings.n <= MOST:
        raise BadInput(f"--n {settings.n} is not possible", "--n 200" if settings.n < 1 else f"--n {MOST}")
    if not settings.seeds or any(not 0 <= seed < 2**63 for seed in settings.seeds):
        raise BadInput("seeds are whole numbers from 0 to 2^63 − 1, at least one", "--seed 0")
    if len(set(settings.seeds)) < len(settings.seeds):
        raise BadInput("a seed is named twice: its samples would be counted twice", "--seed 0 1 2 3")
    if len(set(settings.tasks)) < len(settings.tasks):
        raise BadInput("a task is named twice: its completions would be counted twice", "name each task once")
    if settings.temperature is not None and settings.temperature and not COLDEST <= settings.temperature < math.inf:
        raise BadInput(f"--temperature {settings.temperature} is not possible", "--temperature 0.6, or 0 for greedy")
    if not 0 < settings.top_p <= 1:
        raise BadInput(f"--top-p {settings.top_p} is not possible", "--top-p 0.95")
    if settings.dtype not in DTYPES:
        raise BadInput(f"--dtype {settings.dtype} is not one of {', '.join(DTYPES)}", "--dtype auto")
    if settings.device not in DEVICES:
        raise BadInput(f"--device {settings.device} is not one of {', '.join(DEVICES)}", "--device cpu")
    if settings.batch_size < 1:
        raise BadInput(f"--batch-size {settings.batch_size} is not possible", "--batch-size 64")
    if settings.max_tokens is not None and settings.max_tokens < 1:
        raise BadInput(f"--max-tokens {settings.max_tokens} is not possible", "--max-tokens 4096")
