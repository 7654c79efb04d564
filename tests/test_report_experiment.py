"""The page of experiments: the stored numbers and nothing else, sentences that follow from them, inert foreign text."""

import re
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from experiment_factory import a_probe, a_steer, a_sweep, an_eval, store, summary_row
from hypothesis import given
from hypothesis import strategies as st
from test_report import CHROMIUM, HOSTILE, Page, assert_self_contained

from deltalens.cli.report import Report
from deltalens.errors import BadInput, Refused
from deltalens.report.experiment import SECTIONS, build_experiments, write_experiments
from deltalens.report.experiment_arms import printed, read_arms
from deltalens.report.experiment_curves import MOST, read_curves
from deltalens.report.experiment_read import read_trials, segments
from deltalens.report.experiment_svg import ticks
from deltalens.report.experiment_words import p_value, value
from deltalens.store.experiment import Experiment
from deltalens.store.files import write_json


def titles(found: Experiment) -> list[str]:
    (trial,) = read_trials([found])
    return [one.title for one in SECTIONS[trial.kind].findings(trial)]


def test_an_evaluation(tmp_path: Path) -> None:
    found = an_eval(tmp_path / "e")
    html = build_experiments([found])
    page = Page(html)
    assert_self_contained(page)
    assert "plotly" not in html and len(html) < 200_000
    assert titles(found)[:3] == [
        "thinker thinks more often than first",
        "thinker answers chain better than first",
        "first has the skill and does not choose it",
    ]
    stored = found.summary.to_pylist()
    for metric in ("accuracy", "think_ratio", "forced_accuracy", "p_think"):
        for row in stored:
            if row["metric"] == metric:
                assert value(row) in page.text, row
    (gap,) = (r for r in stored if r["metric"] == "accuracy" and r["reference"])
    assert f"Accuracy {value({**gap, 'reference': None, 'value': 1.0, 'low': None, 'high': None})}" in page.text
    assert f"{value(gap)} on the same items, Holm\u00a0p\u00a0<\u00a0.0001".replace("Holm\u00a0", "Holm ") in page.text
    for said in ("deltalens eval it", "cafe0123", "0, 1", "Newcombe for paired rates"):
        assert said in page.text
    assert page.text.count("thought 7 tokens") == 2 and "right, did not think" in page.text


def test_no_difference_is_not_called_one(tmp_path: Path) -> None:
    found = titles(an_eval(tmp_path / "e", better=False))
    assert found[0] == "No model thinks more or less often than first"
    assert "No difference shown on chain" in found
    assert not any("better" in title or "skill" in title for title in found)


def test_dots_stand_where_the_numbers_are(tmp_path: Path) -> None:
    html = build_experiments([an_eval(tmp_path / "e")])
    rows = re.findall(r'class="name"><bdi>(\w+)</bdi></span> <span class="says">([^<]*)</span>(.*?)</div>', html, re.S)
    assert len(rows) == 10
    for _, says, drawing in rows[:6]:  # rates
        told = [float(x) / 100 for x in re.findall(r"[\d.]+", says)]
        (dot,) = re.findall(r'<svg x="([\d.]+)%"', drawing)
        (low, high), = re.findall(r'whisker" x1="([\d.]+)%" x2="([\d.]+)%"', drawing)  # fmt: skip
        assert [float(x) / 100 for x in (dot, low, high)] == pytest.approx(told, abs=6e-4)


