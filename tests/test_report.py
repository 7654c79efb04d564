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
from run_factory import SHAPES, make_run

from deltalens.cli.report import Report
from deltalens.errors import BadInput, Refused, printable
from deltalens.report.figures import indices
from deltalens.report.page import build_page, write_page
from deltalens.store.files import write_json
from deltalens.store.run import Run

HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\">{{7*7}}<b>%{x}\u202e\u2028\x07&amp;"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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
    ids = {value for _, key, value in page.attributes if key == "id"}
    for tag, key, value in page.attributes:
        assert key not in ("src", "srcset", "action", "xlink:href", "background", "data", "poster", "ping"), tag
        if key == "href":
            assert value.startswith("#") and value[1:] in ids, f"{value} leads nowhere"
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
    run = make_run(tmp_path / "run", width=300, full=True)
    data = Page(build_page([run])).data
    stored, shown = run.matrices.to_pylist(), data["runs"][0]
    assert shown["names"] == [row["name"] for row in stored]
    maps = shown["cells"]
    assert [shown["names"][k] for k in maps["open"]] == maps["name"]
    rows = {row["name"]: row for row in stored}
    cells = [rows[name] for name in maps["name"]]
    assert len(maps["columns"]) == len(data["metrics"]) > 60
    for key, values in maps["columns"].items():
        if key == "zero_gap":
            assert values == [row["zero_fraction"] - row["predicted_zero_fraction"] for row in cells]
        elif key == "left_rotation_ratio":
            assert values == [row["left_rotation"] / row["left_rotation_null"] for row in cells]
        elif not key.endswith("_ratio") or key == "participation_ratio":
            assert values == [row[key] for row in cells], key
    assert run.deadzone is not None
    steps = ("step", "entries", "observed", "predicted", "fitted")
    for row, lines in zip(stored, shown["binades"], strict=True):
        held = [r for r in run.deadzone.to_pylist() if r["name"] == row["name"]]
        assert len(lines) == 8
        for line, r in zip(lines, held, strict=True):
            assert line == [None if r[key] is None else pytest.approx(r[key], rel=1e-3) for key in steps]
    for row, edges, drawn, zeros in zip(stored, shown["edges"], shown["spectra"], shown["zeros"], strict=True):
        sigma = run.spectrum(row["name"])
        index = np.array(data["indices"][str(len(sigma))])
        m, n = row["rows"], row["cols"]
        reference = row["norm_delta"] / (m * n) ** 0.5 * (m**0.5 + n**0.5)
        assert edges == [row["floor_edge"], row["bulk_edge"], reference]
        assert index[0] == 1 and index[-1] == len(sigma) and len(index) <= 256
        np.testing.assert_allclose(drawn, sigma[index - 1], rtol=1e-5)
        assert zeros == [row["predicted_zero_fraction"], row["zero_fraction"], row["deadzone"]]
    nulls, heads = run.nulls, run.heads
    assert nulls is not None and heads is not None
    forest = shown["forest"]
    flat = [
        (forest["matrices"][m], statistic, *rest)
        for statistic, lines in forest["rows"].items()
        for m, _, *rest in lines
    ]
    keys = ("name", "statistic", "observed", "mean", "sd", "z")
    assert sorted(map(repr, flat)) == sorted(repr(tuple(row[k] for k in keys)) for row in nulls.to_pylist())
    for row in heads.to_pylist():
        found = shown["heads"][row["kind"]]
        place = (
            found["layers"].index(row["layer"]),
            found["heads"].index(row["group"] if row["head"] is None else row["head"]),
        )
        for key in ("share", "relative_change"):
            assert found[key][place[0]][place[1]] == row[key]


