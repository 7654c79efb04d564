"""`edit` and `cut` as typed: what they print, write and refuse, and that no model is loaded to say no."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from edit_pairs import save_bank
from factories import write_pair

from deltalens.checkpoint.source import open_checkpoint
from deltalens.cli.cut import Cut
from deltalens.cli.edit import Edit
from deltalens.errors import BadInput, Refused


def spec(folder: Path, text: str) -> str:
    base, tuned = write_pair(folder / "pair")
    path = folder / "edit.toml"
    path.write_text(f'base = "{base}"\ntuned = "{tuned}"\n{text}')
    return str(path)


REVERT = '[[edit]]\noperator = "revert"\nrank = 1\n'


def test_without_out_it_says_what_would_be_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Edit(spec(tmp_path, REVERT), quiet=True).run() == 0
    shown = capsys.readouterr().out
    assert "revert" in shown and "14" in shown and "share of ‖Δ‖² touched: " in shown
    assert sorted(p.name for p in tmp_path.iterdir()) == ["edit.toml", "pair"]


def test_it_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert Edit(spec(tmp_path, REVERT), str(out), stochastic_rounding=3, json=True, quiet=True).run() == 0
    record = json.loads(capsys.readouterr().out)
    assert record["written"] == str(out) and open_checkpoint(out)
    assert set(record["rounding"]) == set(record["tensors"]) and len(record["tensors"]) == 14
    assert 0 < record["share_of_delta"] < 1 and record["starts_from"] == "tuned" and record["proof"] is None
    with pytest.raises(Refused, match="is not an empty directory"):
        Edit(str(tmp_path / "edit.toml"), str(out), quiet=True).run()


def test_a_proof_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'base = "family:instruct"\ntuned = "family:reasoning"\n' + REVERT
    (tmp_path / "e.toml").write_text(text)
    assert Edit(str(tmp_path / "e.toml"), prove=True, quiet=True).run() == 0
    shown = capsys.readouterr().out
    assert "compared: whole model, 4 chat prompts\n" in shown
    for name in ("hook", "lora", "checkpoint"):
        assert f"proved: {name} = swap, logits within" in shown


def test_a_proof_layer_by_layer_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deltalens.cli.edit import _show_proof
    from deltalens.edit.edit import read_edit
    from deltalens.edit.plan import plan
    from deltalens.edit.prove import prove

    text = 'base = "family:instruct"\ntuned = "family:reasoning"\n' + REVERT
    (tmp_path / "e.toml").write_text(text)
    _show_proof(prove(plan(read_edit(tmp_path / "e.toml")), free=0))
    shown = capsys.readouterr().out
    assert "compared: layer by layer, seeded Gaussian inputs" in shown
    for name in ("hook", "lora", "checkpoint"):
        assert f"proved: {name} = swap, outputs within" in shown
    assert "rounding to the stored dtype moves outputs by " in shown


def test_a_missing_bank_or_edit_file_comes_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "bank.safetensors").write_bytes(b"")
    (tmp_path / "e.toml").write_text(f'base = "family:base"\n[[edit]]\noperator = "cut"\ndirection = "{tmp_path}/no#d"')
    for verb, error, fix in (
        (Cut("family:base", f"{tmp_path}/nowhere"), "nowhere: no such file", "deltalens directions"),
        (Cut("family:base", f"{tmp_path}/bnk.safetensors#d"), "bnk.safetensors: no such", "did you mean .*bank.safet"),
        (Cut("family:base", f"{tmp_path}#d"), "is a directory", "deltalens directions"),
        (Cut("family:base", "x" * 300), "x: file name too long", "deltalens directions"),
        (Edit(str(tmp_path / "e.toml")), "cannot read the bank .*no: no such file", "deltalens directions"),
        (Edit(str(tmp_path / "no.toml")), "no.toml: no such file", "edit file"),
    ):
        with pytest.raises(BadInput, match=rf"{error}.* \(fix: .*{fix}"):
            verb.run()


def test_cut_says_what_a_tied_embedding_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, _ = write_pair(tmp_path / "pair")
    bank = save_bank(tmp_path / "bank.safetensors")
    assert Cut(str(base), bank, out=str(tmp_path / "out"), quiet=True).run() == 0
    shown = capsys.readouterr().out
    assert "embed holds" in shown and "written: " in shown
    assert Cut(str(base), bank, layers="1", kinds=("up_proj",), strength=2.0, json=True, quiet=True).run() == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == ["layers.1.mlp.up_proj"]


def test_what_is_written_can_be_made_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path / "work" / "pair", noise=1e-3)
    write_pair(tmp_path / "work" / "pair2", seed=9)
    save_bank(tmp_path / "work" / "my #1 bank.safetensors")
    (tmp_path / "work" / "edit.toml").write_text(
        'base = "pair/base"\ntuned = "pair/tuned"\n'
        '[[edit]]\noperator = "contrast"\nplus = "pair2/tuned"\nminus = "base"\nstrength = 0.1\n'
        '[[edit]]\noperator = "cut"\ndirection = "my #1 bank.safetensors#d"\n'
    )
    monkeypatch.chdir(tmp_path / "work")
    assert Edit("edit.toml", "out", stochastic_rounding=7, quiet=True).run() == 0
    written = (tmp_path / "work" / "out" / "model.safetensors").read_bytes()
    (tmp_path / "work" / "my #1 bank.safetensors").unlink()  # it has its own copy
    (tmp_path / "work" / "out").rename(tmp_path / "moved")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    name = "bank-0-my #1 bank.safetensors"
    (elsewhere / name).write_bytes(b"another bank of that name in the working directory")
    monkeypatch.chdir(elsewhere)
    card = (tmp_path / "moved" / "README.md").read_text()
    assert "deltalens edit reproduce/edit.toml --out NEW --stochastic-rounding 7\n" in card
    for spec in (tmp_path / "moved/reproduce/edit.toml", "../moved/reproduce/edit.toml"):
        out = elsewhere / f"out-{len(str(spec))}"
        assert Edit(str(spec), str(out), stochastic_rounding=7, quiet=True).run() == 0
        assert (out / "model.safetensors").read_bytes() == written
    again = out / "reproduce"  # what was made again can be made again
    assert Edit(str(again / "edit.toml"), "third", stochastic_rounding=7, quiet=True).run() == 0
    assert (elsewhere / "third" / "model.safetensors").read_bytes() == written


def test_mistakes_are_found_before_anything_is_done(tmp_path: Path) -> None:
    path = spec(tmp_path, REVERT)
    with pytest.raises(BadInput, match="--out is empty"):
        Edit(path, "").run()
    with pytest.raises(BadInput, match="--stochastic-rounding says how a checkpoint is written"):
        Edit(path, stochastic_rounding=1).run()
    with pytest.raises(Refused, match="would overwrite or enter the source"):
        Edit(path, str(tmp_path / "pair" / "base" / "x"), prove=True).run()


def test_an_edit_is_planned_and_written_without_torch(tmp_path: Path) -> None:
    path = spec(tmp_path, REVERT)
    code = (
        "import sys\nfrom deltalens.cli.edit import Edit\n"
        f"Edit({path!r}, {str(tmp_path / 'out')!r}, quiet=True).run()\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