def test_a_probe(tmp_path: Path) -> None:
    found = a_probe(tmp_path / "p")
    page = Page(build_experiments([found]))
    assert_self_contained(page)
    assert titles(found)[:2] == [
        "Beyond every null in tuned: higher on the first group in layer 1",
        "The same direction in base: in no layer beyond its nulls",
    ]
    assert "Cohen's d is 9 [8, 10]; 95 % of random directions lie in [−4, 4]" in page.text
    (strips,) = (one["strips"] for one in page.data)
    assert [one["layers"] for one in strips] == [[0, 1, 2], [0, 1, 2]]
    assert strips[0]["values"]["z"][1] == [-3, -2, -1, 0, 1, 2]
    assert strips[0]["values"]["raw"][2] == [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5]
    assert "tok2" in page.text and page.text.count("writes") == 2
    drawn = [v for tag, key, v in page.attributes if tag == "span" and key == "style"]
    assert drawn[:6] == [f"--z:{z}" for z in (-1.0, -0.667, -0.333, 0.0, 0.333, 0.667)]


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"d": 4.5}, "Beyond the nulls in no layer of tuned"),  # the lower end of its interval is inside the band
        ({"length": 0.9}, "Undecided: prompt length alone tells the groups apart"),
        ({"prompts": {"seen": True}}, "Undecided: the direction was made from these very prompts"),
        ({"d": -9.0, "prompts": {"names": ["A", "B"]}}, "Beyond every null in tuned: higher on B in layer 1"),
    ],
)
def test_what_a_probe_may_say(tmp_path: Path, changes: dict[str, Any], title: str) -> None:
    assert titles(a_probe(tmp_path / "p", **changes))[0] == title


def test_steering(tmp_path: Path) -> None:
    found = a_steer(tmp_path / "s")
    page = Page(build_experiments([found]))
    assert_self_contained(page)
    assert titles(found) == [
        "p(think) +0.45 along the direction, 0.5 more than the largest control",
        "It thinks more often: 90 % [80, 95]",
        "Ordinary language: perplexity × 1.5",
        "It breaks at α +4, 2 × the operating point",
    ]
    assert "effect − largest control" in page.text and "+0.5 [+0.4, +0.6]" in page.text
    assert "largest of 1 controls (layer 1, +2 permuted v) +0.05 [+0.04, +0.06]" in page.text
    assert "α +2: p(think) 0.5 [0.48, 0.52]; operating point" in page.text
    assert "α +4: p(think) 0.9 [0.88, 0.92]; breaking point" in page.text
    assert "layer 0, α +4: 0.1 [0.09, 0.11]" in page.text
    assert "first item whose thinking it changes: i1" in page.text
    assert "first item whose thinking it leaves: i0" in page.text


def test_a_control_that_does_as_much_is_said(tmp_path: Path) -> None:
    assert (
        titles(a_steer(tmp_path / "s", claim=0.05))[0]
        == "p(think) +0.45 along the direction, no more than the largest control"
    )


def test_a_sweep(tmp_path: Path) -> None:
    found = a_sweep(tmp_path / "w")
    html = build_experiments([found])
    page = Page(html)
    assert_self_contained(page)
    assert titles(found) == [
        "Functional rank 4",
        "Δ_k put into base at rank 4: p(think) +0.8, 0.5 more than the largest control; causal: supported, "
        "sufficient: supported",
        "tuned − Δ_k, from tuned at rank 4: p(think) −0.85, without a control; causal: undecided",
    ]
    stored = found.summary.to_pylist()
    of_curves = ("fraction", "effect_minus_largest_control", "r_align", "functional_rank", "perplexity", "kl")
    for row in stored:
        if row["metric"] in of_curves or (row["metric"] in ("p_think", "accuracy") and not row["reference"]):
            assert value(row) in page.text, row
        if row["metric"] in ("causal", "sufficient"):
            word, _, why = printed(row["method"]).partition(": ")
            assert f"{row['metric']}: {word}, {why}" in page.text
    assert "Δ_k, rank 4: p(think) 0.85 [0.83, 0.87]; operating point" in page.text
    assert "Δ_k, largest control (Δ_k: random U): p(think) 0.07 [0.05, 0.09]" in page.text
    assert "F 0.88 [0.87, 0.89]" in page.text and "tuned 0.95 [0.93, 0.97]" in page.text
    assert "accuracy, facts" in page.text and "r align" in page.text
    assert "first item whose thinking it changes: i1" in page.text and "of facts" not in page.text


