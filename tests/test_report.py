"""The page, parsed: self-contained, faithful to the stored numbers, inert to whatever a checkpoint is called."""

import json
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltalens.cli.report import Report
from deltalens.errors import BadInput, Refused
from deltalens.report.figures import indices
from deltalens.report.page import build_page, visible, write_page
from deltalens.store.files import write_json, write_table
from deltalens.store.run import Run
from deltalens.store.schema import LEDGER, MATRICES, NUMERICS_VERSION, SCHEMA, SPECTRA

SHAPES = {"q_proj": 1, "k_proj": 0.5, "v_proj": 0.5, "o_proj": 1, "gate_proj": 3, "up_proj": 3, "down_proj": 3}
HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\">{{7*7}}<b>%{x}\u202e\u2028\x07&amp;"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def matrix(name: str, kind: str, layer: int | None, rows: int, cols: int, sigma: np.ndarray, **changes: Any) -> dict:
    """A plausible row of matrices.parquet for a bf16 pair."""
    energy = float(sigma @ sigma)
    zero = energy == 0
    numbers = {
        "norm_base": 10.0, "norm_tuned": 10.1, "norm_delta": energy**0.5, "relative_change": energy**0.5 / 10,
        "cosine": 0.999, "zero_fraction": 1.0 if zero else 0.31, "changed_relative": 0.6, "changed_absolute": 0.5,
        "sigma_max": float(sigma[0]), "nuclear_norm": float(sigma.sum()), "effective_rank": 0.0 if zero else 51.25,
        "energy_effective_rank": 9.0, "participation_ratio": 5.0, "stable_rank": 3.5, "rank_50": 3, "rank_90": 20,
        "rank_99": 40, "top_energy_1": 0.3, "top_energy_4": 0.6, "top_energy_16": 0.8, "row_share_1": 0.04,
        "col_share_1": 0.03, "certificate": 1e-7, "noise_sigma": 1e-5, "snr": 4.0, "floor_edge": 0.02,
        "above_floor": 0 if zero else 9, "bulk_edge": 0.03, "spikes": 0 if zero else 3,
        "spike_energy": 0.0 if zero else 0.7, "denoised_effective_rank": None if zero else 12.5,
        "predicted_zero_fraction": 1.0 if zero else 0.29, "seconds_spectrum": 0.1, "seconds": 0.2,
    }  # fmt: skip
    return {
        "name": name, "tensor_base": f"model.{name}.weight", "tensor_tuned": f"model.{name}.weight", "layer": layer,
        "kind": kind, "expert": None, "rows": rows, "cols": cols, "dtype_base": "BF16", "dtype_tuned": "BF16",
        "status": "measured", "noise_model": "tuned_rounded", **numbers, "spikes_capped": False,
    } | changes  # fmt: skip