def test_context_nulls_and_heads_are_shown(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", sides=("family:base", "family:instruct"), full=True, scale=2.0)]
    runs.append(make_run(tmp_path / "b", full=True))
    page = Page(build_page(runs))
    assert_self_contained(page)
    for said in ("every null", "no spread", "medians by kind", "QK product", "no row may be ranked", "permuted within"):
        assert said in page.text or said in json.dumps(page.data)
    ids = {value for _, key, value in page.attributes if key == "id"}
    assert {"zeros-plot", "binades", "context-plot", "forest", "heads-0", "heads-1"} <= ids
    assert not re.search(r"\b(nan|None|inf|undefined)\b", shown_text(page))


def test_absent_tables_say_how_to_get_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert run.nulls is None and run.heads is None and run.deadzone is None  # as an earlier version left it
    page = Page(build_page([run]))
    for command in ("--out RUN --context on", "--out RUN --nulls default"):
        assert f"deltalens measure BASE TUNED {command}" in page.text
    assert "no attention heads were found" in page.text
    assert "was measured by an earlier version, without its zeros by step" in page.text
    ids = {value for _, key, value in page.attributes if key == "id"}
    assert not {"binades", "context-plot", "forest", "heads-0"} & ids and page.data["runs"][0]["ratios"] is None
    assert not {"context", "masks (secondary)"} & {metric["of"] for metric in page.data["metrics"]}


def test_a_damaged_extra_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", full=True)
    (run.path / "nulls.parquet").write_bytes((run.path / "heads.parquet").read_bytes())
    with pytest.raises(BadInput, match=r"nulls\.parquet has other columns"):
        build_page([run])


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


@pytest.mark.parametrize("place", ["name", "source", "warning", "tables", "matched"])
def test_hostile_text_is_inert(tmp_path: Path, place: str) -> None:
    run = make_run(
        tmp_path / "run",
        rename={"layers.0.q_proj": HOSTILE} if place == "name" else None,
        sides=("family:instruct", HOSTILE if place == "source" else "family:reasoning"),
        warnings=(HOSTILE,) if place == "warning" else (),
        full=True,
        hostile=HOSTILE if place == "tables" else None,
        size_matched=HOSTILE if place == "matched" else None,
    )
    html = build_page([run])
    page = Page(html)
    assert_self_contained(page)
    assert html.count("<main>") == 1 and page.tags.count("script") == 3
    assert "49" not in re.findall(r"\w+", printable(HOSTILE)) and "{{7*7}}" in page.text
    for character in "\u202e\u2028\x07":
        assert character not in html.replace(page.blocks["plotly"], "")
    if place == "name":
        assert printable(HOSTILE) in page.data["runs"][0]["names"]
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
    assert page.data["runs"][1]["depth"]["denoised_effective_rank"] == [12.5] * 3
    ids = {value for _, key, value in page.attributes if key == "id"}
    assert {"heat-0", "heat-1", "spectrum", "depth-rank", "depth-energy"} <= ids
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
    assert page.data["runs"][0]["edges"][0][:2] == [None, None]
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
    run = make_run(tmp_path / "run", layers=64, width=5120, full=True)  # 449 matrices, most of 5,120 singular values
    assert len(build_page([run]).encode()) < 12e6


def test_more_matrices_than_a_page_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltalens.report.page.ROWS", 5)
    run = make_run(tmp_path / "run")
    page = Page(build_page([run]))
    largest = sorted(run.matrices.to_pylist(), key=lambda row: -row["norm_delta"])[:5]
    shown = page.data["runs"][0]
    assert set(shown["names"]) == {row["name"] for row in largest}
    assert len(shown["cells"]["columns"]["relative_change"]) == 15
    assert sum(k is not None for k in shown["cells"]["open"]) == 5
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
        (): "no directory",
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


USE = """<script>
const $ = (id) => document.getElementById(id), seen = document.documentElement.dataset;
const press = (key) =>
  $("heat-1").dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
for (const id of ["metric", "statistic", "slice", "head-value"]) {
  for (let i = 0; i < $(id).options.length; i++) { $(id).selectedIndex = i; $(id).dispatchEvent(new Event("change")); }
}
$("theme").click();
seen.after = seen.theme;
document.querySelector("table.matrices thead th:nth-child(3)").click();
document.querySelectorAll("table.matrices")[1].querySelector("tbody button").click();
seen.opened = $("spectrum-title").textContent;
$("heat-0").emit("plotly_click", { points: [{ pointIndex: [2, 1] }] });
seen.clicked = $("spectrum-title").textContent;
$("heat-1").focus();
seen.at = $("reading").textContent;
["ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowUp"].forEach(press);
seen.moved = $("reading").textContent;
press("Enter");
dispatchEvent(new Event("beforeprint"));
seen.print = seen.theme + document.querySelectorAll("details:not([open])").length;
dispatchEvent(new Event("afterprint"));
</script></body>"""
"""What a reader does with the page: every menu, a sorted table, a click, the keyboard, the other colours, paper."""


@pytest.mark.browser
@pytest.mark.parametrize("place", ["matrices", "tables"])
def test_chromium_draws_the_page(tmp_path: Path, place: str) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed: the page was not opened")
    rename = {"layers.0.q_proj": HOSTILE} if place == "matrices" else None
    hostile = HOSTILE if place == "tables" else None
    first = make_run(tmp_path / "a", sides=("family:base", "family:instruct"), scale=2.0, full=True, rename=rename)
    page = write_page([first, make_run(tmp_path / "b", full=True, hostile=hostile)], tmp_path / "page.html")
    page.write_text(page.read_text().replace("</body>", USE))
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
    figures = ("spectrum", "depth-rank", "depth-energy", "zeros-plot", "binades", "context-plot", "forest")
    for figure in (*figures, "heat-0", "heat-1", "heads-0", "heads-1"):
        drawn = done.stdout.split(f'id="{figure}"')[1][:20000]
        assert "main-svg" in drawn, f"{figure} was not drawn"
    seen = {key.removeprefix("data-"): value for tag, key, value in dom.attributes if tag == "html"}
    assert (seen["after"], seen["print"], seen["theme"]) == ("dark", "light0", "dark")
    assert seen["opened"] == "Spectrum of the change in embed"
    assert seen["clicked"] == "Spectrum of the change in layers.0.k_proj"
    assert seen["at"].startswith("instruct → reasoning, layer 0, k_proj: layers.0.k_proj: ")
    assert "layer 1, k_proj: layers.1.k_proj: " in seen["moved"]
    assert "Spectrum of the change in layers.1.k_proj" in dom.text
    assert 'aria-sort="descending"' in done.stdout
    for label in ("rounding floor, base → instruct", "bulk edge, instruct → reasoning", "MP, reference only"):
        assert label in done.stdout
