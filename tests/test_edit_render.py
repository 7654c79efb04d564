"""One edit, several renderings: swapped weights, hooks, an adapter and a checkpoint compute the same function."""

from pathlib import Path
from typing import Any

import pytest
import torch
from edit_pairs import save_bank, save_pair
from tiny_models import texts

from deltalens.direction.bank import read_direction
from deltalens.edit import prove as prove_module
from deltalens.edit.edit import from_record
from deltalens.edit.hook import hook
from deltalens.edit.lora import to_adapter, write_lora
from deltalens.edit.plan import Plan, plan
from deltalens.edit.prove import TOLERANCE, logits, prove
from deltalens.edit.swap import swap
from deltalens.edit.tensors import changes
from deltalens.errors import BadInput, Refused
from deltalens.model.capture import capture_rows
from deltalens.model.load import load
from deltalens.model.select import EVERYWHERE
from deltalens.model.sites import Site


def opened(base: Path | str, tuned: Path | str | None, *steps: dict[str, Any]) -> Plan:
    sides = {"base": str(base)} | ({} if tuned is None else {"tuned": str(tuned)})
    return plan(from_record({**sides, "edit": list(steps)}))


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(model: Any, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


HALF = {"operator": "interpolate", "strength": 0.5}
REVERT = {"operator": "revert", "rank": 2}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_swap_is_put_back_bit_by_bit(tmp_path: Path, dtype: str) -> None:
    base, tuned = save_pair(tmp_path, "qwen3", dtype=torch.bfloat16)
    model, _ = load(str(base), dtype)
    before = state(model)
    with swap(model, opened(base, tuned, HALF)):
        assert not equal(model, before)
    assert equal(model, before)
    with pytest.raises(KeyboardInterrupt), swap(model, opened(base, tuned, HALF)):
        raise KeyboardInterrupt
    assert equal(model, before)


def test_a_swap_that_fails_half_way_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltalens.edit import swap as swap_module

    base, tuned = save_pair(tmp_path, "llama")
    model, _ = load(str(base))
    before, calls = state(model), iter(range(5))

    def fails(row: Any, matrix: Any) -> torch.Tensor:
        next(calls)
        return real(row, matrix)

    real = swap_module.as_stored
    monkeypatch.setattr(swap_module, "as_stored", fails)
    with pytest.raises(RuntimeError), swap(model, opened(base, tuned, HALF)):
        pytest.fail("the sixth tensor was swapped")
    assert equal(model, before)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "gpt_neox"])
def test_whole_edits_make_the_other_model_whichever_is_loaded(tmp_path: Path, architecture: str) -> None:
    base, tuned = save_pair(tmp_path, architecture)
    models = {"base": load(str(base))[0], "tuned": load(str(tuned))[0]}
    states = {side: state(model) for side, model in models.items()}
    to = {"base": 0, "tuned": 1}
    for loaded, model in models.items():
        for side, strength in to.items():
            edit = opened(base, tuned, {"operator": "interpolate", "strength": strength})
            with swap(model, edit, side=loaded):
                assert equal(model, states[side])
        with swap(model, opened(base, tuned, {"operator": "revert", "rank": "full", "kinds": ["all"]}), side=loaded):
            assert equal(model, states["base"])
        assert equal(model, states[loaded])
    halfway = opened(base, tuned, REVERT)
    with swap(models["base"], halfway, side="base"), swap(models["tuned"], halfway):
        assert equal(models["base"], models["tuned"].state_dict())  # what no operation touches is the tuned side's


CASES: dict[str, dict[str, Any]] = {
    "revert": REVERT,
    "truncate heads": {"operator": "truncate", "rank": 2, "heads": [1]},
    "lox": {"operator": "lox", "rank": 2, "kinds": ["linear"]},
    "interpolate": {**HALF, "kinds": ["linear"]},
    "restore": {"operator": "restore", "rank": 4, "kinds": ["linear"]},
    "cut writers": {"operator": "cut", "kinds": ["o_proj", "down_proj"]},
    "cut readers": {"operator": "cut", "kinds": ["q_proj", "k_proj", "v_proj", "up_proj"]},
    "cut embed": {"operator": "cut", "kinds": ["embed"]},
}
FUSED = ("gpt2", "gpt_neox")
STACKED = ("mixtral",)


OTHERS = ("qwen2", "gemma2", "olmo2", "gpt2", "gpt_neox", "phi", "mixtral")
FEW = ("revert", "cut writers")


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("llama", tuple(CASES)),
        *((other, FEW) for other in OTHERS),
        *(pytest.param(other, tuple(CASES), marks=pytest.mark.slow) for other in OTHERS),
    ],
)
def test_every_rendering_that_applies_agrees(tmp_path: Path, architecture: str, names: tuple[str, ...]) -> None:
    base, tuned = save_pair(tmp_path, architecture)
    bank = save_bank(tmp_path / "bank.safetensors", vectors=2)
    for name in names:
        step = CASES[name]
        if architecture in ("gpt2", "gpt_neox") and name in ("truncate heads", "cut embed"):
            continue  # fused heads are refused by name; GPT-NeoX's embedding is of no known kind
        proof = prove(opened(base, tuned, {**step, "direction": bank} if "cut" in name else step), prompts=texts())
        experts = architecture == "mixtral" and name not in ("truncate heads", "cut embed")
        assert ("hook" in proof.left_out) == experts, (name, proof.left_out)
        assert set(proof.differences) | set(proof.left_out) == {"hook", "lora", "checkpoint"}
        assert "checkpoint" in proof.differences and proof.effect > 100 * TOLERANCE, name  # something to agree on
        assert proof.rounded == 0.0 and not any(proof.rounding.values())  # stored in float32
        if name in ("revert", "truncate heads", "lox", "restore", "cut readers") and not experts:
            assert "lora" in proof.differences, (name, proof.left_out)


