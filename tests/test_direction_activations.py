"""Directions from activations: planted ones found, spans to the token, and the verbs as a user meets them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deltalens.checkpoint.chat import read_chat
from deltalens.checkpoint.pair import Pair
from deltalens.checkpoint.source import open_checkpoint, resolve
from deltalens.cli.compare import Compare
from deltalens.cli.directions import Activations, Weights
from deltalens.direction import spans
from deltalens.direction.activations import (
    Place,
    from_models,
    from_prompts,
    matrix_inputs,
    mean_writes,
    read,
)
from deltalens.direction.bank import read_bank, read_direction
from deltalens.direction.compare import compare
from deltalens.direction.direction import SAMPLES, Direction
from deltalens.direction.spaces import SPACE_OF
from deltalens.direction.spans import from_spans
from deltalens.direction.weights import from_run, pair_of
from deltalens.errors import BadInput, Refused
from deltalens.evaluate.tasks.registry import task
from deltalens.methods.matched import read_groups, rendered
from deltalens.model.load import load
from deltalens.model.points import NAMES
from deltalens.spectrum.measure import measure_diff
from deltalens.store.run import Run

LAYER = 2
O_PROJ = f"model.layers.{LAYER}.self_attn.o_proj.weight"


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))


def by_id(directions: list[Direction]) -> dict[str, Direction]:
    return {d.id: d for d in directions}


@pytest.fixture(scope="module")
def chat():
    return read_chat(open_checkpoint("family:instruct"))


@pytest.fixture(scope="module")
def prompts(chat) -> list[list[int]]:
    return rendered(chat, task("chain-hard", None).items("extract", 60, 0))


@pytest.fixture(scope="module")
def base():
    return load("family:instruct", "float32", "cpu")[0]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, base, prompts) -> tuple[Path, np.ndarray]:
    """A copy of the instruct model whose o_proj of one layer writes one more direction where it reads chains."""
    folder = tmp_path_factory.mktemp("planted") / "model"
    folder.mkdir()
    source = resolve("family:instruct")
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    pair = Pair.open("family:instruct", "family:instruct")
    x = matrix_inputs(base, pair, prompts, Place(), ("o_proj",))[f"layers.{LAYER}.self_attn.o_proj"]
    u = torch.nn.functional.normalize(torch.randn(128, generator=torch.Generator().manual_seed(0)), dim=0)
    tensors = load_file(source / "model.safetensors")
    fires = torch.from_numpy(x / np.linalg.norm(x) ** 2).float()
    tensors[O_PROJ] = (tensors[O_PROJ].float() + 2.0 * torch.outer(u, fires)).to(tensors[O_PROJ].dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, u.numpy()


@pytest.fixture(scope="module")
def tuned(planted):
    return load(str(planted[0]), "float32", "cpu")[0]


def test_planted_direction_is_found_from_activations(base, tuned, planted, prompts) -> None:
    u = planted[1]
    written = by_id(from_models(tuned, base, prompts, Place("attn_out", (LAYER,)), {}, 0))
    for kind in ("difference", "pca"):
        assert cosine(written[f"layers.{LAYER}.{kind}"].vectors[0], u) > 0.999
    # The difference of means has the length of what was planted: 2·⟨x, E[x]⟩/‖E[x]‖² is 2 on average.
    assert np.linalg.norm(written[f"layers.{LAYER}.difference"].vectors) == pytest.approx(2.0, rel=0.02)
    after = by_id(from_models(tuned, base, prompts, Place(), {"model": "x"}, 0))
    found = after[f"layers.{LAYER}.difference"]
    assert cosine(found.vectors[0], u) > 0.9
    assert (found.layer, found.site, found.space, found.sign) == (LAYER, "resid_post", "residual", "contrast")
    assert (found.contrast, found.seeds, found.source["model"]) == ("tuned − base", (0,), "x")
    assert not any(d.layer is not None and d.layer < LAYER for d in after.values())  # nothing differs before
    h = read(base, prompts, Place()).norms[LAYER].mean()
    assert found.source["relative_norm"] == pytest.approx(np.linalg.norm(found.vectors) / h, rel=1e-5)
    samples = after[found.source["samples"]]
    assert samples.kind == SAMPLES
    np.testing.assert_allclose(samples.vectors.mean(0), found.vectors[0], atol=1e-4)


def test_mean_writes_are_what_the_delta_writes(base, tuned, planted, prompts) -> None:
    folder, u = planted
    pair = Pair.open("family:instruct", str(folder))
    models = {"base": base, "tuned": tuned}
    norms = dict.fromkeys(range(4), 1.0)
    found = by_id(mean_writes(pair, models, prompts, Place(), {}, norms))
    name = f"layers.{LAYER}.self_attn.o_proj.write"
    assert set(found) == {f"{name}.base", f"{name}.tuned"}  # nothing else changed
    for side in models:  # attention of this layer reads what both models share, so both see the same inputs
        write = found[f"{name}.{side}"]
        assert cosine(write.vectors[0], u) > 0.999
        assert np.linalg.norm(write.vectors) == pytest.approx(2.0, rel=0.02)
        assert write.source["relative_norm"] == pytest.approx(2.0, rel=0.02)


def test_one_model_two_groups(base, chat) -> None:
    easy, hard = (task(name, None).items("extract", 40, 0) for name in ("chain-easy", "chain-hard"))
    first, second = rendered(chat, hard), rendered(chat, easy)
    found = by_id(from_prompts(base, first, second, Place(layers=(1, 3)), {}, 0))
    assert {d.layer for d in found.values()} == {1, 3}
    assert not any(d.kind == "pca" for d in found.values())  # no pairs
    a, b = (read(base, group, Place(layers=(3,))).values[3].astype(np.float64) for group in (first, second))
    np.testing.assert_allclose(found["layers.3.difference"].vectors[0], a.mean(0) - b.mean(0), atol=1e-5)
    probe = found["layers.3.probe"]
    assert probe.source["right"] / probe.source["held_out"] > 0.9
    assert found["layers.3.samples"].source["first"] == 40
    paired = by_id(from_prompts(base, first, second, Place(layers=(3,)), {}, 0, paired=True))
    assert "layers.3.pca" in paired
    assert paired["layers.3.samples"].source["first"] is None


def test_reading_is_the_last_token_whatever_the_padding(base, prompts) -> None:
    """Batched with others or alone, by hook or by the model's own hidden states."""
    together = read(base, prompts[:7], Place(layers=(1,)))
    for i in (0, 6):
        with torch.no_grad():
            states = base(input_ids=torch.tensor([prompts[i]]), output_hidden_states=True).hidden_states
        np.testing.assert_allclose(together.values[1][i], states[2][0, -1].numpy(), atol=1e-4)
        assert together.norms[1][i] == pytest.approx(float(states[2][0, -1].norm()), rel=1e-4)


