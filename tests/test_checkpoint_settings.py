"""Configs: what differs is listed; what makes equal weights another function is warned of, whatever its spelling."""

from pathlib import Path
from typing import Any

import pytest
from factories import tiny_config, tiny_tensors, write_checkpoint

from deltalens.checkpoint.pair import Pair
from deltalens.checkpoint.settings import differences, function_differences
from deltalens.checkpoint.source import Checkpoint

QWEN = tiny_config("qwen2")
YARN = {"rope_type": "yarn", "factor": 4.0}


def side(config: dict[str, Any]) -> Checkpoint:
    return Checkpoint("x", Path("x"), None, (), {}, config)


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in QWEN.items() if key not in keys}


FUNCTION: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "equal": (QWEN, QWEN, []),
    "theta": (QWEN, QWEN | {"rope_theta": 1e6}, ["rope_theta"]),
    "theta in the new place": (QWEN, without("rope_theta") | {"rope_parameters": {"rope_theta": 1e4}}, []),
    "theta by default": (QWEN, without("rope_theta"), []),
    "another theta in the new place": (QWEN, QWEN | {"rope_parameters": {"rope_theta": 1e6}}, ["rope_theta"]),
    "no scaling": (QWEN, QWEN | {"rope_scaling": None}, []),
    "default scaling": (QWEN, QWEN | {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, []),
    "scaling": (QWEN, QWEN | {"rope_scaling": YARN}, ["rope_scaling"]),
    "scaling as it was spelt": (
        QWEN | {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        QWEN | {"rope_parameters": YARN | {"rope_theta": 1e4}},
        [],
    ),
    "scaling factor": (
        QWEN | {"rope_scaling": YARN},
        QWEN | {"rope_scaling": YARN | {"factor": 2.0}},
        ["rope_scaling"],
    ),
    "head_dim": (QWEN, QWEN | {"head_dim": 16}, ["head_dim"]),
    "head_dim by default": (QWEN, without("head_dim"), []),
    "heads": (
        without("head_dim"),
        without("head_dim") | {"num_attention_heads": 2},
        ["num_attention_heads", "head_dim"],
    ),
    "key-value heads": (QWEN, QWEN | {"num_key_value_heads": 4}, ["num_key_value_heads"]),
    "key-value heads by default": (QWEN | {"num_key_value_heads": 4}, without("num_key_value_heads"), []),
    "eps": (QWEN, QWEN | {"rms_norm_eps": 1e-5}, ["rms_norm_eps"]),
    "activation": (QWEN, QWEN | {"hidden_act": "gelu"}, ["hidden_act"]),
    "norm type": (QWEN, QWEN | {"norm_type": "layernorm"}, ["norm_type"]),
    "window switched off": (QWEN, QWEN | {"sliding_window": 4096, "use_sliding_window": False}, []),
    "window off by default": (QWEN, QWEN | {"sliding_window": 4096}, []),
    "window": (QWEN, QWEN | {"sliding_window": 4096, "use_sliding_window": True}, ["sliding_window"]),
    "window of others": ({"model_type": "mistral"}, {"model_type": "mistral", "sliding_window": 4}, ["sliding_window"]),
    "no function of the weights": (
        QWEN,
        QWEN | {"vocab_size": 60, "max_position_embeddings": 9, "dtype": "float32"},
        [],
    ),
    "no config": ({}, QWEN, []),
    "multimodal": ({"text_config": QWEN}, QWEN, []),
    "nonsense": (QWEN | {"rope_parameters": 3, "head_dim": "x"}, QWEN | {"rope_scaling": [1]}, ["head_dim"]),
}


@pytest.mark.parametrize("kind", FUNCTION)
def test_what_changes_the_function(kind: str) -> None:
    base, tuned, expected = FUNCTION[kind]
    for a, b in ((base, tuned), (tuned, base)):
        found = {entry.setting for entry in function_differences(side(a), side(b))}
        assert found == set(expected)


def test_everything_that_differs_is_listed() -> None:
    tuned = QWEN | {"vocab_size": 60, "sliding_window": 9, "rope_scaling": YARN, "use_qk_norm": True, "max_length": 3}
    found = {entry.setting: entry.tuned for entry in differences(side(QWEN), side(tuned))}
    assert found == {"vocab_size": 60, "sliding_window": 9, "rope_scaling": YARN, "use_qk_norm": True}


def test_a_pair_warns_in_one_line(tmp_path: Path) -> None:
    paths = [
        str(write_checkpoint(tmp_path / name, tiny_tensors(), config))
        for name, config in (("a", tiny_config()), ("b", tiny_config(rope_theta=5e5, hidden_act="x" * 10**4)))
    ]
    (warning,) = Pair.open(*paths).warnings
    assert warning.startswith("the configs differ in hidden_act (not set and xxx")
    assert warning.endswith("rope_theta (10000.0 and 500000.0): the weights are read by different functions")
    assert len(warning) < 500