def test_ranks_that_double_are_evenly_spaced_and_the_start_is_one_step_before(tmp_path: Path) -> None:
    html = build_experiments([a_sweep(tmp_path / "w")])
    drawn = re.search(r'<polyline class="line s0" points="([^"]*)"', html)
    assert drawn is not None
    xs = [float(pair.split(",")[0]) for pair in drawn[1].split()]
    steps = [b - a for a, b in pairwise(xs)]
    assert len(xs) == 6 and steps[:4] == pytest.approx([steps[0]] * 4, abs=0.02)
    assert steps[4] == pytest.approx(steps[0] * 0.585, abs=0.02)  # log2(12/8)


def test_controls_that_never_decide_are_set_apart(tmp_path: Path) -> None:
    html = build_experiments([a_sweep(tmp_path / "w")])
    rows = re.findall(r'<div class="row (\w+)"><span class="name"><bdi>([^<]*)</bdi></span> <span class="says">', html)
    assert rows == [
        ("edit", "Δ_k = 4 (edit)"),
        ("control", "Δ_k: random U (largest control)"),
        ("claim", "effect − largest control"),
        ("muted", "Δ_k: Haar (never decides)"),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"claim": None}, "without a control; causal: undecided"),
        ({"bounded": False}, "no interval against its controls; causal: undecided"),
        ({"claim": 0.05}, "not shown to be more than the largest control"),
        ({"claim": -0.3}, "0.3 less than the largest control"),
    ],
)
def test_what_a_sweep_may_say(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    found = a_sweep(tmp_path / "w", **changes)
    title = titles(found)[1]
    assert said in title and "more than the largest control;" not in title.replace("not shown to be more", "")
    page = Page(build_experiments([found]))
    assert_self_contained(page)
    if "bounded" in changes:
        assert "effect − largest control +0.5 (no interval)" in page.text and "F 0.88 (no interval)" in page.text


def test_a_transition(tmp_path: Path) -> None:
    found = store(tmp_path / "t", "sweep", [{"arm": "base", "role": "baseline"}], [
        summary_row("all", "lambda50_p_think", 0.695, 0.692, 0.697),
        summary_row("all", "lambda50_think_ratio", None, method="not reached"),
        summary_row("all", "width_p_think", 0.471, 0.465, 0.477),
        summary_row("all", "sharpness", 0.275, 0.273, 0.278, method="contradicted: smooth in log-odds"),
        summary_row("skip MLP", "lambda50_p_think", 0.9, 0.8, 0.95),
        summary_row("skip MLP", "fraction", 0.21, 0.2, 0.22, reference="λ = 1, skip MLP"),
        summary_row("only q", "fraction", 0.4, reference="λ = 1, only q"),
        summary_row("whole", "cosine", 0.03, task=None),
    ], [], recipe=f"../{HOSTILE}")  # fmt: skip
    assert titles(found) == [
        "λ50 of p(think) 0.695 and λ50 of the think ratio: not reached; sharp: contradicted, smooth in log-odds",
        "Where only a part moves, F is at most 0.4: only q",
    ]
    page = Page(build_experiments([found]))
    assert_self_contained(page)
    for text in ("cosine", "width of p(think) 0.471 [0.465, 0.477]", "J 0.275 [0.273, 0.278]", "0.9 [0.8, 0.95]",
                 "F of only q 0.4 (no interval); skip MLP 0.21 [0.2, 0.22]"):  # fmt: skip
        assert text in page.text


def test_few_curves_share_a_chart_of_each_measure(tmp_path: Path) -> None:
    html = build_experiments([a_sweep(tmp_path / "w", curves=3)])
    captions = re.findall(r"<figcaption><bdi>([^<]*)</bdi></figcaption>", html)
    assert captions == [
        "p(think), from base",
        "think ratio, from base",
        "accuracy, from base",
        "tuned − Δ_k, from tuned",
    ]
    assert html.count('<polyline class="line ') == 4  # p(think) alone is known along the curves
    assert html.count(", largest control (") == 9  # of each curve, in each chart


def test_many_curves_are_counted_and_drawn_one_by_one(tmp_path: Path) -> None:
    found = a_sweep(tmp_path / "w", curves=MOST + 2)
    assert titles(found)[1] == f"{MOST + 2} of {MOST + 3} edits move p(think) more than their largest control"
    page = Page(build_experiments([found]))
    assert_self_contained(page)
    assert page.tags.count("figcaption") == 1 + MOST and "2 more in the tables" in page.text


def test_a_sweep_without_places_takes_them_from_its_results(tmp_path: Path) -> None:
    (trial,) = read_trials([a_sweep(tmp_path / "w", places=False)])
    (curve,) = read_curves(read_arms(trial))
    assert curve.name == "edits" and [x for x, _ in curve.along] == [1, 1, 2, 2, 4, 4, 8, 8, 12, 12]
    assert "<polyline" not in build_experiments([a_sweep(tmp_path / "again", places=False)])


def test_several_experiments_share_a_page(tmp_path: Path) -> None:
    found = [an_eval(tmp_path / "e"), a_probe(tmp_path / "p"), a_steer(tmp_path / "s")]
    page = Page(build_experiments(found))
    assert_self_contained(page)
    ids = [v for _, key, v in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert {"e0-differences", "e1-profile", "e2-effects"} <= set(ids)
    assert "p: thinker" not in page.text and len(page.data) == 3


def test_foreign_text_is_inert(tmp_path: Path) -> None:
    found = [
        an_eval(tmp_path / "e", HOSTILE, HOSTILE, HOSTILE),
        a_probe(tmp_path / "p", name=HOSTILE, token=HOSTILE),
        a_steer(tmp_path / "s", name=HOSTILE, text=HOSTILE),
        a_sweep(tmp_path / "w", name=HOSTILE, text=HOSTILE),
        a_sweep(tmp_path / "m", name=HOSTILE, text=HOSTILE, curves=7),
    ]
    html = build_experiments(found)
    page = Page(html)
    assert_self_contained(page)
    assert "\u202e" not in html and "\u2028" not in html and "\x07" not in html
    assert page.tags.count("script") == 2 and "b" not in page.tags
    assert page.text.count("document.title='pwned'") > 20 and "{{7*7}}" in page.text


def test_empty_tables_make_a_page(tmp_path: Path) -> None:
    for kind in SECTIONS:
        page = Page(build_experiments([store(tmp_path / kind, kind, [], [], [])]))
        assert "hold no number" in page.text
        assert_self_contained(page)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    an_eval(tmp_path / "e")
    assert Report((str(tmp_path / "e"),)).run() == 0
    page = tmp_path / "e" / "report.html"
    assert capsys.readouterr().out.strip() == str(page)
    assert "thinker thinks more often" in page.read_text()


def test_bad_input(tmp_path: Path) -> None:
    found = an_eval(tmp_path / "e")
    (tmp_path / "run").mkdir()
    with pytest.raises(BadInput, match="pages of their own"):
        Report((str(tmp_path / "e"), str(tmp_path / "run"))).run()
    with pytest.raises(BadInput, match="named twice"):
        build_experiments([found, found])
    with pytest.raises(BadInput, match="too many"):
        build_experiments([found] * 9)
    with pytest.raises(BadInput, match=r"not named \.html"):
        write_experiments([found], tmp_path / "page.txt")
    write_json(found.path / "experiment.json", found.record | {"kind": "dance"})
    with pytest.raises(BadInput, match="'dance'"):
        Report((str(found.path),)).run()
    write_json(found.path / "experiment.json", found.record | {"models": 3})
    with pytest.raises(BadInput, match="damaged"):
        Report((str(found.path),)).run()
    write_json(found.path / "experiment.json", found.record | {"status": "running"})
    with pytest.raises(Refused, match="unfinished"):
        Report((str(found.path),)).run()
    probed = a_probe(tmp_path / "p")
    (probed.path / "results" / "tokens.parquet").write_bytes(b"no table")
    with pytest.raises(BadInput, match="cannot be read"):
        build_experiments([probed])


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "b c", "\n", "[THINK]"]), max_size=8), st.booleans())
def test_no_text_is_lost_when_it_is_cut(parts: list[str], forced: bool) -> None:
    text = "".join(parts)
    cut = segments(text, forced)
    assert "".join("".join(part for _, part in cut).split()) == "".join(text.split())