def test_spans_are_read_to_the_token(base, chat) -> None:
    """Long less short thinking is the mean over exactly the tokens inside the blocks of the longest and shortest."""
    items = [i for k in (1, 3, 8) for i in task("chain", None).items("extract", 80, 0) if i.depth == k][:18]
    prompts = rendered(chat, items, "forced")
    completions = [chat.encode(f"{item.work}</think>{item.answer}<|im_end|>") for item in items]
    found = by_id(from_spans(base, chat, prompts, completions, Place(layers=(1,)), {}, 0))
    lengths = [len(chat.encode(item.work)) for item in items]
    order = np.argsort(lengths, kind="stable")
    third = len(items) // 3

    def block_mean(i: int) -> np.ndarray:
        text = [*prompts[i], *completions[i]]
        with torch.no_grad():
            states = base(input_ids=torch.tensor([text]), output_hidden_states=True).hidden_states[2][0]
        return states[len(prompts[i]) : len(prompts[i]) + lengths[i]].double().mean(0).numpy()

    long, short = (np.mean([block_mean(i) for i in part], axis=0) for part in (order[-third:], order[:third]))
    np.testing.assert_allclose(found["layers.1.difference"].vectors[0], long - short, atol=1e-4)
    source = found["layers.1.difference"].source
    assert source["median_tokens"][0] > source["median_tokens"][1]
    assert found["layers.1.difference"].contrast == "long − short thinking"


