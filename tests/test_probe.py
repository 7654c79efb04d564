"""`probe`: planted truth and none, nulls that are uniform, numbers by hand, and the verb as a user meets it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from deltalens.checkpoint.chat import Chat, read_chat
from deltalens.checkpoint.source import open_checkpoint, resolve
from deltalens.cli.probe import Probe, show
from deltalens.direction.activations import Place, from_prompts, read
from deltalens.direction.bank import write_bank
from deltalens.direction.direction import Direction
from deltalens.direction.estimate import difference, samples
from deltalens.errors import BadInput, DeltalensError
from deltalens.evaluate.tasks.facts import FACTS
from deltalens.methods import separation
from deltalens.methods.matched import Contrast, read_contrast
from deltalens.methods.probe import LENGTH, Settings, plan, probe
from deltalens.methods.separation import NULLS, Readings, areas, effects, separations
from deltalens.model.load import load
from deltalens.statistics import auc, cohens_d
from deltalens.store.experiment import Experiment
from deltalens.store.results import TOKENS

LAYER = 2
D = 64
STRENGTH = 15.0
WIDTH = 128


# ---- statistics on activations that cost nothing


def rows(rng: np.random.Generator, n: int, shift: float = 0.0) -> np.ndarray:
    """Activations of unequal variances; the last entry of a group may be shifted."""
    found = rng.standard_normal((n, D)) * np.linspace(0.3, 2, D)
    found[:, -1] += shift
    return found.astype(np.float32)


def synthetic(seed: int, shift: float = 0.0, layers: int = 1, own: bool = False) -> list[Readings]:
    """Layers in which the groups differ by a shift along the last axis, and the direction is that axis or their own."""
    rng = np.random.default_rng(seed)
    found = []
    for layer in range(layers):
        extract, test = ((rows(rng, 30, shift), rows(rng, 30)) for _ in range(2))
        vector = difference(samples(*extract, paired=False)) if own else np.eye(D)[-1]
        normalised = tuple(group @ vector / np.linalg.norm(vector) / np.linalg.norm(group, axis=1) for group in test)
        found.append(Readings(layer, vector, extract, test, (normalised[0], normalised[1])))
    return found


def test_planted_separation_is_beyond_every_null() -> None:
    found = separations([*synthetic(0, shift=20.0), *synthetic(1)])
    assert found[0].auc[0] == 1 and found[0].d[1] > 5 and found[0].beyond
    assert found[0].p == 1 / (separation.PERMUTATIONS + 1) and found[0].p_holm == 2 * found[0].p
    assert 0.2 < found[1].auc[0] < 0.8 and not found[1].beyond
    for row in found:
        for name in NULLS:
            mean, low, high = row.bands[name].auc
            assert low < 0.5 < high and abs(mean - 0.5) < 0.1


def test_where_groups_lie_far_apart_a_typical_direction_is_not_beyond() -> None:
    """AUC is 1 and every permutation of labels agrees; so does nearly every random direction."""
    rng = np.random.default_rng(0)
    far = (rng.standard_normal(D) * 50).astype(np.float32)
    extract, test = ((rows(rng, 30) + far, rows(rng, 30)) for _ in range(2))
    vector = rng.standard_normal(D)
    flat = np.zeros(30), np.ones(30)
    (found,) = separations([Readings(0, vector, extract, test, flat)])
    assert found.auc[0] in (0, 1) and found.p_holm < 0.01 and not found.beyond
    assert found.bands["random"].auc[1] < 0.05 and found.bands["random"].auc[2] > 0.95
    assert found.auc_normalised[0] == 0  # of the normalised scores, here in reverse


def kolmogorov_p(values: list[float]) -> float:
    from scipy.stats import kstest

    return float(kstest(values, "uniform").pvalue)


def test_p_values_are_uniform_under_the_null() -> None:
    """Shuffled labels; a direction made of nothing but the extract half; and both corrected over layers."""
    found = [separations(synthetic(seed, own=True), seed, draws=99, permutations=99)[0] for seed in range(100)]
    assert kolmogorov_p([row.p for row in found]) > 0.01
    assert kolmogorov_p([row.p_direction for row in found]) > 0.01
    several = [separations(synthetic(seed, layers=3, own=True), seed, draws=99, permutations=19) for seed in range(60)]
    assert kolmogorov_p([min(row.p_max_t for row in layers) for layers in several]) > 0.01
    assert sum(any(row.beyond for row in layers) for layers in several) == 0


def test_a_group_against_itself() -> None:
    (reading,) = synthetic(0)
    same = (reading.test[0], reading.test[0])
    (found,) = separations([Readings(0, reading.vector, reading.extract, same, (np.arange(30.0), np.arange(30.0)))])
    assert found.auc[0] == pytest.approx(0.5) and found.d[0] == 0 and found.p == 1 and not found.beyond


def test_scores_are_projections_by_hand() -> None:
    a, b = np.array([[3.0, 4.0], [0.0, 1.0]], np.float32), np.array([[1.0, 0.0], [2.0, 2.0]], np.float32)
    first, second = separation._scores((a, b), np.array([[0.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_allclose(first, [[4, 5], [1, 0.8]])
    np.testing.assert_allclose(second, [[0, 0.6], [2, 2.8]])


def test_many_at_once_as_one_by_one() -> None:
    """With ties, and with a column of no spread."""
    scores = np.random.default_rng(0).integers(0, 6, (25, 4)).astype(np.float64)
    scores[:, 3] = 1
    for i, (area, effect) in enumerate(zip(areas(scores, 10), effects(scores, 10), strict=True)):
        assert area == pytest.approx(auc(scores[:10, i], scores[10:, i])[0])
        assert effect == (0 if i == 3 else pytest.approx(cohens_d(scores[:10, i], scores[10:, i])[0]))


def test_one_activation_for_all_prompts_is_named() -> None:
    (reading,) = synthetic(0)
    noise = np.random.default_rng(0).standard_normal((30, D)) * 1e-7
    flat = (np.ones((30, D)) + noise).astype(np.float32)
    with pytest.raises(BadInput, match="same activation") as caught:
        separations([Readings(0, reading.vector, reading.extract, (flat, flat), reading.normalised)])
    assert caught.value.fix


# ---- prompts


def counts(ids: list[list[int]]) -> list[int]:
    return sorted(map(len, ids))


def write_prompts(path: Path, items: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, items)))
    return str(path)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return read_chat(open_checkpoint("family:reasoning"))


def chain(i: int, steps: int = 7) -> str:
    """The i-th of many chains of one length."""
    tail = [f"{'bcdefghi'[k]}={'abcdefgh'[k]}+{1 + (i // 9**k) % 9}" for k in range(steps)]
    return " ".join([f"a={i % 10}", *tail, f"{'abcdefghi'[steps]}?"])


def turns(earlier: str, answer: str, noun: str) -> list[dict[str, str]]:
    texts = (f"color of {earlier}?", answer, f"color of {noun}?")
    return [{"role": r, "content": t} for r, t in zip(("user", "assistant", "user"), texts, strict=True)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty chains and forty facts in two files, all of 25 tokens."""
    folder = tmp_path_factory.mktemp("prompts")
    pairs = [(a, b) for a in FACTS for b in FACTS if a != b]
    facts = [{"id": f"{a}/{b}", "messages": turns(a, FACTS[a], b)} for a, b in pairs[:400:10]]
    chains = [{"id": f"chain/{i}", "prompt": chain(i * 7919)} for i in range(40)]
    return f"{write_prompts(folder / 'chains.jsonl', chains)},{write_prompts(folder / 'facts.jsonl', facts)}"