def test_where_thinking_is_cut() -> None:
    assert segments("<think>a</think>b") == [(True, "<think>a</think>"), (False, "b")]
    assert segments("a</think>b", forced=True) == [(True, "a</think>"), (False, "b")]
    assert segments("<think>a<think>b") == [(True, "<think>a<think>b")]
    assert segments("a</think>b") == [(False, "a</think>b")]
    assert len(segments("x" * 10_000)[0][1]) < 4_100


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6))
def test_ticks_are_round_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert all(low - 1e-6 * span <= x <= low + span + 1e-6 * span for x in found)
    assert len(found) <= 8


def test_numbers_as_text() -> None:
    row = summary_row("a", "accuracy", 0.065, 0.0384, 0.108)
    assert value(row) == "6.5 % [3.84, 10.8]"
    assert value(row | {"reference": "b", "value": -0.065, "low": -0.1, "high": 0.02}) == "−6.5 points [−10, +2]"
    assert value(summary_row("a", "p_think", 0.00024394)) == "0.00024"
    assert (p_value(None), p_value(1e-9), p_value(0.04), p_value(1.0)) == ("–", "<\u00a0.0001", ".04", "1")


USE = """<script>
const seen = document.documentElement.dataset, one = (s) => document.querySelector(s);
const press = (box, key) => box.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
seen.wide = document.documentElement.scrollWidth - innerWidth;
document.getElementById("theme").click();
seen.after = seen.theme;
one("table.sortable thead th:nth-child(4)").click();
const plot = one("#e1-profile .canvas > svg");
["ArrowRight", "ArrowRight"].forEach((key) => press(plot, key));
seen.point = plot.closest("figure").querySelector(".reading").textContent;
const slider = one(".strips .layer");
slider.value = 2; slider.dispatchEvent(new Event("input"));
press(one(".tokens"), "End");
seen.token = one(".strips .reading").textContent;
one(".scale").value = "raw"; one(".scale").dispatchEvent(new Event("change"));
seen.first = one(".token").style.getPropertyValue("--z");
dispatchEvent(new Event("beforeprint"));
seen.print = seen.theme + document.querySelectorAll("details:not([open])").length;
dispatchEvent(new Event("afterprint"));
</script></body>"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_chromium_opens_the_page(tmp_path: Path, width: int) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed: the page was not opened")
    found = [an_eval(tmp_path / "e", text=HOSTILE), a_probe(tmp_path / "p"), a_steer(tmp_path / "s", name=HOSTILE),
             a_sweep(tmp_path / "w", name=HOSTILE), a_sweep(tmp_path / "m", curves=7)]  # fmt: skip
    page = write_experiments(found, tmp_path / "page.html")
    page.write_text(page.read_text().replace("</body>", USE))
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}",
             f"--window-size={width},900", "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom",
             page.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    dom = Page(done.stdout)
    assert "img" not in dom.tags and "<title>pwned" not in done.stdout
    seen = {key.removeprefix("data-"): v for tag, key, v in dom.attributes if tag == "html"}
    assert seen["ready"] == "1" and int(seen["wide"]) <= 0
    assert (seen["after"], seen["print"], seen["theme"]) == ("dark", "light0", "dark")
    assert 'aria-sort="descending"' in done.stdout
    assert seen["point"].startswith("tuned, layer 1: Cohen's d 9 [8, 10]; random [−4, 4]")
    assert seen["token"] == "token 5, layer 2: z 2, raw 4.5, normalised 0.5"
    assert float(seen["first"]) == pytest.approx(-0.5 / 4.5, abs=1e-3)
