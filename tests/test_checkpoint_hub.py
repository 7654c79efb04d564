"""The hub, replaced by functions: what is downloaded, what is recorded, and every way in which it says no."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub as hub
import pytest
from factories import tiny_config, tiny_tensors, write_checkpoint, write_tokenizer
from httpx2 import ConnectError, Request, Response
from huggingface_hub import constants, errors

from deltalens.checkpoint.identity import identity
from deltalens.checkpoint.plan import plan
from deltalens.checkpoint.source import open_checkpoint, resolve
from deltalens.checkpoint.vocabulary import Token
from deltalens.errors import BadInput

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def http(kind: type[errors.HfHubHTTPError]) -> Exception:
    return kind("said no\nin two lines", response=Response(403, request=Request("GET", "https://example.invalid")))


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """One repository `owner/model`, in a cache like the hub's; returns the calls that were made."""
    folder = write_checkpoint(tmp_path / "hub" / "snapshots" / COMMIT, tiny_tensors(), tiny_config(), shards=2)
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo: str, **wanted: Any) -> str:
        calls.append({"repo": repo, **wanted})
        return str(folder)

    def model_info(repo: str, revision: str | None = None) -> SimpleNamespace:
        calls.append({"info": repo, "revision": revision})
        return SimpleNamespace(sha=COMMIT)

    def get_safetensors_metadata(repo: str, revision: str | None = None) -> SimpleNamespace:
        calls.append({"headers": repo, "revision": revision})
        files: dict[str, SimpleNamespace] = {}
        for info in open_checkpoint(str(folder)).tensors.values():
            data = info.file.stat().st_size - info.end  # any offsets do: nothing is read through them
            described = SimpleNamespace(
                dtype=info.dtype, shape=list(info.shape), data_offsets=(data, data + info.end - info.start)
            )
            files.setdefault(info.file.name, SimpleNamespace(tensors={})).tensors[info.name] = described
        return SimpleNamespace(files_metadata=files)

    def hf_hub_download(repo: str, filename: str, revision: str | None = None) -> str:
        calls.append({"file": filename, "revision": revision})
        if not (folder / filename).exists():
            raise http(errors.RemoteEntryNotFoundError)
        return str(folder / filename)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for function in (snapshot_download, model_info, get_safetensors_metadata, hf_hub_download):
        monkeypatch.setattr(hub, function.__name__, function)
    return calls


def fails(problem: Exception) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        raise problem

    return function


def test_a_snapshot_is_opened_at_its_commit(remote: list[dict[str, Any]]) -> None:
    opened = open_checkpoint("owner/model@main")
    assert opened.revision == COMMIT
    assert identity(opened) == {"commit": COMMIT}
    assert len(opened.tensors) == 24
    (call,) = remote
    assert (call["repo"], call["revision"]) == ("owner/model", "main")
    assert "*.safetensors" in call["allow_patterns"]
    assert not any("bin" in pattern for pattern in call["allow_patterns"])
    assert resolve("owner/model").name == COMMIT


def test_a_plan_reads_headers_at_one_commit_and_downloads_nothing(remote: list[dict[str, Any]], tmp_path: Path) -> None:
    local = write_checkpoint(tmp_path / "local", tiny_tensors(), tiny_config())
    found = plan(str(local), "owner/model@v1")
    assert found.tuned.revision == COMMIT
    assert found.tuned.bytes == found.base.bytes
    assert (found.tuned.files, found.statuses["measured"]) == (2, 15)
    assert not any("repo" in call for call in remote)
    assert [call["revision"] for call in remote][:3] == ["v1", COMMIT, COMMIT]
    assert {(call["file"], call["revision"]) for call in remote[3:]} == {
        ("README.md", COMMIT),
        ("tokenizer.json", COMMIT),
    }