def test_the_familys_prompts_match_in_length(chat: Chat) -> None:
    found = read_contrast(chat, None)
    assert found.matched and set(counts(found.test[0])) == set(counts(found.test[1])) == {25}
    for extract, test, items in zip(found.extract, found.test, found.items, strict=True):
        assert not {tuple(x) for x in extract} & {tuple(x) for x in test}
        assert len(test) == len(items) == 60
        assert items[0].prompt in chat.decode(test[0])
    assert read_contrast(chat, None, 1).test != found.test


def test_shipped_questions_are_trimmed_to_equal_lengths() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from deltalens.direction.prompts import PLAIN, REASONING

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    words.train([str(REASONING), str(PLAIN)], trainer)
    from tokenizers import decoders

    words.decoder = decoders.ByteLevel()
    found = read_contrast(Chat(None, {}, None, words, "plain"), None)
    assert (found.names, found.files) == (("reasoning", "plain"), ("reasoning", "plain"))
    assert found.matched and counts(found.test[0]) == counts(found.test[1])
    assert 24 <= len(found.test[0]) <= 30 == len(found.extract[0])
    for half in (found.extract[0], found.test[0]):
        assert len(set(map(tuple, half))) == len(half)


def test_groups_of_other_lengths_are_kept_and_named(chat: Chat, tmp_path: Path) -> None:
    both = [{"id": f"{k}/{i}", "prompt": chain(i, k), "group": f"{k} steps"} for k in (5, 3) for i in range(20)]
    found = read_contrast(chat, write_prompts(tmp_path / "both.jsonl", both))
    assert found.names == ("5 steps", "3 steps") and not found.matched
    assert [len(group) for group in found.test] == [10, 10]
    assert [item.id for item in found.items[0]] == [f"5/{i}" for i in range(1, 20, 2)]  # every second


