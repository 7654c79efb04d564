"""One edit, several renderings: swapped weights, hooks, an adapter and a checkpoint compute the same function."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edit_pairs import save_bank, save_pair
from tiny_models import WIDTH, texts

from deltalens.direction.bank import read_direction
from deltalens.edit import layerwise
from deltalens.edit import prove as prove_module
from deltalens.edit.edit import from_record
from deltalens.edit.hook import Addition, added, hook
from deltalens.edit.layerwise import capture
from deltalens.edit.lora import to_adapter, write_lora
from deltalens.edit.plan import Plan, plan
from deltalens.edit.proof import TOLERANCE
from deltalens.edit.prove import available, fitting, logits, prove
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


def _memory(edit: Plan) -> dict[str, int]:
    """Bytes of memory for every way of proving an edit."""
    infos = edit.carrier.tensors.values()
    return {"whole model": 8 * sum(t.elements for t in infos), "captured": sum(t.end - t.start for t in infos), "": 0}


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "mixtral"])
def test_layer_by_layer_agrees_on_real_and_on_drawn_inputs(tmp_path: Path, architecture: str) -> None:
    base, tuned = save_pair(tmp_path, architecture)
    bank = save_bank(tmp_path / "bank.safetensors", vectors=2)
    cut = {"operator": "cut", "direction": bank, "kinds": ["o_proj", "down_proj", "embed"]}
    steps = (REVERT, {**HALF, "kinds": ["all"]}, cut)  # gains and biases among them; a tied table in both roles
    for step in steps if architecture in ("llama", "gemma2") else ({**HALF, "layers": "1"},):
        edit = opened(base, tuned, step)
        proofs = {way: prove(edit, prompts=texts(), free=free) for way, free in _memory(edit).items()}
        whole = proofs.pop("whole model")
        assert whole.mode == "whole model" and whole.inputs == "5 given prompts"
        for proof in proofs.values():
            assert proof.mode == "layer by layer" and proof.rounded is None
            assert set(proof.differences) == set(whole.differences)
            assert set(proof.left_out) == set(whole.left_out)
            assert set(proof.rounding) == set(whole.rounding) and not any(proof.rounding.values())
            assert max(proof.differences.values()) < TOLERANCE / 10 and proof.effect > 100 * TOLERANCE
        assert proofs["captured"].inputs.startswith("what 5 given prompts feed to each module")
        assert ("Gaussian inputs for" in proofs["captured"].inputs) == ("hook" in whole.left_out)
        assert proofs[""].inputs.startswith("seeded Gaussian inputs")


def test_layer_by_layer_takes_what_the_model_itself_feeds_to_a_module(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, "llama", dtype=torch.bfloat16)
    model, _ = load(str(base), "bfloat16")
    inputs, refused = capture(model, opened(base, tuned, HALF), texts())
    assert refused is None
    site = Site("head_in", 1)
    expected = capture_rows(model, texts(), [site], EVERYWHERE)[site]
    found = inputs["layers.1.self_attn.o_proj"][0].reshape(len(texts()), -1, WIDTH)
    for row, ids in enumerate(texts()):
        real = expected.values[expected.row == row][-8:]
        assert len(real) == min(8, len(ids)) and torch.equal(found[row, -len(real) :], real)
    assert {x.dtype for kept in inputs.values() for x in kept} == {torch.float32, torch.int64}


@pytest.mark.parametrize("way", ["captured", ""])
def test_layer_by_layer_finds_one_wrong_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    base, tuned = save_pair(tmp_path, "llama")
    edit = opened(base, tuned, REVERT)
    free = _memory(edit)[way]
    real_factors, real_read, calls = layerwise.factors, layerwise.read_adapter, iter(range(100))

    def wrong(change: Any) -> Any:
        left, right = real_factors(change)
        return left * (1.01 if next(calls) == 3 else 1.0), right

    def swapped_sides(folder: str) -> Any:
        return {name: replace(f, left=f.left[::-1].copy()) for name, f in real_read(folder).items()}

    fourth = list(edit.steps)[3]
    with monkeypatch.context() as patch:
        patch.setattr(layerwise, "factors", wrong)
        with pytest.raises(Refused, match=f"hook and swap disagree: outputs of {fourth} differ"):
            prove(edit, prompts=texts(), free=free)
    monkeypatch.setattr(layerwise, "read_adapter", swapped_sides)
    with pytest.raises(Refused, match="lora and swap disagree"):
        prove(edit, prompts=texts(), free=free)


def test_what_fits_decides_how_an_edit_is_proved() -> None:
    for stored in (100, 200, 400):  # bytes of 100 entries of 8, 16 and 32 bits
        assert [fitting(100, stored, free) for free in (800, 799, stored, stored - 1, 0)] == [
            "whole", "captured", "captured", "drawn", "drawn"
        ]  # fmt: skip
    assert 2**20 < available() < 2**50


def test_inputs_are_prompts_where_there_is_a_template_and_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer

    base, tuned = save_pair(tmp_path, "llama")
    edit = opened(base, tuned, REVERT)
    assert prove(edit).inputs == "4 rows of random ids (there is no chat template)"
    template = "{% for message in messages %}user\n{{ message['content'] }}{% endfor %}"
    (tuned / "chat_template.jinja").write_text(template)
    assert prove(edit).inputs == "4 chat prompts"
    seen = prove_module._chat_prompts(edit)
    tokenizer = Tokenizer.from_file(str(tuned / "tokenizer.json"))
    assert seen[0] == tokenizer.encode("user\n1+2+3=?").ids
    assert not any(tokenizer.token_to_id("<unk>") in ids for ids in seen)
    monkeypatch.setattr(prove_module, "_SUMS", ())
    model, _ = load(str(base))
    assert "the tokenizer lacks words" in prove_module._inputs(edit, model)[1]
    (tuned / "tokenizer.json").unlink()
    found, said = prove_module._inputs(edit, model)
    assert len(found) == 4 and "random ids" in said and "no tokenizer.json" in said


def test_what_rounding_does_is_reported_and_no_refusal(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, "llama", size=1e-4, dtype=torch.bfloat16)
    found = opened(base, tuned, {**REVERT, "strength": 0.02})
    proof = prove(found, prompts=texts())
    assert proof.rounded is not None and max(proof.differences.values()) < TOLERANCE < proof.rounded
    assert set(proof.rounding) == {row.name.name for row, _ in changes(found)} and max(proof.rounding.values()) > 0
    other = prove(found, seed=1, prompts=texts())
    assert other.rounded != proof.rounded and other.differences == proof.differences


def test_the_family_agrees_too(tmp_path: Path) -> None:
    for step in ({"operator": "revert", "rank": "spikes"}, {"operator": "negate"}):
        proof = prove(opened("family:instruct", "family:reasoning", step))
        assert proof.mode == "whole model" and proof.inputs == "4 chat prompts"
        assert {"hook", "checkpoint"} <= set(proof.differences)
        assert set(proof.left_out) == ({"lora"} if step["operator"] == "negate" else set())


def test_hooks_leave_the_weights_alone_and_go_again(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, "qwen2")
    model, _ = load(str(tuned))
    before, plain = state(model), logits(model, texts())
    with hook(model, opened(base, tuned, REVERT)):
        assert equal(model, before) and not torch.equal(logits(model, texts()), plain)
    assert torch.equal(logits(model, texts()), plain)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "olmo2", "gpt2", "gpt_neox", "phi"])
def test_edits_of_every_tensor_are_hooks_too_gains_and_biases_included(tmp_path: Path, architecture: str) -> None:
    """RMSNorm, gains stored less 1, norms of heads and of outputs, LayerNorms with biases."""
    base, tuned = save_pair(tmp_path, architecture)
    model, _ = load(str(base))
    plain = logits(model, texts())
    for step in (HALF, {"operator": "negate"}):
        for kinds in ("all", "vector"):
            edit = opened(base, tuned, {**step, "kinds": [kinds]})
            with swap(model, edit):
                swapped = logits(model, texts())
            with hook(model, edit):
                hooked = logits(model, texts())
            scale = swapped.abs().max()
            assert (hooked - swapped).abs().max() < 1e-5 * scale < 1e-3 * scale < (plain - swapped).abs().max()


def test_a_gain_of_zero_is_no_division_by_it(tmp_path: Path) -> None:
    base, _ = save_pair(tmp_path, "llama")
    model, _ = load(str(base))
    norm: Any = model.get_submodule("model.layers.1.input_layernorm")
    gain = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm.weight.zero_()
        with added([Addition(norm, gain[:, None], None)]):
            hooked = logits(model, texts())
        norm.weight.copy_(gain)
    assert (hooked - logits(model, texts())).abs().max() < 1e-6 * hooked.abs().max()


@pytest.mark.parametrize(
    ("architecture", "kinds", "reason"),
    [
        ("mixtral", "linear", r"experts\.0\.\w+ is an expert's: transformers stacks"),
        ("opt", "all", "is a table that its module looks up shifted"),
    ],
)
def test_what_hooks_cannot_take_is_refused_by_name(tmp_path: Path, architecture: str, kinds: str, reason: str) -> None:
    base, tuned = save_pair(tmp_path, architecture)
    model, _ = load(str(base))
    with (
        pytest.raises(Refused, match=reason),
        hook(model, opened(base, tuned, {**HALF, "kinds": [kinds]})),
    ):
        pytest.fail("there is no such hook")


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
