"""A transformers model and its tokenizer from any source that deltalens names; remote code is never run."""

import contextlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = ("auto", "float32", "float16", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")


def load(source: str, dtype: str = "auto", device: str = "auto") -> "tuple[PreTrainedModel, Any]":
    """The model in evaluation mode and its tokenizer.

    Args:
        source: A local directory, `hub-id[@revision]` or `family:NAME`, its weights in safetensors files.
        dtype: What to compute in: `float32`, `float16`, `bfloat16`, or `auto`: float32 on the CPU, the stored dtype on
            CUDA. Stored half precision is upcast exactly.
        device: `cpu`, `cuda`, or `auto`: CUDA where there is one.

    Raises:
        BadInput: The source cannot be resolved or read, is not complete, or needs code of its own; the dtype or device
            is unknown or absent.
    """
    from deltalens.checkpoint.source import open_checkpoint

    _check(dtype, device)
    return load_directory(open_checkpoint(source).path, dtype, device)


def load_directory(path: Path, dtype: str = "float32", device: str = "cpu") -> "tuple[PreTrainedModel, Any]":
    """The model and tokenizer of a local directory, nothing fetched; see `load`."""
    _check(dtype, device)
    if not path.is_dir():
        raise BadInput(f"{path} is not a directory with a model", "give the directory that holds config.json")
    import torch
    from transformers import AutoModelForCausalLM

    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if dtype == "auto" and place == "cpu":
        dtype = "float32"
    try:
        with no_bars():
            tokenizer: Any = _tokenizer_class(path).from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,  # never a pickle
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
                dtype=dtype,
            )
            model, info = loaded
            model = model.to(place).eval()
    except Exception as error:  # foreign code over foreign files: whatever it raises, the files are why
        reason = next(iter(str(error).strip().splitlines()), "")
        if "trust_remote_code" in str(error):
            reason = "it needs Python code of its own, which is never run"
        raise BadInput(f"{path} does not load as a causal language model: {reason or type(error).__name__}") from error
    # transformers fills what is missing or of another shape with random numbers.
    if wrong := sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}):
        raise BadInput(
            f"{path} lacks {len(wrong)} of the tensors that its config.json describes: {', '.join(wrong[:3])}"
        )
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):  # made up where no file was found
        raise BadInput(f"{path} holds no tokenizer", "put the model's tokenizer.json there")
    return model, tokenizer


def _tokenizer_class(path: Path) -> Any:
    """The class that the files name where it is the plain one, which transformers replaces for some architectures."""
    import transformers

    file = path / "tokenizer_config.json"
    named = json.loads(file.read_text()).get("tokenizer_class") if file.is_file() else None
    return transformers.PreTrainedTokenizerFast if named == "PreTrainedTokenizerFast" else transformers.AutoTokenizer


def _check(dtype: str, device: str) -> None:
    """Refuses an unknown dtype, and a device that is unknown or absent."""
    if dtype not in DTYPES:
        raise BadInput(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}", "--dtype auto")
    if device not in DEVICES:
        raise BadInput(f"device {device!r} is not one of {', '.join(DEVICES)}", "--device cpu")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BadInput("device cuda: torch sees no CUDA device here", "--device cpu")


@contextlib.contextmanager
def no_bars() -> Generator[None, None, None]:
    """Runs a block without transformers' own progress bars and warnings, which would tear ours."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