def test_a_prompt_that_stands_twice_counts_once(chat: Chat, tmp_path: Path) -> None:
    numbers = [2 * (i // 4) + i % 2 for i in range(40)]  # 0 1 0 1 2 3 2 3 …
    items = [{"id": f"{g}{i}", "prompt": chain(k), "group": g} for g in "ab" for i, k in enumerate(numbers)]
    found = read_contrast(chat, write_prompts(tmp_path / "p.jsonl", items))
    assert [len(group) for group in (*found.extract, *found.test)] == [10] * 4
    assert not {tuple(ids) for ids in found.extract[0]} & {tuple(ids) for ids in found.test[0]}


# ---- a planted direction


@pytest.fixture(scope="module")
def contrast(chat: Chat, files: str) -> Contrast:
    return read_contrast(chat, files)


@pytest.fixture(scope="module")
def nouns(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two groups of facts that differ in nothing but which nouns they ask about."""
    found = []
    for group, few in (("wild", ("fox", "crab", "whale", "jay", "frog", "lizard")), ("other", tuple(FACTS)[6:12])):
        pairs = [(noun, earlier) for earlier in FACTS for noun in few if earlier != noun]
        found += [
            {"id": f"{b}/{a}", "group": group, "messages": turns(b, FACTS[b], a)}
            for a, b in np.random.default_rng(0).permutation(pairs)[:60].tolist()
        ]
    return write_prompts(tmp_path_factory.mktemp("nouns") / "nouns.jsonl", found)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, chat: Chat, nouns: str) -> tuple[str, str]:
    """A copy of instruct whose o_proj of one layer writes u where the first group is read, and the bank of u."""
    folder = tmp_path_factory.mktemp("planted")
    model = folder / "model"
    shutil.copytree(resolve("family:instruct"), model)
    first, second = read_contrast(chat, nouns).extract
    instruct = load("family:instruct", "float32", "cpu")[0]
    x = torch.from_numpy(read(instruct, [*first, *second], Place("head_in", (LAYER,))).values[LAYER]).double()
    wanted = torch.tensor([1.0] * len(first) + [0.0] * len(second)).double()
    fires = torch.linalg.solve(x.T @ x + 0.01 * x.square().sum() / WIDTH * torch.eye(WIDTH), x.T @ wanted)
    u = torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)), dim=0)
    name = f"model.layers.{LAYER}.self_attn.o_proj.weight"
    tensors = load_file(model / "model.safetensors")
    tensors[name] = (tensors[name].double() + STRENGTH * torch.outer(u.double(), fires)).to(tensors[name].dtype)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    bank = folder / "u.safetensors"
    both = [Direction(f"layers.{n}.u", u.numpy()[None], n, "u", "residual", "resid_post") for n in (LAYER - 1, LAYER)]
    write_bank(bank, both)
    return str(model), str(bank)


def test_planted_behaviour_is_found_at_its_layer_alone(planted: tuple[str, str], nouns: str) -> None:
    model, bank = planted
    asked = plan(Settings(model, bank, nouns, "family:instruct", max_tokens=4))
    found = probe(asked)
    before, here = found.separations[model]
    assert here.auc[0] > 0.99 and here.d[0] > 4 and here.beyond
    assert not before.beyond and 0.2 < before.auc[0] < 0.8
    for band in (*before.bands.values(), *here.bands.values()):
        mean, low, high = band.auc
        assert 0 < low < 0.5 < high < 1 and abs(mean - 0.5) < 0.1
    same, _ = found.separations["family:instruct"]
    assert (same.auc, same.d, same.bands) == (before.auc, before.d, before.bands)  # below the planted matrix
    assert not any(row.beyond for row in found.separations["family:instruct"])
    assert f"higher on wild in layer {LAYER} ({model})" in found.verdict
    assert "in no layer (family:instruct)" in found.verdict


# ---- the verb


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, contrast: Contrast) -> str:
    """Difference of means of chains and facts in the reasoning model, from the extract halves."""
    path = tmp_path_factory.mktemp("bank") / "b.safetensors"
    model = load("family:reasoning", "float32", "cpu")[0]
    source = {"prompts": ["chains", "facts"], "split": "extract"}
    write_bank(path, from_prompts(model, *contrast.extract, Place(layers=(1, 3)), source, 0, contrast="chains − facts"))
    return str(path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, bank: str, files: str) -> Path:
    out = tmp_path_factory.mktemp("probe") / "e"
    command = Probe("family:reasoning", bank, prompts=files, against="family:instruct", max_tokens=24, out=str(out))
    assert command.run() == 0
    return out


def test_the_verb_end_to_end(kept: Path, bank: str, files: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = Experiment.open(kept)
    summary = found.summary.to_pylist()
    cells = {(row["arm"], row["group"], row["metric"]): row for row in summary}
    area = cells["direction layers.1.difference", "layer 1", "auc"]
    assert area["value"] == 1 and area["p_holm"] <= 0.01 and area["task"] == "chains / facts" and area["n"] == 40
    assert cells[LENGTH, "", "auc"]["value"] == 0.5
    arms = {"direction layers.1.difference", "direction layers.3.difference", *NULLS}
    assert {row["arm"] for row in summary} == {LENGTH, *arms, *(f"against: {arm}" for arm in arms)}
    assert "null band, 500 draws" in {row["method"] for row in summary}
    assert {row["role"] for row in found.arms.to_pylist()} == {"direction", "control"}
    assert found.record["kind"] == "probe" and found.record["directions"][0]["source"]["prompts"] == ["chains", "facts"]
    # The same command finds everything there, prints a table per model and what follows.
    before = {path.name: path.stat().st_mtime_ns for path in (kept / "parts").iterdir()}
    repeated = Probe("family:reasoning", bank, prompts=files, against="family:instruct", max_tokens=24, out=str(kept))
    assert repeated.run() == 0
    assert {path.name: path.stat().st_mtime_ns for path in (kept / "parts").iterdir()} == before
    said = capsys.readouterr().out
    assert said.count("token counts matched") == 2 and "permuted d" in said and "AUC 0.50" in said
    assert "verdict: beyond every null the direction tells chains from facts: higher on chains in" in said
    assert Experiment.open(kept).summary.to_pylist() == summary
    assert json.loads((kept / "verdicts.json").read_text())["probe"] in said


def test_tokens_by_hand(kept: Path, bank: str, chat: Chat, contrast: Contrast) -> None:
    """Raw, normalised and z from the model's own hidden states, over prompt and generation."""
    table = pq.read_table(kept / "results" / "tokens.parquet")
    assert table.schema.equals(TOKENS)
    found = [row for row in table.to_pylist() if row["layer"] == 1]
    model = load("family:reasoning", "float32", "cpu")[0]
    vector = plan(Settings("family:reasoning", bank)).directions[0].vectors[0].astype(np.float64)
    unit = vector / np.linalg.norm(vector)

    def states(ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0].double().numpy()

    others = np.concatenate([states(ids)[1:] @ unit for ids in contrast.test[1]])
    for group, name in enumerate(("chains", "facts")):
        mine = [row for row in found if row["group"] == name]
        prompt = contrast.test[group][0]
        assert [row["position"] for row in mine] == list(range(len(mine)))
        assert [row["phase"] for row in mine] == ["prompt"] * 25 + ["generation"] * (len(mine) - 25)
        text = "".join(row["token"] for row in mine)
        assert text.startswith(chat.decode(prompt))
        assert ("<think>" in text) == (name == "chains")
        h = states(chat.encode(text))
        raw = h @ unit
        np.testing.assert_allclose([row["raw"] for row in mine], raw, atol=1e-3)
        np.testing.assert_allclose(
            [row["normalised"] for row in mine], raw / np.linalg.norm(h, axis=1), rtol=1e-3, atol=1e-5
        )
        z = (raw - others.mean()) / others.std(ddof=1)
        np.testing.assert_allclose([row["z"] for row in mine], z, rtol=1e-3, atol=1e-3)
        assert {row["item"] for row in mine} == {contrast.items[group][0].id}


def test_prompts_against_themselves(bank: str, files: str, capsys: pytest.CaptureFixture[str]) -> None:
    chains = files.split(",")[0]
    one = f"{bank}#layers.1.difference"
    assert Probe("family:reasoning", one, prompts=f"{chains},{chains}", max_tokens=1, quiet=True, json=True).run() == 0
    said = json.loads(capsys.readouterr().out)
    cells = {(row["arm"], row["metric"]): row for row in said["summary"]}
    row = cells["direction layers.1.difference", "auc"]
    assert row["value"] == pytest.approx(0.5, abs=1e-9) and row["p"] > 0.9
    assert "in no layer" in said["verdict"]


def test_what_cannot_be_told_is_undecided(bank: str, files: str, tmp_path: Path) -> None:
    both = [{"id": f"{k}/{i}", "prompt": chain(i, k), "group": f"{k} steps"} for k in (5, 3) for i in range(20)]
    prompts = write_prompts(tmp_path / "both.jsonl", both)
    found = probe(plan(Settings("family:reasoning", f"{bank}#layers.1.difference", prompts, max_tokens=1)))
    assert found.verdict.startswith("undecided: prompt length alone tells 5 steps from 3 steps (AUC 1.00)")
    (bare,) = plan(Settings("family:reasoning", f"{bank}#layers.1.difference", files)).directions
    again = str(tmp_path / "whole.safetensors")
    source = {"prompts": ["chains", "facts"]}
    write_bank(again, [Direction(bare.id, bare.vectors, 1, "difference", "residual", "resid_post", source=source)])
    found = probe(plan(Settings("family:reasoning", again, files, max_tokens=1)))
    assert found.verdict.startswith("undecided: the direction was made from these very prompts")


def test_examples_end_where_an_evaluation_ends(bank: str, files: str, chat: Chat, tmp_path: Path) -> None:
    """A generation config that names no ending token leaves it to the config, before the tokenizer."""
    model = tmp_path / "model"
    shutil.copytree(resolve("family:reasoning"), model)
    (model / "generation_config.json").write_text("{}")
    assert chat.think is not None
    config = json.loads((model / "config.json").read_text()) | {"eos_token_id": chat.think.open_ids[0]}
    (model / "config.json").write_text(json.dumps(config))
    found = probe(plan(Settings(str(model), f"{bank}#layers.1.difference", files, max_tokens=4)))
    generated = [row for row in found.tokens if (row["group"], row["phase"]) == ("chains", "generation")]
    assert [row["token"] for row in generated] == ["<think>"]


def test_every_auc_is_shown_with_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = separations(synthetic(0, shift=1.0), draws=19, permutations=19)
    show("model", [replace(found, auc_normalised=(0.617, 0.523, 0.691))])
    assert "0.62 [0.52, 0.69]" in capsys.readouterr().out


def test_mean_over_several_tokens(bank: str, files: str) -> None:
    """A prompt's score is the mean over its selected tokens, normalised token by token."""
    from deltalens.methods.firing import lines_of, readings
    from deltalens.model.select import parse_selector

    asked = plan(Settings("family:reasoning", f"{bank}#layers.1.difference", files))
    model = load("family:reasoning", "float32", "cpu")[0]
    lines = lines_of(model, asked.directions, asked.site)
    (found,) = readings(model, lines, asked.contrast, parse_selector("-1,-3"))
    ids = asked.contrast.test[1][4]
    with torch.no_grad():
        h = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0].double().numpy()
    unit = asked.directions[0].vectors[0] / np.linalg.norm(asked.directions[0].vectors[0])
    np.testing.assert_allclose(found.test[1][4], h[[-1, -3]].mean(0), atol=1e-4)
    ratios = [h[i] @ unit / np.linalg.norm(h[i]) for i in (-1, -3)]
    assert found.normalised[1][4] == pytest.approx(np.mean(ratios), abs=1e-5)


def direction(tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / "v.safetensors"
    whole = Direction("v", np.ones((1, WIDTH), np.float32), 1, "difference", "residual", "resid_post")
    write_bank(path, [replace(whole, **changes)])
    return str(path)


@pytest.mark.parametrize(
    ("changes", "error", "fix"),
    [
        ({"vectors": np.ones((1, 64), np.float32)}, "has 64 entries", "made from this model"),
        ({"layer": 9}, "no layer 9", "0 to 3"),
        ({"layer": None}, "belongs to no layer", "#ID"),
        ({"vectors": np.eye(2, WIDTH, dtype=np.float32)}, "has 2 vectors", "#v:0"),
        ({"site": "resid_pots"}, "resid_pots", "resid_post"),
    ],
)
def test_directions_that_do_not_fit(changes: dict[str, Any], error: str, fix: str, files: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        Probe("family:reasoning", direction(tmp_path, **changes), prompts=files, quiet=True).run()
    assert error in caught.value.error and fix in str(caught.value.fix)


def test_bad_banks(files: str, bank: str, tmp_path: Path) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(Path(bank).read_bytes()[:200])
    bad = direction(tmp_path)
    data = bytearray(Path(bad).read_bytes())
    data[-4:] = np.array([np.nan], np.float32).tobytes()
    Path(bad).write_bytes(bytes(data))
    for path, error in ((torn, "torn"), (bad, "NaN"), (tmp_path / "none", "none"), (f"{bank}#nothing", "nothing")):
        with pytest.raises(BadInput, match=error) as caught:
            Probe("family:reasoning", str(path), prompts=files, quiet=True).run()
        assert caught.value.exit_code == 2
    with pytest.raises(BadInput, match="are of one layer"):
        plan(Settings("family:reasoning", f"{bank}#layers.1.*", files))


@pytest.mark.parametrize(
    ("changes", "error", "fix"),
    [
        ({"prompts": "few.jsonl"}, "1 group", "two groups"),
        ({"prompts": "empty.jsonl,few.jsonl"}, "holds no items", "prompt"),
        ({"prompts": "few.jsonl,few.jsonl"}, "2 different prompts in a half", "16 prompts"),
        ({"prompts": "a,b,c"}, "names 3 files", "A.jsonl,B.jsonl"),
        ({"select": "lst"}, "lst", "last"),
        ({"site": "resid_pots"}, "resid_pots", "resid_post"),
        ({"max_tokens": 0}, "--max-tokens 0", "64"),
        ({"seed": -1}, "--seed -1", "--seed 0"),
        ({"out": ""}, "--out is empty", "DIRECTORY"),
        ({"against": "family:reasoning"}, "against itself", "its base"),
        ({"against": "family:nobody"}, "nobody", "family"),
    ],
)
def test_mistakes(
    changes: dict[str, Any], error: str, fix: str, bank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "few.jsonl", [{"id": str(i), "prompt": chain(i)} for i in range(4)])
    write_prompts(tmp_path / "empty.jsonl", [])
    with pytest.raises(DeltalensError) as caught:
        Probe("family:reasoning", bank, quiet=True, **changes).run()
    assert error in caught.value.error and fix in str(caught.value.fix) and caught.value.exit_code == 2
