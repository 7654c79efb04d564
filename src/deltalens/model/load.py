"""A transformers model and its tokenizer from any source that deltalens names; remote code is never run."""

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = ("float32", "float16", "bfloat16")


def load(source: str, dtype: str = "float32") -> "tuple[PreTrainedModel, Any]":
    """The model in evaluation mode and its tokenizer.

    Args:
        source: A local directory, `hub-id[@revision]` or `family:NAME`.
        dtype: `float32`, `float16` or `bfloat16`: the dtype of computation. Stored half precision is upcast
            exactly.

    Raises:
        BadInput: The source cannot be resolved or read, or the dtype is unknown.
    """
    from deltalens.checkpoint.source import resolve

    return load_directory(resolve(source), dtype)


def load_directory(path: Path, dtype: str = "float32") -> "tuple[PreTrainedModel, Any]":
    """The model and tokenizer of a local directory, nothing fetched."""
    if dtype not in DTYPES:
        raise BadInput(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}", "dtype float32, float16 or bfloat16")
    if not path.is_dir():
        raise BadInput(f"{path} is not a directory with a model", "give the directory that holds config.json")
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with no_bars():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,  # never a pickle
                dtype=getattr(torch, dtype),
            )
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BadInput(f"{path} does not load as a causal language model: {reason}") from error
    return model.eval(), tokenizer


@contextlib.contextmanager
def no_bars() -> Generator[None, None, None]:
    """Runs a block without transformers' own progress bars, which would tear ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