def test_a_behaviour_is_its_window_less_the_rest(base, chat) -> None:
    items = [i for i in task("chain-hard", None).items("extract", 12, 0) if i.depth >= 6][:6]
    prompts = rendered(chat, items, "forced")
    completions = [chat.encode(f"{item.work}</think>{item.answer}<|im_end|>") for item in items]
    found = by_id(from_spans(base, chat, prompts, completions, Place(layers=(1,)), {}, 0, pattern=r" d="))
    differences = []
    for item, prompt, completion in zip(items, prompts, completions, strict=True):
        inside = chat.encode(item.work)
        at = next(i for i, token in enumerate(inside) if chat.decode([token]).startswith(" d="))
        window = range(max(0, at - spans.BEFORE), min(len(inside), at + spans.AFTER))
        with torch.no_grad():
            text = torch.tensor([[*prompt, *completion]])
            states = base(input_ids=text, output_hidden_states=True).hidden_states[2][0].double().numpy()
        block = states[len(prompt) : len(prompt) + len(inside)]
        rest = [i for i in range(len(inside)) if i not in window]
        differences.append(block[list(window)].mean(0) - block[rest].mean(0))
    np.testing.assert_allclose(found["layers.1.difference"].vectors[0], np.mean(differences, axis=0), atol=1e-4)
    assert found["layers.1.samples"].source["first"] is None
    with pytest.raises(BadInput, match="splits 0 think blocks"):
        from_spans(base, chat, prompts, completions, Place(), {}, 0, pattern="wait")
    with pytest.raises(BadInput, match="no regular expression"):
        from_spans(base, chat, prompts, completions, Place(), {}, 0, pattern="(")


def test_a_site_has_the_space_of_the_matrix_side_there(base, prompts, planted_run: str) -> None:
    assert set(SPACE_OF) == set(NAMES)
    run = Run.open(planted_run)
    acts = from_prompts(base, prompts[:20], prompts[20:40], Place("head_in", (LAYER,)), {}, 0)
    (right,) = (
        d for d in from_run(run, pair_of(run), "*o_proj", 1) if d.id.endswith(f"{LAYER}.self_attn.o_proj.right")
    )
    assert {d.space for d in acts} == {right.space} == {"head space"}
    assert compare([right], acts)