def make_run(
    folder: Path,
    layers: int = 2,
    width: int = 32,
    scale: float = 1.0,
    sides: tuple[str, str] = ("family:instruct", "family:reasoning"),
    rename: dict[str, str] | None = None,
    warnings: tuple[str, ...] = (),
    refused: str | None = None,
    **changes: Any,
) -> Run:
    """A finished RUN, written from the schemas alone; keyword arguments change every row."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, spectra, ledger = [], [], []
    plan = [("embed", "embed", None, 2 * width, width)]
    for layer in range(layers):
        for kind, factor in SHAPES.items():
            tall, name = int(width * factor), f"layers.{layer}.{kind}"
            plan.append((name, kind, layer, *((width, tall) if kind == "down_proj" else (tall, width))))
    for name, kind, layer, m, n in plan:
        name = (rename or {}).get(name, name)
        sigma = scale * np.sort(rng.gamma(1.0, 0.02, min(m, n)))[::-1]
        rows.append(matrix(name, kind, layer, m, n, sigma, **changes))
        if name == refused:
            gone = {key: None for key in MATRICES.names if key in rows[-1] and MATRICES.names.index(key) > 10}
            rows[-1] |= gone | {"status": "refused"}
        else:
            spectra.append({"name": name, "sigma": sigma})
        ledger.append({
            "tensor_base": name, "tensor_tuned": name, "name": name, "status": rows[-1]["status"],
            "reason": "NaN or Inf in tuned" if name == refused else None, "elements": m * n,
            "norm_delta_sq": None if name == refused else float(sigma @ sigma), "share": 0.0,
        })  # fmt: skip
    ledger.append({
        "tensor_base": "model.norm.weight", "tensor_tuned": "model.norm.weight", "name": "norm", "status": "vector",
        "reason": None, "elements": width, "norm_delta_sq": 1e-4 * scale, "share": 0.0,
    })  # fmt: skip
    total = sum(line["norm_delta_sq"] or 0.0 for line in ledger)
    for line in ledger:
        line["share"] = (line["norm_delta_sq"] or 0.0) / total if total else 0.0
    write_table(folder / "matrices.parquet", rows, MATRICES)
    write_table(folder / "spectra.parquet", spectra, SPECTRA)
    write_table(folder / "ledger.parquet", ledger, LEDGER)
    (folder / "directions.safetensors").write_bytes(b"")
    identity = {
        "files": [{"name": "model.safetensors", "size": 1234, "header_sha256": "ab12", "sample_sha256": "cd34"}]
    }
    record = {
        "schema": SCHEMA, "numerics_version": NUMERICS_VERSION, "deltalens": "0.1.0", "status": "complete",
        "pair": {side: {"source": source, "path": "/x", "revision": None, "identity": identity, "mtimes": {}}
                 for side, source in zip(("base", "tuned"), sides, strict=True)},
        "settings": {"top": 16, "both_rounded": False, "match": None, "threads": 2, "block_bytes": 67108864, "seed": 0},
        "warnings": list(warnings),
        "totals": {"matrices": len(rows), "refused": 0, "tensors": len(ledger), "compared": len(ledger),
                   "elements": 801536, "norm_delta": total**0.5, "norm_base": 20.0,
                   "relative_change": total**0.5 / 20, "share_measured": 0.99, "seconds": 1.9},
        "environment": {"python": "3.11.7", "torch": "2.13.0", "platform": "Linux", "cpu_count": 2},
        "peak_rss_bytes": 400_000_000, "command": "deltalens measure family:instruct family:reasoning --out RUN",
    }  # fmt: skip
    write_json(folder / "run.json", record)
    return Run.open(folder)


class Page(HTMLParser):
    """What a browser would take from a page: tags, attributes, scripts, styles and the text that is shown."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.blocks: dict[str, str] = {}
        self.text = ""
        self._inside: str | None = None
        self.feed(html)
        self.close()
        self.data = json.loads(self.blocks["data"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag in ("script", "style"):
            self._inside = dict(attrs).get("id") or tag
            self.blocks[self._inside] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.blocks[self._inside] += data
        else:
            self.text += data


def assert_self_contained(page: Page) -> None:
    assert not {"link", "img", "iframe", "object", "embed", "base", "image", "video", "audio", "source"} & set(
        page.tags
    )
    for tag, key, value in page.attributes:
        assert key not in ("src", "href", "srcset", "action", "xlink:href", "background", "data", "poster", "ping"), tag
        assert not key.startswith("on"), f"{tag} has an inline handler"
        assert "url(" not in value
        if key == "http-equiv":
            assert value == "Content-Security-Policy"
    for name in ("style", "script"):
        assert not re.search(r"url\(|@import|https?:|\bfetch\(|XMLHttpRequest", page.blocks[name])


def test_one_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", warnings=("the vocabularies differ",))
    html = build_page([run])
    page = Page(html)
    assert_self_contained(page)
    assert page.tags.count("main") == 1
    assert "instruct → reasoning" in page.text
    assert "all 15 matrices have spikes" in page.text
    assert "12.5 denoised (51.2 raw, at most 32)" in page.text
    assert "the vocabularies differ" in page.text
    assert "deltalens measure family:instruct family:reasoning --out RUN" in page.text
    assert "ab12" in page.text and "400 MB" in page.text
    assert html.count("plotly.js v") == 1


def test_embedded_numbers_are_the_stored_ones(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", width=300)
    data = Page(build_page([run])).data
    stored, shown = run.matrices.to_pylist(), data["runs"][0]
    assert shown["names"] == [row["name"] for row in stored]
    for key, values in shown["columns"].items():
        if key == "zero_gap":
            assert values == [row["zero_fraction"] - row["predicted_zero_fraction"] for row in stored]
        else:
            assert values == [row[key] for row in stored]
    for row, edges, drawn in zip(stored, shown["edges"], shown["spectra"], strict=True):
        sigma = run.spectrum(row["name"])
        index = np.array(data["indices"][str(len(sigma))])
        assert edges == [row["floor_edge"], row["bulk_edge"]]
        assert index[0] == 1 and index[-1] == len(sigma) and len(index) <= 256
        np.testing.assert_allclose(drawn, sigma[index - 1], rtol=1e-5)


def test_drawn_indices() -> None:
    assert indices(5, 256) == [0, 1, 2, 3, 4]
    chosen = indices(5120, 256)
    assert len(chosen) == 256 and chosen == sorted(set(chosen))
    assert chosen[:40] == list(range(40)) and chosen[-1] == 5119


def test_ledger_shares_sum_to_one(tmp_path: Path) -> None:
    page = Page(build_page([make_run(tmp_path / "run")]))
    assert re.search(r"sum\s*16\s*[\d\u202f]+\s*1\.000000", page.text)
    assert "model.norm.weight" in page.text
    assert "one dimension: norm only" in page.text


@pytest.mark.parametrize("place", ["name", "source", "warning"])
def test_hostile_text_is_inert(tmp_path: Path, place: str) -> None:
    run = make_run(
        tmp_path / "run",
        rename={"layers.0.q_proj": HOSTILE} if place == "name" else None,
        sides=("family:instruct", HOSTILE if place == "source" else "family:reasoning"),
        warnings=(HOSTILE,) if place == "warning" else (),
    )
    html = build_page([run])
    page = Page(html)
    assert_self_contained(page)
    assert html.count("<main>") == 1 and page.tags.count("script") == 3
    assert "49" not in re.findall(r"\w+", visible(HOSTILE)) and "{{7*7}}" in page.text
    for character in "\u202e\u2028\x07":
        assert character not in html.replace(page.blocks["plotly"], "")
    if place == "name":
        assert visible(HOSTILE) in page.data["runs"][0]["names"]
        assert page.data["runs"][0]["spectra"][1] is not None


def test_two_runs_are_overlaid(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", sides=("family:base", "family:instruct"), scale=2.0)
    second = make_run(tmp_path / "b", layers=3)
    page = Page(build_page([first, second]))
    assert_self_contained(page)
    assert [run["label"] for run in page.data["runs"]] == ["base → instruct", "instruct → reasoning"]
    assert page.data["columns"] == ["in", "0", "1", "2"]
    assert page.data["kinds"] == ["embed", *SHAPES]
    assert set(page.data["runs"][0]["names"]) < set(page.data["runs"][1]["names"])
    assert page.data["runs"][1]["depth"]["denoised"] == [12.5] * 3
    ids = {value for _, key, value in page.attributes if key == "id"}
    assert {"heat-0", "heat-1", "spectrum", "depth"} <= ids
    assert "These changes differ in size" in page.text


def test_same_names_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("seed-1", "seed-2")]
    labels = [run["label"] for run in Page(build_page(runs)).data["runs"]]
    assert labels == ["instruct → reasoning (seed-1)", "instruct → reasoning (seed-2)"]


def shown_text(page: Page) -> str:
    return page.text + json.dumps([run["facts"] for run in page.data["runs"]])


def test_identical_sides(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", scale=0.0)
    page = Page(build_page([run]))
    assert "No compared tensor changed: all 15 matrices are identical on the two sides." in page.text
    assert page.data["first"] is None and page.data["runs"][0]["spectra"] == [None] * 15
    assert not re.search(r"\b(nan|None|inf|undefined)\b", shown_text(page))


def test_float32_has_no_floor(tmp_path: Path) -> None:
    nulls = dict.fromkeys(["snr", "predicted_zero_fraction", "bulk_edge", "spikes", "spike_energy", "spikes_capped"])
    run = make_run(
        tmp_path / "run", noise_model="none", noise_sigma=0.0, floor_edge=0.0, dtype_base="F32", dtype_tuned="F32",
        denoised_effective_rank=None, **nulls,
    )  # fmt: skip
    page = Page(build_page([run]))
    assert "all 15 matrices have no rounding floor (float32 storage)" in page.text.replace("All", "all")
    assert "not computed" in json.dumps(page.data, ensure_ascii=False)
    assert page.data["runs"][0]["edges"][0] == [None, None]
    assert not re.search(r"\b(nan|None|inf|undefined)\b", shown_text(page))


def test_refused_and_not_finite(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", refused="layers.1.o_proj", cosine=float("nan"), snr=float("inf"))
    page = Page(build_page([run]))
    assert "NaN or Inf in tuned" in page.text
    assert "1 matrix was refused and not measured" in page.text
    assert not re.search(r"\b(nan|None|inf|undefined)\b", shown_text(page))


def test_below_the_floor(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", above_floor=0, spikes=0, spike_energy=0.0, denoised_effective_rank=None)
    page = Page(build_page([run]))
    assert "all 15 matrices are below the rounding floor" in page.text
    assert "51.2" not in page.text.split("Every matrix")[0]  # no raw rank without its denoised partner


def test_a_large_model_stays_under_12_megabytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", layers=64, width=5120)  # 449 matrices, 5,120 singular values but for k and v
    assert len(build_page([run]).encode()) < 12e6


def test_more_matrices_than_a_page_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltalens.report.page.ROWS", 5)
    run = make_run(tmp_path / "run")
    page = Page(build_page([run]))
    largest = sorted(run.matrices.to_pylist(), key=lambda row: -row["norm_delta"])[:5]
    shown = page.data["runs"][0]
    assert {name for name, k in zip(shown["names"], shown["drawn"], strict=True) if k is not None} == {
        row["name"] for row in largest
    }
    assert len(shown["columns"]["relative_change"]) == 15
    assert "The 5 with the largest ‖Δ‖" in page.text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run")
    assert Report((str(tmp_path / "run"),)).run() == 0
    page = tmp_path / "run" / "report.html"
    assert capsys.readouterr().out.strip() == str(page)
    assert page.read_text().startswith("<!doctype html>")
    assert Report((str(tmp_path / "run"),), str(tmp_path / "other.html")).run() == 0
    assert (tmp_path / "other.html").read_bytes() == page.read_bytes()
    assert not list(tmp_path.rglob(".tmp-*"))


def test_bad_input(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for arguments, fault in {
        (): "no RUN directory",
        ("nowhere",): "there is no directory nowhere",
        (str(tmp_path),): "is not a RUN",
        (str(run.path), str(run.path)): "named twice",
    }.items():
        with pytest.raises(BadInput, match=fault):
            Report(arguments).run()
    for out, fault in {
        tmp_path / "no" / "page.html": "there is no directory",
        tmp_path / "matrices.parquet": "not named .html",
    }.items():
        with pytest.raises(BadInput, match=fault):
            write_page([run], out)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(BadInput, match="is a directory"):
        write_page([run], tmp_path / "folder.html")
    with pytest.raises(BadInput, match="cannot be told apart"):
        build_page([run] * 7)


@pytest.mark.parametrize("damage", [{"pair": 3}, {"totals": None}, {"totals": {}}, {"warnings": None}, {"settings": 1}])
def test_a_damaged_record(tmp_path: Path, damage: dict[str, Any]) -> None:
    run = make_run(tmp_path / "run")
    write_json(run.path / "run.json", run.record | damage)
    with pytest.raises(BadInput, match="damaged"):
        build_page([Run.open(run.path)])


def test_an_unfinished_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_json(run.path / "run.json", run.record | {"status": "running"})
    with pytest.raises(Refused, match="unfinished"):
        Report((str(run.path),)).run()


@pytest.mark.browser
def test_chromium_draws_the_page(tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed: the page was not opened")
    hostile = {"layers.0.q_proj": HOSTILE}
    first = make_run(tmp_path / "a", sides=("family:base", "family:instruct"), scale=2.0, rename=hostile)
    page = write_page([first, make_run(tmp_path / "b")], tmp_path / "page.html")
    use = """<script>
      const metric = document.getElementById("metric");
      for (let i = 0; i < metric.length; i++) { metric.value = i; metric.dispatchEvent(new Event("change")); }
      document.querySelector("table.matrices thead th:nth-child(3)").click();
      document.querySelectorAll("table.matrices")[1].querySelector("tbody button").click();
      const opened = document.getElementById("spectrum-title").textContent;
      document.getElementById("heat-1").emit("plotly_click", { points: [{ pointIndex: [2, 1] }] });
      document.documentElement.dataset.opened = opened;
    </script></body>"""
    page.write_text(page.read_text().replace("</body>", use))
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}",
             "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", page.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    assert 'data-ready="1"' in done.stdout
    assert "<title>pwned" not in done.stdout
    dom = Page(done.stdout)
    assert "img" not in dom.tags and not any(key.startswith("on") for _, key, _ in dom.attributes)
    for figure in ("heat-0", "heat-1", "spectrum", "depth"):
        drawn = done.stdout.split(f'id="{figure}"')[1][:20000]
        assert "main-svg" in drawn, f"{figure} was not drawn"
    assert 'data-opened="Spectrum of the change in embed"' in done.stdout
    assert "Spectrum of the change in layers.0.k_proj" in dom.text
    assert 'aria-sort="descending"' in done.stdout
    assert "rounding floor, base → instruct" in done.stdout and "bulk edge, instruct → reasoning" in done.stdout
