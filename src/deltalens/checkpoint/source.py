"""Open a checkpoint by its headers: from a path, `family:NAME` or a hub id, whole or sharded."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.checkpoint.header import CORRUPT, json_type, read_header, read_json, unreadable
from deltalens.checkpoint.header import TensorInfo as TensorInfo
from deltalens.errors import BadInput

INDEX = "model.safetensors.index.json"
_FAMILY = Path(__file__).parent.parent / "family" / "models"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_WEIGHT_FILES = (".safetensors", ".gguf", ".json", ".npz", *_PICKLES)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?(?:@[^\s@]+)?", re.ASCII)
_SHARD = re.compile(r"model-([0-9]{5})-of-([0-9]{5})\.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One side of a pair, opened by its headers.

    Args:
        source: What the user named.
        path: The local directory or file; for a hub repository opened by headers alone, its id without revision.
        revision: The commit of a hub repository.
        files: The files that hold tensors, sorted by name.
        tensors: Every tensor by stored name.
        config: The parsed config.json, empty where a bare file has none beside it.
        remote: Whether only headers were read, from the hub: there are no local files.
    """

    source: str
    path: Path
    revision: str | None
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    config: dict[str, Any]
    remote: bool = False

    def file(self, name: str) -> Path | None:
        """A small file that lies beside the weights (fetched where they are on the hub), None if there is none.

        Raises:
            BadInput: The hub could not be asked.
        """
        if self.remote:
            from deltalens.checkpoint import hub

            return hub.fetch(str(self.path), name, self.revision)
        path = (self.path if self.path.is_dir() else self.path.parent) / name
        return path if _exists(path) and path.is_file() else None

    def setting(self, key: str) -> Any:
        """A config value of the language model (multimodal: of its `text_config`), None if absent."""
        inner = self.config.get("text_config")
        if isinstance(inner, dict) and key in inner:
            return inner[key]
        return self.config.get(key)


def resolve(source: str | os.PathLike[str]) -> Path:
    """The local path of a checkpoint, downloaded to the hub's cache where `source` is a hub id.

    Raises:
        BadInput: There is no such path, family member or repository.
    """
    return _locate(_text(source))[0]


def open_checkpoint(source: str | os.PathLike[str], headers_only: bool = False) -> Checkpoint:
    """Open a checkpoint without reading a weight.

    Args:
        source: A local directory or file, `hub-id[@revision]`, or `family:NAME`.
        headers_only: Read a hub repository's headers and do not download it; no tensor can be read then.

    Raises:
        BadInput: It is missing, malformed, incomplete, or of a kind that is never loaded.
    """
    source = _text(source)
    if headers_only and hub_id(source):
        from deltalens.checkpoint import hub

        remote = hub.headers(*_split(source))
        if remote is not None:
            tensors, config, commit = remote
            files = tuple(sorted({info.file for info in tensors.values()}))
            return Checkpoint(source, Path(_split(source)[0]), commit, files, tensors, config, remote=True)
    path, revision = _locate(source)
    try:
        files, tensors = _open_directory(path) if path.is_dir() else _open_file(path)
        if not tensors:
            raise BadInput(f"{source} is not a checkpoint: it holds no tensor")
        folder = path if path.is_dir() else path.parent
        config = read_config(folder / "config.json")
    except OSError as problem:
        raise unreadable(path, problem) from None
    return Checkpoint(source, path, revision, files, tensors, config)


def _text(source: Any) -> str:
    """A source as text: pathlib paths are welcome."""
    try:
        return os.fsdecode(source)
    except TypeError:
        raise BadInput(f"a checkpoint is named by a path or text, not by {source!r}") from None


def read_config(path: Path) -> dict[str, Any]:
    """A model's config.json, `{}` where there is none."""
    if not os.path.lexists(path):  # a dangling link is a damaged download, not a missing config
        return {}
    config = read_json(path)
    if not isinstance(config, dict):
        raise BadInput(f"{path} is a JSON {json_type(config)}, not an object", CORRUPT)
    return config


def family_names() -> list[str]:
    """The embedded checkpoints that `family:NAME` can name."""
    return sorted(p.name for p in _FAMILY.iterdir() if p.is_dir()) if _FAMILY.is_dir() else []


def family_root() -> Path:
    """The folder of the embedded checkpoints and their recipe."""
    return _FAMILY


def repository(source: str) -> str:
    """A hub id without its revision."""
    return _split(source)[0]


def hub_id(source: str) -> bool:
    """Whether a source can only be meant as a hub id: it is no local path and does not look like one."""
    if source.startswith("family:") or _HUB_ID.fullmatch(source) is None or _exists(Path(source)):
        return False
    repo = _split(source)[0]
    if repo.endswith(_WEIGHT_FILES) or repo.count("/") > 1:
        return False
    return "/" not in repo or not _exists(Path(repo).parent)


def _split(source: str) -> tuple[str, str | None]:
    repo, _, revision = source.partition("@")
    return repo, revision or None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, a zero byte, a forbidden parent
        return False


def _locate(source: str) -> tuple[Path, str | None]:
    """The local path and, for a hub id, its commit."""
    if source.startswith("family:"):
        return _family(source.removeprefix("family:")), None
    if hub_id(source):
        from deltalens.checkpoint import hub

        return hub.download(*_split(source))
    path = Path(source)
    if source.startswith("~"):
        try:
            path = path.expanduser()
        except RuntimeError:  # no such user
            raise BadInput(f"{source}: no such file or directory") from None
    try:
        if not source or not path.exists():
            raise BadInput(f"{source or '(an empty path)'}: no such file or directory", _nearest(path))
    except ValueError:
        raise BadInput(f"{source!r}: no such file or directory") from None
    except OSError as problem:
        raise unreadable(path, problem) from None
    return path, None