def test_spans_end_where_an_evaluation_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation config that names no ending token leaves it to the config, before the tokenizer."""
    model = tmp_path / "model"
    shutil.copytree(resolve("family:reasoning"), model)
    (model / "generation_config.json").write_text("{}")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    seen = []
    monkeypatch.setattr(
        "deltalens.model.generate.generate_ids", lambda m, ids, d, *, ends: seen.append(ends) or [[7]] * len(ids)
    )
    with pytest.raises(BadInput, match="too few or all as long"):
        Activations(str(model), str(tmp_path / "b"), contrast="spans", layers=(1,), quiet=True).run()
    assert seen == [{7}]


def test_identical_models_have_no_direction(base, prompts) -> None:
    with pytest.raises(BadInput, match="do not differ"):
        from_models(base, base, prompts[:8], Place(), {}, 0)


@pytest.fixture(scope="module")
def planted_run(planted, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run") / "run"
    measure_diff(Pair.open("family:instruct", str(planted[0])), folder, context=False, nulls="off", threads=1)
    return str(folder)


def test_the_verbs_find_what_was_planted(
    planted, planted_run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, u = planted
    name = f"layers.{LAYER}.self_attn.o_proj.left"
    weights, acts = str(tmp_path / "w.safetensors"), str(tmp_path / "a.safetensors")
    orient = Weights(planted_run, weights, matrix="*o_proj", top=1, orient=str(folder), quiet=True)
    assert orient.run() == 0
    found = read_direction(f"{weights}#{name}", width=128)
    assert found.sign == "oriented"
    assert cosine(found.vectors[0], u) > 0.95  # with its sign
    assert "oriented" in capsys.readouterr().out
    models = Activations(str(folder), acts, against="family:instruct", quiet=True)
    assert models.run() == 0
    assert cosine(read_direction(f"{acts}#layers.{LAYER}.difference").vectors[0], u) > 0.9
    said = capsys.readouterr().out
    assert "tuned − base" in said and "±1.96/√128 = ±0.17" in said
    with pytest.raises(Refused, match="exists"):
        models.run()
    assert Compare(weights, acts, json=True).run() == 0
    said = json.loads(capsys.readouterr().out)
    row = next(r for r in said["rows"] if r["a"] == name and r["b"] == f"layers.{LAYER}.difference")
    assert row["overlap"] > 0.8
    assert row["verdict"] == "contradicted"
    assert set(row["nulls"]) == {"isotropic", "permuted"}


def test_refusal_is_one_command(planted_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert Compare(planted_run, refusal="family:instruct", quiet=True).run() == 0
    said = capsys.readouterr().out
    assert "distinct from refusal? undecided" in said  # the family has 24 nouns, an interval needs 50 prompts
    assert "50 prompts" in said


def test_prompts_and_spans_as_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, spans = str(tmp_path / "p.safetensors"), str(tmp_path / "s.safetensors")
    assert Activations("family:reasoning", prompts, layers=(1,), quiet=True).run() == 0
    found = by_id(list(read_bank(prompts)))["layers.1.difference"]
    assert "probe, held out" in capsys.readouterr().out
    assert found.contrast == "chain-hard − chain-easy"
    assert found.source["n"] == [60, 60]
    assert Activations("family:reasoning", spans, contrast="spans", layers=(1,), quiet=True, json=True).run() == 0
    listed = json.loads(capsys.readouterr().out)
    assert [d["id"] for d in listed] == [d.id for d in read_bank(spans)]
    assert listed[0]["contrast"] == "long − short thinking"
    assert listed[0]["shape"] == [1, 128]


def test_default_prompts_follow_the_tokenizer(chat, tmp_path: Path) -> None:
    first, second, names, paired = read_groups(chat, None)
    assert (len(first), len(second), names, paired) == (60, 60, ("chain-hard", "chain-easy"), False)
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_text('{"id": "a/1", "prompt": "x"}\n')
    b.write_text('{"id": "b/1", "prompt": "y"}\n')
    first, second, names, paired = read_groups(chat, f"{a},{b}")
    assert ([i.prompt for i in first + second], names, paired) == (["x", "y"], ("a", "b"), True)
    assert read_groups(chat, str(a))[1] == []


@pytest.mark.parametrize(
    ("command", "error", "fix"),
    [
        (Activations("family:base", "x", contrast="models"), "compares two models", "--against MODEL"),
        (Activations("family:base", "x", against="family:base", contrast="prompts"), "two models", "leave out"),
        (Activations("family:base", "x", pattern="wait"), "--pattern", "--contrast spans"),
        (Activations("family:base", "x", site="resid_pots"), "resid_pots", "resid_post"),
        (Activations("family:base", "x", layers=(4,)), "layer", "3"),
        (Activations("family:base", "x", select="lst"), "lst", "last"),
        (Activations("family:base", "x", prompts="a,b,c"), "names 3 files", "A.jsonl,B.jsonl"),
        (Activations("family:base", "x", prompts="missing.jsonl"), "missing.jsonl", None),
        (Compare("a"), "takes B or --refusal", "deltalens compare A B"),
        (Compare("a", "b", refusal="family:base"), "takes B or --refusal", "deltalens compare A B"),
        (Compare("missing", "missing"), "missing", None),
    ],
)
def test_mistakes(command, error: str, fix: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        command.run()
    assert error in caught.value.error
    assert fix is None or fix in str(caught.value.fix)
    assert not list(tmp_path.iterdir())


def test_models_of_two_architectures_have_no_difference(tmp_path: Path) -> None:
    out = tmp_path / "bank.safetensors"
    with pytest.raises(Refused, match="is a qwen2 model"):
        Activations("family:reasoning", str(out), against="family:b-base", quiet=True).run()
    assert not out.exists()
