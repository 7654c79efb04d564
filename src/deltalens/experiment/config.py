"""What an experiment is about and how much of it is run: read from TOML over the packaged defaults. Loads no torch."""

import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from deltalens.checkpoint.header import one_line
from deltalens.errors import BadInput
from deltalens.evaluate.plan import MOST, Settings
from deltalens.evaluate.tasks.registry import task
from deltalens.model.decoding import COLDEST
from deltalens.model.load import DEVICES, DTYPES
from deltalens.sweep.pair import FEW, GENERATE

DEFAULTS = Path(__file__).with_name("config.default.toml")
"""Every key with its default, commented line by line."""

DEMO = Path(__file__).with_name("config.demo.toml")
"""The embedded family, cut to what a laptop does in four minutes."""

ROLES = ("main", "safety", "sibling", "sft", "rl", "seed")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*", re.ASCII)
_LARGEST = 1_000_000  # bytes of a file; a device or a pipe may have no end
_CHOICES = {"nulls": ("off", "default", "full"), "generate": GENERATE, "dtype": DTYPES, "device": DEVICES}
_LEAST = dict.fromkeys(("n", "cells", "top", "batch_size"), 1)
_LEAST |= dict.fromkeys(("max_tokens", "temperature", "generated", "minutes"), 0)
_REAL = ("minutes", "temperature")
_MOST = {"n": MOST}


@dataclass(frozen=True, slots=True)
class PairOf:
    """One pair of the experiment.

    Attributes:
        name: Of its directory.
        base: As the user named it.
        tuned: Likewise.
        role: One of `ROLES`.
    """

    name: str
    base: str
    tuned: str
    role: str


@dataclass(frozen=True, slots=True)
class Config:
    """An experiment; `config.default.toml` says what each field is, and holds the defaults."""

    pairs: tuple[PairOf, ...]
    task: str
    n: int
    seeds: tuple[int, ...]
    max_tokens: int
    temperature: float
    generate: str
    generated: int
    ledger: bool
    kl: bool
    alphas: tuple[float, ...]
    parts: bool
    cells: int
    top: int
    context: bool
    nulls: str
    skip: tuple[str, ...]
    minutes: float
    batch_size: int
    dtype: str
    device: str

    @property
    def main(self) -> PairOf:
        """The pair in question."""
        return next(pair for pair in self.pairs if pair.role == "main")

    def of(self, role: str) -> tuple[PairOf, ...]:
        """The pairs of one role."""
        return tuple(pair for pair in self.pairs if pair.role == role)

    @property
    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @property
    def asked(self) -> Settings:
        """What every step that runs a model asks it; the decoding is the task's own."""
        return Settings(
            tasks=(self.task,) if self.task else (),
            n=self.n,
            seeds=self.seeds,
            max_tokens=self.max_tokens or None,
            batch_size=self.batch_size,
            dtype=self.dtype,
            device=self.device,
        )

    @property
    def evaluated(self) -> Settings:
        """What `eval` asks: as many items as are completed."""
        return replace(self.asked, n=self.completed)

    @property
    def swept(self) -> Settings:
        """What every intervention asks: decoded greedily unless the configuration says otherwise."""
        return replace(self.asked, temperature=self.temperature)

    @property
    def completed(self) -> int:
        """Items of a task that are completed."""
        return min(self.generated or self.n, self.n)

    @property
    def few(self) -> bool:
        """Whether only the pair and what a verdict cannot do without writes completions."""
        return self.generate == FEW


def read_config(path: str | Path) -> Config:
    """A configuration from a TOML file; what it leaves out is as in the defaults.

    Raises:
        BadInput: It cannot be read, holds an unknown key (the nearest is named) or an impossible value, or has not one
            main pair.
    """
    return _config(_read(path), str(path))


def default(base: str, tuned: str) -> Config:
    """The defaults, about one pair and no control."""
    return _config({"pairs": [{"name": "main", "base": base, "tuned": tuned, "role": "main"}]}, "the command")


def shortened(config: Config, minutes: float | None) -> Config:
    """The same within other minutes, as `--minutes` asks; None leaves it.

    Raises:
        BadInput: No time at all.
    """
    if minutes is None:
        return config
    if not 0 < minutes < float("inf"):
        raise BadInput(f"--minutes {minutes:g} is not possible", "--minutes 30")
    return replace(config, minutes=float(minutes))


def nearest(name: str, names: Sequence[str]) -> str:
    """The fix for a name that is none of these."""
    near = get_close_matches(name, names, n=1, cutoff=0.0)
    return f"{near[0]}; there are {', '.join(names)}"