def test_a_tied_embedding_is_changed_in_both_its_roles(tmp_path: Path) -> None:
    base, _ = save_pair(tmp_path, "gemma2")  # whose embedding is scaled too
    step = {"operator": "cut", "direction": save_bank(tmp_path / "b.safetensors"), "kinds": ["embed"]}
    proof = prove(opened(base, None, step), prompts=texts())
    assert proof.differences["hook"] < TOLERANCE and "embed" in proof.left_out["lora"]


def test_nothing_is_left_along_a_cut_direction_in_the_running_model(tmp_path: Path) -> None:
    for architecture in ("llama", "olmo2"):
        base, _ = save_pair(tmp_path / architecture, architecture)
        bank = save_bank(tmp_path / f"{architecture}.safetensors")
        r = torch.from_numpy(read_direction(bank).basis).float().T
        model, _ = load(str(base))
        site = Site("resid_post", 2)
        for cut in (False, True):
            with swap(model, opened(base, None, {"operator": "cut", "direction": bank})) if cut else torch.no_grad():
                rows = capture_rows(model, texts(), [site], EVERYWHERE, project={site: r})[site]
            share = float((rows.values.abs().squeeze() / rows.norm).max())
            assert (share < 1e-5) == cut, (architecture, share)


def test_renderings_that_disagree_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = save_pair(tmp_path, "llama")
    real = prove_module.hook

    def wrong(model: Any, edit: Plan) -> Any:
        return real(model, opened(base, tuned, {**REVERT, "strength": 1.01}))

    monkeypatch.setattr(prove_module, "hook", wrong)
    with pytest.raises(Refused, match="hook and swap disagree"):
        prove(opened(base, tuned, REVERT), prompts=texts())


def test_what_rounding_does_is_reported_and_no_refusal(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, "llama", size=1e-4, dtype=torch.bfloat16)
    found = opened(base, tuned, {**REVERT, "strength": 0.02})
    proof = prove(found, prompts=texts())
    assert max(proof.differences.values()) < TOLERANCE < proof.rounded
    assert set(proof.rounding) == {row.name.name for row, _ in changes(found)} and max(proof.rounding.values()) > 0
    other = prove(found, seed=1, prompts=texts())
    assert other.rounded != proof.rounded and other.differences == proof.differences


def test_the_family_agrees_too(tmp_path: Path) -> None:
    proof = prove(opened("family:instruct", "family:reasoning", {"operator": "revert", "rank": "spikes"}))
    assert set(proof.differences) == {"hook", "lora", "checkpoint"} and not proof.left_out


def test_hooks_leave_the_weights_alone_and_go_again(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, "qwen2")
    model, _ = load(str(tuned))
    before, plain = state(model), logits(model, texts())
    with hook(model, opened(base, tuned, REVERT)):
        assert equal(model, before) and not torch.equal(logits(model, texts()), plain)
    assert torch.equal(logits(model, texts()), plain)
    with (
        pytest.raises(Refused, match="input_layernorm is not the weight or bias"),
        hook(model, opened(base, tuned, HALF)),
    ):
        pytest.fail("a norm has no hook")


def test_a_model_that_is_not_the_one_named_is_refused(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path / "a", "llama")
    other, _ = save_pair(tmp_path / "b", "gpt2")
    cases = (
        (other, "the loaded model keeps layers.0.self_attn.q_proj nowhere"),
        (tuned, "does not hold the base side's"),
    )
    for loaded, error in cases:
        model, _ = load(str(loaded))
        before = state(model)
        with pytest.raises(Refused, match=error), swap(model, opened(base, tuned, {**HALF, "kinds": ["linear"]})):
            pytest.fail("another model's weights were edited")
        assert equal(model, before)


def test_an_adapter_of_a_full_change_says_what_it_leaves_out(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, "llama")
    found = opened(base, tuned, HALF)
    adapter = to_adapter(found, rank=2)
    name = "layers.0.mlp.up_proj"
    made = {row.name.name: (row, form) for row, form in changes(found)}
    row, made_form = made[name]
    dense = torch.from_numpy(made_form.dense()).double() - torch.from_numpy(found.of("base", row).dense()).double()
    factors = adapter.factors[name]
    part = torch.from_numpy(factors.left @ factors.right)
    assert adapter.residuals[name] == pytest.approx(float(((dense - part) ** 2).sum() / (dense**2).sum()), rel=1e-4)
    assert adapter.residuals["layers.0.input_layernorm"] == 1.0
    write_lora(found, adapter, tmp_path / "lora")
    assert sorted(p.name for p in (tmp_path / "lora").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(Refused, match="not an empty directory"):
        write_lora(found, adapter, tmp_path / "lora")
    with pytest.raises(BadInput, match="rank 0"):
        to_adapter(found, rank=0)
    with pytest.raises(Refused, match="changes nothing"):
        to_adapter(opened(base, tuned, {**HALF, "strength": 0}))


def test_an_adapter_written_here_is_a_tuned_side(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, "llama")
    whole = opened(base, tuned, {"operator": "truncate", "rank": 3})
    write_lora(whole, to_adapter(whole), tmp_path / "lora")
    model, _ = load(str(base))
    with swap(model, whole):
        expected = logits(model, texts())
    for step in ({"operator": "interpolate", "strength": 1}, {"operator": "truncate", "rank": "full"}):
        with swap(model, opened(base, tmp_path / "lora", step)):
            found = logits(model, texts())
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    removed = opened(base, tmp_path / "lora", {"operator": "revert", "rank": "full"})
    assert not list(changes(removed, "base"))  # base plus adapter less adapter, bit by bit