def test_a_plan_fetches_tokenizer_and_card(remote: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "snapshots" / COMMIT
    local = write_tokenizer(write_checkpoint(tmp_path / "local", tiny_tensors(), tiny_config()), ["a", "b"])
    write_tokenizer(folder, ["a", "c"])
    (folder / "README.md").write_text("---\nbase_model:\n- owner/parent\n---\n")
    found = plan(str(local), "owner/model@v1")
    assert found.vocabulary == (Token(1, "b", "c"),)
    assert found.parentage.expected == ("owner/parent",)


def test_small_files_that_do_not_come_are_a_warning(
    remote: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write_tokenizer(write_checkpoint(tmp_path / "local", tiny_tensors(), tiny_config()), ["a", "b"])
    usual = hub.hf_hub_download

    def download(repo: str, filename: str, revision: str | None = None) -> str:
        if filename == "config.json":
            return usual(repo, filename, revision)
        raise errors.LocalEntryNotFoundError("x") if filename == "README.md" else ConnectError("no route")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    found = plan(str(local), "owner/model")
    assert (found.vocabulary, found.parentage.verdict) == (None, "unknown")
    (warning,) = found.warnings
    assert "token ids of the sides were not compared: owner/model" in warning


def test_a_download_brings_the_card(remote: list[dict[str, Any]]) -> None:
    open_checkpoint("owner/model")
    assert {"README.md", "*.json"} <= set(remote[0]["allow_patterns"])


def test_a_plan_offline_uses_the_cache(remote: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert plan("owner/model", "owner/model").base.revision == COMMIT
    assert all("repo" in call for call in remote)


@pytest.mark.parametrize("problem", [ConnectError("no route"), ConnectionError("reset"), TimeoutError("slow")])
def test_a_plan_without_a_network_uses_the_cache(
    problem: Exception, remote: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "model_info", fails(problem))
    assert plan("owner/model", "owner/model").base.revision == COMMIT


def test_a_repository_of_other_file_names_is_planned_from_its_files(
    remote: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "get_safetensors_metadata", fails(errors.NotASafetensorsRepoError("none")))
    assert plan("owner/model", "owner/model").statuses["measured"] == 15


def test_no_config_on_the_hub_is_an_empty_one(remote: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hf_hub_download", fails(http(errors.RemoteEntryNotFoundError)))
    assert open_checkpoint("owner/model", headers_only=True).config == {}


PROBLEMS: dict[str, tuple[Callable[[], Exception], str, str]] = {
    "gated": (lambda: http(errors.GatedRepoError), "is gated", "accept its terms"),
    "no revision": (lambda: http(errors.RevisionNotFoundError), "no revision 'v9'", "branch, tag or commit"),
    "no repository": (lambda: http(errors.RepositoryNotFoundError), "no such repository", "spelling"),
    "server": (lambda: http(errors.HfHubHTTPError), "could not be fetched", "try again"),
    "not in the cache": (lambda: errors.LocalEntryNotFoundError("x"), "cannot be reached", "connection"),
    "connection": (lambda: ConnectError("no route"), "could not be fetched from the hub .no route", "try again"),
    "invalid id": (lambda: errors.HFValidationError("bad"), "no valid hub id", ""),
    "disk full": (lambda: OSError(28, "No space left on device"), "No space left", "try again"),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_what_the_hub_says_is_one_line_and_a_fix(
    kind: str, remote: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, error, fix = PROBLEMS[kind]
    monkeypatch.setattr(hub, "snapshot_download", fails(problem()))
    with pytest.raises(BadInput, match=error) as raised:
        open_checkpoint("owner/model@v9")
    assert "owner/model" in raised.value.error
    assert "\n" not in raised.value.error
    assert fix in (raised.value.fix or "")


@pytest.mark.parametrize("function", ["model_info", "get_safetensors_metadata"])
def test_a_gated_repository_is_said_by_a_plan_too(
    function: str, remote: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, function, fails(http(errors.GatedRepoError)))
    with pytest.raises(BadInput, match="is gated"):
        open_checkpoint("owner/model", headers_only=True)


def test_offline_and_not_in_the_cache(remote: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "snapshot_download", fails(errors.LocalEntryNotFoundError("x")))
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE is set"):
        open_checkpoint("owner/model", headers_only=True)


def test_a_bug_is_not_hidden(remote: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot_download", fails(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        open_checkpoint("owner/model")


def test_the_real_client_reads_its_cache_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No replacement: huggingface_hub itself, offline, on a cache laid out as it lays one out."""
    repo = tmp_path / "models--owner--model"
    snapshot = write_checkpoint(repo / "snapshots" / COMMIT, tiny_tensors(), tiny_config(), shards=2)
    blobs = repo / "blobs"
    blobs.mkdir()
    for i, file in enumerate(sorted(snapshot.iterdir())):
        shutil.move(file, blobs / str(i))
        file.symlink_to(Path("../../blobs") / str(i))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    opened = open_checkpoint("owner/model")
    assert (opened.revision, len(opened.tensors)) == (COMMIT, 24)
    assert open_checkpoint(f"owner/model@{COMMIT}").tensors.keys() == opened.tensors.keys()
    with pytest.raises(BadInput, match="not in the hub's cache, and HF_HUB_OFFLINE is set"):
        open_checkpoint("owner/other")
    with pytest.raises(BadInput, match="not in the hub's cache, and HF_HUB_OFFLINE is set"):
        open_checkpoint("owner/model@v2")