def _read(path: str | Path) -> dict[str, Any]:
    try:
        found = Path(path)
        if found.exists() and not found.is_dir() and not found.is_file():
            raise BadInput(f"{path} is not a regular file", "--config FILE.toml")
        if (size := found.stat().st_size) > _LARGEST:
            raise BadInput(f"{path} holds {size:,} bytes, no configuration does", "--config FILE.toml")
        return tomllib.loads(found.read_bytes().decode("utf-8"))
    except OSError as problem:
        reason = (problem.strerror or one_line(problem)).lower()
        raise BadInput(f"cannot read {path}: {reason}", "--config FILE.toml") from None
    except (ValueError, RecursionError) as problem:  # not UTF-8, or no TOML
        raise BadInput(f"{path} is not TOML ({one_line(problem)})", "key = value lines, then [[pairs]]") from None


def _config(given: dict[str, Any], where: str) -> Config:
    values = _read(DEFAULTS)
    for key, value in given.items():
        if key not in values:
            raise BadInput(f"{where} has a key {key!r}", nearest(key, list(values)))
        values[key] = _value(key, value, values[key], where)
    plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    plain |= {"pairs": _pairs(values["pairs"], where), **{key: float(values[key]) for key in _REAL}}
    plain["alphas"] = tuple(map(float, values["alphas"]))
    if values["task"]:
        task(values["task"], None)  # a name that is none should not cost the other steps first
    return Config(**plain)


def _value(key: str, value: Any, like: Any, where: str) -> Any:
    """A value of the type of its default and of a possible size."""
    kinds: dict[str, tuple[type, ...]] = {"pairs": (dict,), "seeds": (int,), "alphas": (int, float), "skip": (str,)}
    if isinstance(like, list):
        fits = isinstance(value, list) and all(type(one) in kinds[key] for one in value)
    else:
        fits = type(value) in ((int, float) if key in _REAL else (type(like),))
    if not fits or (key in ("seeds", "alphas") and not value):
        raise BadInput(f"{where}: {key} = {value!r} is not possible", f"a value such as {key} = {like!r}".lower())
    if key in _CHOICES and value not in _CHOICES[key]:
        raise BadInput(f"{where}: {key} = {value!r} is not possible", nearest(value, _CHOICES[key]))
    if key in _LEAST and not _LEAST[key] <= value < 2**53:
        fix = f"at most {_MOST.get(key, 2**53 - 1)}" if value >= 2**53 else f"at least {_LEAST[key]}"
        raise BadInput(f"{where}: {key} = {value!r} is not possible", fix)
    if key == "temperature" and 0 < value < COLDEST:
        raise BadInput(f"{where}: {key} = {value!r} is not possible", "0 for greedy, or 0.6")
    if key in _MOST and value > _MOST[key]:
        raise BadInput(f"{where}: {key} = {value!r} is not possible", f"at most {_MOST[key]}")
    if key == "alphas" and not all(0 < one < math.inf for one in value):
        raise BadInput(f"{where}: alphas = {value!r} is not possible", "lengths above 0; steer-down takes their sign")
    if key == "seeds" and (len(set(value)) < len(value) or not all(0 <= one < 2**63 for one in value)):
        raise BadInput(f"{where}: seeds = {value!r} is not possible", "whole numbers from 0 to 2^63 − 1, each once")
    return value


def _pairs(tables: Sequence[dict[str, Any]], where: str) -> tuple[PairOf, ...]:
    names = [f.name for f in fields(PairOf)]
    found = []
    for table in tables:
        for key in table:
            if key not in names:
                raise BadInput(f"{where}: a pair has a key {key!r}", nearest(key, names))
        for key in names:
            if not isinstance(table.get(key), str) or not table[key]:
                raise BadInput(f"{where}: a pair has no {key}", f'{key} = "…" under [[pairs]]')
        pair = PairOf(**table)
        if not _NAME.fullmatch(pair.name):
            raise BadInput(f"{where}: {pair.name!r} is no name of a pair", "letters, digits and hyphens")
        if pair.role not in ROLES:
            raise BadInput(f"{where}: pair {pair.name} has role {pair.role!r}", nearest(pair.role, ROLES))
        if pair.base == pair.tuned:
            raise BadInput(f"{where}: base and tuned of pair {pair.name} are both {pair.base}", "two models")
        if pair.name in [other.name for other in found]:
            raise BadInput(f"{where}: two pairs are called {pair.name}", "a name of its own for each")
        found.append(pair)
    mains = sum(pair.role == "main" for pair in found)
    if mains != 1:
        fix = 'one [[pairs]] with role = "main", or deltalens run BASE TUNED'
        raise BadInput(f"{where} has {mains or 'no'} main pair{'s' * (mains > 1)}", fix)
    return tuple(found)
