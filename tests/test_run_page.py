"""The page of a whole run: verdicts and figures from stored numbers alone, what is absent said, foreign text inert."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_report import CHROMIUM, HOSTILE, Page, assert_self_contained
from whole_factory import BASE, QUESTIONS, STEPS, TUNED, a_run, stages

from deltalens.cli.report import Report
from deltalens.cli.run import write_pages
from deltalens.errors import BadInput
from deltalens.report.experiment_words import value
from deltalens.report.page import RUNS
from deltalens.report.run_files import mixed
from deltalens.report.run_page import build_run_page, save_figures, write_run_page
from deltalens.report.run_read import read_whole
from deltalens.report.run_story import story
from deltalens.store.experiment import Experiment, write_summary
from deltalens.store.files import write_json
from deltalens.store.run import Run

LINKED = 'href="spectra.html"'


def opened(html: str) -> Page:
    """The page as a browser reads it; its one link to a file beside it is set aside."""
    page = Page(html.replace(LINKED, 'href="#verdicts"').replace("</main>", '</main><script id="data">0</script>'))
    assert_self_contained(page)
    ids = [v for _, key, v in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    return page


@pytest.fixture(scope="module")
def exp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_run(tmp_path_factory.mktemp("whole") / "exp")


@pytest.fixture
def copy(exp: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exp, tmp_path / "copy"))


def test_doubts_about_the_pair_stand_above_the_card(copy: Path) -> None:
    assert "Know first" not in build_run_page(copy)
    told = json.loads((copy / "verdicts.json").read_text())
    for notes in (3, {"a": 1}, [["wrong"]], None):
        write_json(copy / "verdicts.json", told | {"notes": notes})
        assert "Know first" not in build_run_page(copy)
    write_json(copy / "verdicts.json", told | {"notes": ["wrong base: x", HOSTILE]})
    html = build_run_page(copy)
    opened(html)
    assert html.index("wrong base: x") < html.index('class="verdicts"')


def test_more_pairs_than_one_page_of_spectra_tells_apart(copy: Path) -> None:
    record = json.loads((copy / "experiment.json").read_text())
    safety = record["config"]["pairs"][1]
    for i in range(RUNS + 2):
        shutil.copytree(copy / "pairs" / "safety", copy / "pairs" / f"more-{i}")
        record["config"]["pairs"].append(safety | {"name": f"more-{i}"})
    write_json(copy / "experiment.json", record)
    (copy / "spectra.html").unlink()
    (copy / "refusal.json").unlink()
    shutil.rmtree(copy / "steps")
    write_pages(copy)
    spectra = (copy / "spectra.html").read_text()
    assert "more-3" in spectra and "more-4" not in spectra and TUNED in spectra
    assert "more-7" in (copy / "report.html").read_text()  # its table holds all


def test_captions_name_the_marks_that_are_drawn(exp: Path) -> None:
    figures = {f.name: f for section in story(read_whole(exp)) for part in section.parts for f in part.figures}
    drawn = [f for name, f in figures.items() if re.fullmatch(r"(rank|negate|transition)-\d+", name)]
    assert {f.name.partition("-")[0] for f in drawn} >= {"rank", "transition"}
    for figure in drawn:
        assert ("ring" in figure.note.lower()) == ('class="operating"' in figure.drawing), figure.name
        assert ("triangle" in figure.note) == ("largest control" in figure.drawing), figure.name
    zeros = figures["zeros"]
    ends = [float(x) for x in re.findall(r'<text[^>]*class="\w+">([\d.]+)</text>', zeros.drawing)]
    shown = [float(x) for x in re.findall(r'class="says">([\d.]+) %', zeros.drawing)]
    assert shown and max(ends) >= 0.9 * max(shown) > 1  # one unit


def test_which_direction_was_cut_is_said(copy: Path) -> None:
    folder = copy / "steps" / "negate"
    rows = Experiment.open(folder).summary.to_pylist()
    extra = dict.fromkeys(rows[0]) | {"arm": "pair", "task": "chain", "group": "", "metric": "cut_direction"}
    assert "What is cut" not in build_run_page(copy)
    write_summary(folder, Experiment.open(folder).arms.to_pylist(), [*rows, extra | {"method": "tuned − base"}])
    assert "What is cut: v = tuned − base" in build_run_page(copy)


def test_the_card_and_what_it_leads_to(exp: Path) -> None:
    html = build_run_page(exp)
    page = opened(html)
    card = html[html.index('class="verdicts"') : html.index("</table>")]
    assert re.findall(r'<tr class="(\w+)"><th scope="row"><bdi>([^<]*)</bdi>', card) == [
        (w, q) for q, _, w in QUESTIONS
    ]
    assert re.findall(r'<i aria-hidden="true">(.)</i>(\w+)</span>', card) == [
        ({"supported": "✓", "contradicted": "✗", "undecided": "?"}[word], word) for _, _, word in QUESTIONS
    ]
    assert re.findall(r'href="#(\w+)">figure', card) == [figure for _, figure, _ in QUESTIONS]
    ids = {v for _, key, v in page.attributes if key == "id"}
    assert {figure for _, figure, _ in QUESTIONS} <= ids  # every anchor of a verdict is on the page
    assert "it is so −0.5" in page.text
    assert "F 0.88 [0.87,\u00a00.89]; not to be had – (map); n\u00a0=\u00a0200" in page.text
    assert LINKED in html and "plotly" not in html and len(html) < 400_000
    for said in ("needs a sibling", "arXiv 1234.5678", "the null", "cafe0123",
                 f"deltalens run {BASE} {TUNED} --out {exp}",
                 f"deltalens sweep rank {BASE} --out {exp / 'steps' / 'rank'}"):  # fmt: skip
        assert said in page.text


def test_numbers_are_the_stored_ones(exp: Path) -> None:
    page = opened(build_run_page(exp))
    for step in STEPS:
        for row in Experiment.open(exp / "steps" / step).summary.to_pylist():
            of_claims = ("effect_minus_largest_control", "specific")
            of_curves = ("lambda50_p_think", "lambda50_think_ratio", "sharpness", "functional_rank")
            of_map = step == "map" and row["metric"] == "p_think" and row["reference"]
            if row["value"] is not None and (row["metric"] in (*of_claims, *of_curves) or of_map):
                assert value(row) in page.text, (step, row)
            if step == "eval" and row["metric"] in ("think_ratio", "accuracy", "forced_accuracy"):
                assert value(row) in page.text, row
    for said in (
        "−0.36; null 0.0029", "0.575; null 0.306",  # stages
        "φ 0.437, largest null 0.031, k = 4, Holm p\u00a0=\u00a0.01",  # atlas
        "φ 0.15, null 0.04 (permuted): undecided", "At most +0.11 beyond its largest null, in layer 1 (undecided)",
    ):  # fmt: skip
        assert said in page.text, said


def test_singular_values_stand_over_the_larger_edge(exp: Path) -> None:
    run = Run.open(exp / "pairs" / "main")
    rows = {row["name"]: row for row in run.matrices.to_pylist()}
    drawn = re.findall(r"<title>([\w.]+), σ (\d+): ([\d.]+) × its edge", build_run_page(exp))
    assert len({name for name, _, _ in drawn}) == 4
    for name, i, told in drawn:
        edge = max(rows[name]["floor_edge"], rows[name]["bulk_edge"])
        assert float(told) == pytest.approx(run.spectrum(name)[int(i) - 1] / edge, rel=6e-3)


def test_what_cannot_be_compared_has_no_number(exp: Path) -> None:
    part = build_run_page(exp).partition('id="atlas"')[2].partition("</section>")[0]
    fields = re.findall(r'class="field([^"]*)" .*?<title>([^<]*)</title>.*?>([^<]*)</text>', part)
    assert [(kind, text) for kind, told, text in fields if "main and safety" in told] == 2 * [(" marked", ".44")]
    assert [(kind, text) for kind, told, text in fields if "seed" in told] == 4 * [(" unknown", "×")]


def test_a_cell_has_the_colour_of_the_share_that_it_moves(exp: Path) -> None:
    html = build_run_page(exp)
    part = html[html.index('id="map"') : html.index('id="stages"')]
    fields = re.findall(r'class="field([^"]*)" style="--z:([-\d.]+)"><title>([^<]*)</title>.*?>([^<]*)</text>', part)
    assert len(fields) == 16
    told = {title.split(":")[0]: (kind, float(z), text) for kind, z, title, text in fields}
    assert told["put in layer 1 o_proj top"] == (" marked", 1.0, "50")
    assert told["put in layer 0 q_proj top"] == (" under", -0.04, "−2")
    assert told["put in layer 0 q_proj rest"] == (" unknown", 0.0, "")
    assert sum(kind == " unknown" for kind, _, _ in told.values()) == 12
    assert "put in layer 1 o_proj top: p(think) +0.45 [+0.44, +0.46], p\u00a0=\u00a0.004 (Holm); moves +0.5" in part
    assert part.count("<td") == 5 and "Cells that matter" in part  # one row in the printed table
    assert "Put in: 1 of 4 cells that ran matter" in part and "Leave out:" not in part


def titles(exp: Path) -> list[str]:
    return [one.title for section in story(read_whole(exp)) for part in section.parts for one in part.said]


def test_a_sentence_claims_what_its_interval_shows(copy: Path) -> None:
    said = titles(copy)
    assert "The second stage points back along the first: cosine −0.36" in said
    assert "Specific to reasoning: undecided" in said
    assert "2 of 4 edits do more than their largest control" in said  # rank and steer-up; the intervals of two hold 0
    assert "1 of 3 pairings share their leading outputs: main × safety" in said
    write_json(copy / "stages.json", stages("a", "b", "c", cosine=0.002))
    assert "The second stage is no more along the first than random signs: cosine +0.002" in titles(copy)


def test_no_difference_is_not_called_one(tmp_path: Path) -> None:
    exp = a_run(tmp_path / "exp", better=False)
    assert "no difference is shown" in opened(build_run_page(exp)).text


@pytest.mark.parametrize("step", STEPS)
def test_a_missing_step_is_said(copy: Path, step: str) -> None:
    shutil.rmtree(copy / "steps" / step)
    record = json.loads((copy / "experiment.json").read_text())
    record["missing"] = [{"step": step, "error": "the disk was full", "fix": None}]
    write_json(copy / "experiment.json", record)
    page = opened(build_run_page(copy))
    assert "not here, the disk was full." in page.text
    record["missing"], record["steps"] = (
        [],
        [{"name": step, "status": "skipped", "error": "the configuration skips it"}],
    )
    write_json(copy / "experiment.json", record)
    text = opened(build_run_page(copy)).text
    assert "not here, the configuration skips it." in text
    assert f"Left out: {step} (the configuration skips it)." in text and "Every step that was asked for" in text


def test_an_unfinished_or_damaged_step_is_said(copy: Path) -> None:
    record = json.loads((copy / "steps" / "map" / "experiment.json").read_text())
    write_json(copy / "steps" / "map" / "experiment.json", record | {"status": "running"})
    (copy / "steps" / "rank" / "summary.parquet").write_bytes(b"no table")
    (copy / "pairs" / "main" / "run.json").unlink()
    (copy / "atlas.json").write_text("{")
    text = opened(build_run_page(copy)).text
    assert "map is unfinished" in text and "summary.parquet cannot be read" in text
    assert "atlas.json cannot be read" in text


def test_nothing_but_a_record(copy: Path) -> None:
    for one in copy.iterdir():
        if one.name != "experiment.json":
            shutil.rmtree(one) if one.is_dir() else one.unlink()
    record = json.loads((copy / "experiment.json").read_text()) | {"status": "running", "steps": [], "missing": []}
    write_json(copy / "experiment.json", record)
    html = build_run_page(copy)
    text = opened(html).text
    assert "No verdict was reached" in text and LINKED not in html and "<svg" not in html
    assert text.count("not here, ") >= 12
    assert save_figures(copy, copy / "figures") == []


def test_foreign_text_is_inert(tmp_path: Path) -> None:
    exp = a_run(tmp_path / "exp", HOSTILE, f"b{HOSTILE}", f"t{HOSTILE}")
    html = build_run_page(exp)
    page = opened(html)
    assert "\u202e" not in html and "\u2028" not in html and "\x07" not in html
    assert page.tags.count("script") == 2 and "b" not in page.tags and "title" in page.tags
    assert page.text.count("document.title='pwned'") > 40 and "{{7*7}}" in page.text
    for path in save_figures(exp, tmp_path / "figures"):
        assert "<img" not in path.read_text() and ElementTree.parse(path).getroot().tag.endswith("svg")


def test_anonymised(exp: Path, tmp_path: Path) -> None:
    (exp / "steps" / "eval").mkdir(exist_ok=True)
    html = build_run_page(exp, anonymise=True)
    files = [path.read_text() for path in save_figures(exp, tmp_path / "figures", anonymise=True)]
    for text in (html, *files):
        for secret in ("org/s", "org/root", "alice", "checkpoints", str(exp), str(exp.parent), "spectra.html"):
            assert secret not in text, secret
        assert not re.search(r"[\"'>\s](?:/[\w.-]+){2,}", re.sub(r"</\w+>|/>", "", text))
    page = opened(html)
    assert "deltalens run base tuned --out PATH" in page.text
    assert "base → tuned" in page.text and "tuned of safety" in page.text


def test_figures_are_files_of_their_own(exp: Path, tmp_path: Path) -> None:
    figures = [one for section in story(read_whole(exp)) for part in section.parts for one in part.figures]
    saved = save_figures(exp, tmp_path / "new" / "figures")
    assert len(saved) == len(figures) > 20
    for path, figure in zip(saved, figures, strict=True):
        text = path.read_text()
        root = ElementTree.fromstring(text)
        shown = " ".join(" ".join(root.itertext()).split())
        assert figure.caption in shown and figure.note[:30] in shown
        assert "var(" not in text and "class=" not in text and "style=" not in text and "href" not in text
        assert "foreignObject" not in text
        for said in re.findall(r'class="says">([^<]*)<', figure.drawing):
            assert said in shown
        drawn = figure.drawing.count('class="mark"')
        assert sum("d" in one.attrib and "fill" in one.attrib for one in root.iter()) >= drawn
        assert float(root.attrib["height"]) > 60
    assert [path.name[:3] for path in saved[:2]] == ["01-", "02-"]


def test_colours_are_mixed_evenly() -> None:
    assert mixed("#000000", "#ffffff", 0.0) == "#000000"
    assert mixed("#000000", "#ffffff", 1.0) == "#ffffff"
    assert mixed("#102030", "#203040", 0.5) == "#182838"


def test_the_command(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Report((str(copy),), figures=str(tmp_path / "figures")).run() == 0
    told = capsys.readouterr().out
    assert told.startswith(str(copy / "report.html")) and "figures in" in told
    assert "causal for thinking?" in (copy / "report.html").read_text()
    assert list((tmp_path / "figures").glob("*.svg"))


def test_bad_input(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="page of its own"):
        Report((str(copy), str(copy / "steps" / "rank"))).run()
    with pytest.raises(BadInput, match="--anonymise"):
        Report((str(copy / "steps" / "rank"),), anonymise=True).run()
    with pytest.raises(BadInput, match=r"not named \.html"):
        write_run_page(copy, tmp_path / "page.txt")
    with pytest.raises(BadInput, match="is not what"):
        build_run_page(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be made"):
        save_figures(copy, tmp_path / "file" / "figures")
    record: dict[str, Any] = json.loads((copy / "experiment.json").read_text())
    write_json(copy / "experiment.json", record | {"models": 3})
    with pytest.raises(BadInput, match="damaged"):
        build_run_page(copy)


USE = """<script>
const seen = document.documentElement.dataset;
seen.wide = document.documentElement.scrollWidth - innerWidth;
seen.card = Math.ceil(document.querySelector(".verdicts").getBoundingClientRect().bottom);
document.getElementById("theme").click();
seen.after = seen.theme;
dispatchEvent(new Event("beforeprint"));
seen.print = seen.theme + document.querySelectorAll("details:not([open])").length;
</script></body>"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_chromium_opens_the_page(tmp_path: Path, width: int) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed: the page was not opened")
    page = write_run_page(a_run(tmp_path / "exp"), tmp_path / "page.html")
    page.write_text(page.read_text().replace("</body>", USE))
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}",
             f"--window-size={width},800", "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom",
             page.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = dict(re.findall(r'data-(\w+)="([^"]*)"', done.stdout[: done.stdout.index("<head>")]))
    assert int(seen["wide"]) <= 0
    assert width < 1280 or int(seen["card"]) <= 720  # the whole card on a laptop's first screen
    assert (seen["after"], seen["print"]) == ("dark", "light0")
