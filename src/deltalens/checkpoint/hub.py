"""The hub: a snapshot in the user's cache at a known commit, or its headers alone; all use of the network."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltalens.checkpoint.header import TensorInfo, one_line, tensor_info
from deltalens.errors import BadInput

# One copy of the weights and what is needed to run them: no pickles, no second layout, no subfolders.
_ALLOW = ["*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "vocab*", "merges.txt", "README.md"]
_IGNORE = ["*/*", "consolidated*"]


def download(repo: str, revision: str | None) -> tuple[Path, str | None]:
    """The local snapshot of a repository and its commit; the cache and `HF_HUB_OFFLINE` are respected."""
    import huggingface_hub as hub

    with _explained(repo, revision):
        path = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=_ALLOW, ignore_patterns=_IGNORE))
    return path, path.name if path.parent.name == "snapshots" else None


def headers(repo: str, revision: str | None) -> tuple[dict[str, TensorInfo], dict[str, Any], str | None] | None:
    """Tensors, config and commit of a repository from range requests; None where only its files can tell.

    Every `TensorInfo` names its shard by a relative path and counts its bytes from the start of the weights.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    from deltalens.checkpoint.source import read_config

    if constants.HF_HUB_OFFLINE:
        return None
    with _explained(repo, revision):
        try:
            commit = hub.model_info(repo, revision=revision).sha
        except Exception as problem:
            if _transport(problem) and not isinstance(problem, errors.HfHubHTTPError):
                return None  # not reached: the cache may hold it
            raise
        try:
            metadata = hub.get_safetensors_metadata(repo, revision=commit)
        except errors.NotASafetensorsRepoError:
            return None  # unusual file names, pickles or an adapter: the rules for directories tell them apart
        try:
            config = read_config(Path(hub.hf_hub_download(repo, "config.json", revision=commit)))
        except errors.EntryNotFoundError:
            config = {}
        tensors: dict[str, TensorInfo] = {}
        for file, content in sorted(metadata.files_metadata.items()):
            for name, entry in content.tensors.items():
                if name in tensors:
                    raise BadInput(f"{repo}: tensor {name!r} lies in both {tensors[name].file} and {file}")
                described = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": list(entry.data_offsets)}
                tensors[name] = tensor_info(name, described, Path(file), 0)
    return tensors, config, commit


def fetch(repo: str, name: str, revision: str | None) -> Path | None:
    """One small file of a repository through the cache, None if it has no such file.

    Raises:
        BadInput: The hub could not be asked.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    with _explained(repo, revision):
        try:
            return Path(hub.hf_hub_download(repo, name, revision=revision))
        except errors.LocalEntryNotFoundError:
            raise
        except errors.EntryNotFoundError:
            return None


def _transport(problem: Exception) -> bool:
    """Whether an error comes from the connection; the client's transports have families of their own."""
    families = ("httpx", "httpcore", "requests", "urllib3", "hf_xet")
    return isinstance(problem, OSError) or type(problem).__module__.startswith(families)


@contextmanager
def _explained(repo: str, revision: str | None) -> Generator[None]:
    """Turn what the hub's client raises into one line and what to do about it."""
    from huggingface_hub import constants, errors

    at = f"{repo}@{revision}" if revision else repo
    local = f"{repo} is no local path"
    try:
        yield
    except BadInput:
        raise
    except errors.GatedRepoError:
        fix = f"accept its terms at {constants.ENDPOINT}/{repo}, then run: hf auth login"
        raise BadInput(f"{repo} is gated and your token has no access", fix) from None
    except errors.RevisionNotFoundError:
        raise BadInput(f"{repo} has no revision {revision!r} on the hub", "name a branch, tag or commit") from None
    except errors.RepositoryNotFoundError:
        fix = "check the spelling; for a private repository run: hf auth login"
        raise BadInput(f"{local} and there is no such repository on the hub", fix) from None
    except errors.HFValidationError as problem:
        raise BadInput(f"{local} and no valid hub id ({one_line(problem)})") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            fix = "unset HF_HUB_OFFLINE, or name a local directory"
            raise BadInput(f"{local}, not in the hub's cache, and HF_HUB_OFFLINE is set", fix) from None
        fix = "check the path, or the connection"
        raise BadInput(f"{local}, not in the hub's cache, and the hub cannot be reached", fix) from None
    except errors.SafetensorsParsingError as problem:
        raise BadInput(f"{at}: a safetensors header on the hub cannot be read ({one_line(problem)})") from None
    except Exception as problem:
        if not _transport(problem):
            raise
        raise BadInput(f"{at} could not be fetched from the hub ({one_line(problem)})", "try again") from None
