"""docs/truth.md and its plots, assembled from the cached results of the parts."""

import re
from pathlib import Path

HEADER = """# Truth benchmark: planted truths, and whether they were found

Written by `python benchmarks/truth.py` (`make truth`); do not edit. Every delta here was made with a known truth and
measured by the code that `deltalens measure` runs. The targets are those of [measures.md](measures.md) §9, the
definitions those of its §1–§4. Rates carry Wilson's 95 % interval. A target is MET when the measured figure meets it;
the interval says how sure that is. All draws are seeded: the same numbers come back on the same machine. Seconds are
wall-clock, on a machine that other work may share.
"""


def write(out: Path, results: list[dict], machine: dict[str, str]) -> None:
    """Write the document and its SVG files beside it.

    Args:
        out: The Markdown file; plots go to a folder of its stem.
        results: Per part: `title`, `seconds`, `targets`, `text`, `plots`, `machine`.
        machine: Fact → value, of the machine that assembled the document.
    """
    plots = out.parent / out.stem
    plots.mkdir(parents=True, exist_ok=True)
    targets = [(r["title"], t) for r in results for t in r["targets"]]
    judged = [t for _, t in targets if t["met"] is not None]
    met = sum(t["met"] for t in judged)
    lines = [HEADER, f"**{met} of {len(judged)} targets met.**", ""]
    missed = [(title, t) for title, t in targets if t["met"] is False]
    if missed:
        lines += ["Missed:", ""]
        lines += [
            f"- {t['name']}: {t['measured']} (goal {t['goal']}). Why: {t['note'].rstrip('.')}." for _, t in missed
        ]
        lines.append("")
    lines += ["| target | goal | measured | n | verdict | note |", "|---|---|---|---|---|---|"]
    for _, t in targets:
        word = {True: "MET", False: "**MISSED**", None: "–"}[t["met"]]
        cells = [t["name"], t["goal"], t["measured"], str(t["n"] or "exact"), word, t["note"]]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    for result in results:
        lines += ["", f"## {result['title']}", "", result["text"]]
        for name, svg in result["plots"].items():
            (plots / f"{name}.svg").write_text(svg, encoding="utf-8")
            caption = re.search("<title>(.*?)</title>", svg)
            lines += ["", f"![{caption[1] if caption else name}]({out.stem}/{name}.svg)"]
    lines += ["", "## Where these numbers come from", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in machine.items()]
    lines += ["", "| part | seconds | trials from |", "|---|---|---|"]
    lines += [f"| {r['title']} | {r['seconds']:.0f} | {r['machine']} |" for r in results]
    lines.append(f"| all | {sum(r['seconds'] for r in results):.0f} | |")
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