def _nearest(path: Path) -> str:
    """What to do about a missing path: the sibling that was probably meant, or how to name a checkpoint."""
    try:
        siblings = [p.name for p in path.parent.iterdir()] if path.name else []
    except (OSError, ValueError):
        siblings = []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    if near:
        return f"did you mean {path.parent / near[0]}?"
    return "name a directory, a .safetensors file, a hub id (owner/name[@revision]) or family:NAME"


def _family(name: str) -> Path:
    names = family_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        listed = ", ".join(f"family:{n}" for n in names) or "none"
        hint = f"did you mean family:{near[0]}? " if near else ""
        raise BadInput(f"the family has no member {name!r}", f"{hint}there are {listed}")
    return _FAMILY / name


def _open_file(path: Path) -> tuple[tuple[Path, ...], dict[str, TensorInfo]]:
    if path.suffix == ".gguf":
        raise BadInput(f"{path} is a GGUF file, which is not read", "name the Hugging Face checkpoint it was made from")
    if path.suffix in _PICKLES:
        raise _pickle(path)
    if path.name.endswith(".index.json"):
        raise BadInput(f"{path} is an index, not a checkpoint", f"name its directory, {path.parent}")
    if path.name.startswith("adapter_model"):
        raise _adapter(path)
    if path.suffix != ".safetensors":
        raise BadInput(f"{path} is not a safetensors file", "name a checkpoint directory or a .safetensors file")
    return (path,), read_header(path)


def _open_directory(path: Path) -> tuple[tuple[Path, ...], dict[str, TensorInfo]]:
    index = path / INDEX
    if index.exists():
        return _open_index(index)
    present = sorted(p.name for p in path.iterdir())
    weights = [name for name in present if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if not weights:
        raise _no_weights(path, present)
    if "model.safetensors" in weights:
        weights = ["model.safetensors"]
    elif numbered := [name for name in weights if _SHARD.fullmatch(name)]:
        weights = _complete(path, numbered)
    elif named := [name for name in weights if not name.startswith("consolidated")]:
        weights = named  # a second copy of the same weights in the maker's own layout does not count
    return _merge(path, {name: read_header(path / name) for name in weights})


def _complete(path: Path, numbered: list[str]) -> list[str]:
    """The shards of a numbered set without an index; a gap means an unfinished download."""
    totals = sorted({name.rpartition("-of-")[2] for name in numbered})
    if len(totals) > 1:
        raise BadInput(f"{path} holds shards of several sets without an index", f"keep one set, or add {INDEX}")
    total = int(totals[0].removesuffix(".safetensors"))
    if total != len(numbered):
        raise BadInput(f"{path} holds {len(numbered)} of {total} shards", "finish the download")
    return numbered


def _open_index(index: Path) -> tuple[tuple[Path, ...], dict[str, TensorInfo]]:
    content = read_json(index)
    if not isinstance(content, dict):
        raise BadInput(f"{index} is a JSON {json_type(content)}, not an object", CORRUPT)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict):
        raise BadInput(f"{index} has no weight_map object", CORRUPT)
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise BadInput(f"{index} names a JSON {json_type(shard)} as the shard of {name!r}", CORRUPT)
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        _check_shard(index, shard)
    headers = {shard: read_header(index.parent / shard) for shard in shards}
    for name, shard in weight_map.items():
        if name not in headers[shard]:
            raise BadInput(f"{index} lists tensor {name!r} in {shard}, which does not hold it", CORRUPT)
    return _merge(index.parent, headers)


def _check_shard(index: Path, shard: str) -> None:
    """An index may name files in its own directory only; links are fine, the hub's cache is made of them."""
    parts = shard.replace("\\", "/").split("/")
    if not shard or "\0" in shard or Path(shard).is_absolute() or parts[0] == "" or ".." in parts or ":" in shard:
        raise BadInput(f"{index} names a shard outside its directory: {shard!r}", "get the checkpoint from its source")
    if not shard.endswith(".safetensors"):
        raise BadInput(f"{index} names a shard that is not a safetensors file: {shard!r}", CORRUPT)
    if not (index.parent / shard).is_file():
        raise BadInput(f"{index} names a missing shard: {shard}", "finish the download")


def _merge(path: Path, headers: dict[str, dict[str, TensorInfo]]) -> tuple[tuple[Path, ...], dict[str, TensorInfo]]:
    tensors: dict[str, TensorInfo] = {}
    for header in headers.values():
        for name, info in header.items():
            if name in tensors:
                both = f"{tensors[name].file.name} and {info.file.name}"
                raise BadInput(f"{path}: tensor {name!r} lies in both {both}", f"keep one copy, or add {INDEX}")
            tensors[name] = info
    return tuple(path / name for name in sorted(headers)), tensors


def _pickle(path: Path) -> BadInput:
    fix = "convert to safetensors: transformers' save_pretrained writes it"
    return BadInput(f"{path}: pickle checkpoints are never loaded, they can run code", fix)


def _adapter(path: Path) -> BadInput:
    return BadInput(f"{path} is a PEFT adapter, not a checkpoint", "merge it into its base model and save that")


def _no_weights(path: Path, present: list[str]) -> BadInput:
    """Why a directory without safetensors weights is refused, as exactly as its files tell."""
    if any(name.startswith("adapter_") for name in present):
        return _adapter(path)
    if pickles := [name for name in present if name.endswith(_PICKLES)]:
        return _pickle(path / pickles[0])
    if ggufs := [name for name in present if name.endswith(".gguf")]:
        return BadInput(f"{path} holds only GGUF ({ggufs[0]}), which is not read", "name the original checkpoint")
    return BadInput(f"{path} is not a checkpoint: it holds no .safetensors file", "name the model's own directory")
