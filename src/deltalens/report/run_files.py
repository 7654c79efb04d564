"""A figure of the page as an SVG file of its own: the page's drawing set out in pixels, in the colours of its theme.

Files are for papers and slides, so that they use neither CSS nor HTML inside of SVG, which few programs but browsers
draw. The drawings are our own well-formed markup (`experiment_svg`, `run_figures`), read back element by element.
"""

import re
import textwrap
from xml.etree import ElementTree

from markupsafe import Markup

from deltalens.report.page import TEMPLATES
from deltalens.report.run_figures import Figure

WIDTH = 760
MARGIN = 12
LEFT = 110
"""Room for what stands on the left of a chart or a heat map."""
TALL = 280
"""Height of a chart."""
LETTER = 6.4
"""Mean width of a letter of 12 pixels, for breaking lines."""
FONT = "Helvetica, Arial, sans-serif"

_VARIABLE = re.compile(r"--([\w-]+): (#[0-9a-f]{6})")
COLOURS = dict(reversed(_VARIABLE.findall((TEMPLATES / "page.css").read_text(encoding="utf-8").partition("}")[0])))
"""Of the light theme, by the names of its style sheet."""

_MARKS = {f"s{i}": COLOURS[f"run-{i}"] for i in range(6)} | {"s6": COLOURS["undefined"]}
_MARKS |= {"edit": COLOURS["run-0"], "reference": COLOURS["soft"], "control": COLOURS["run-1"]}
_MARKS |= {"muted": COLOURS["undefined"], "claim": COLOURS["run-2"]}

_DASHES = {"s1": "8 3", "s2": "4 2", "s3": "2 2", "s4": "10 2 2 2", "s5": "1 4"}

_SOFT = {"stroke": COLOURS["soft"], "fill": "none"}
_STYLES = {
    "grid": {"stroke": COLOURS["line"]},
    "zero": {**_SOFT, "stroke-width": "1.5"},
    "level": {**_SOFT, "stroke-width": "1.5", "stroke-dasharray": "6 4"},
    "band a": {"fill": COLOURS["soft"], "fill-opacity": ".16"},
    "band b": {"fill": COLOURS["run-4"], "fill-opacity": ".26"},
    "band line": {**_SOFT, "stroke-dasharray": "3 3"},
    "operating": {"fill": "none", "stroke": COLOURS["ink"], "stroke-width": "2"},
    "breaking": {"fill": "none", "stroke": COLOURS["open"], "stroke-width": "2.5"},
}
_KEPT = ("x", "y", "x1", "x2", "y1", "y2", "dy", "d", "points", "width", "height", "viewBox", "preserveAspectRatio")

Element = ElementTree.Element
Pixels = int | float


def svg_file(figure: Figure) -> str:
    """A figure with its caption above and its note beneath, as the text of an SVG file."""
    root = ElementTree.fromstring(f"<figure>{figure.drawing}</figure>")
    drawn, y = _lines(figure.caption, 22, 15, COLOURS["ink"], "bold")
    y += 10
    for part in root:
        kind = (part.get("class") or "").split()
        if part.tag == "div" and "canvas" in kind:
            drawn += _placed(part[0], LEFT / 2, y + 8, WIDTH - LEFT / 2 - MARGIN, TALL)
            y += TALL + 36
        elif part.tag == "div" and "heat-map" in kind:
            high = float(part[0].get("height") or TALL)
            drawn += _placed(part[0], LEFT, y + 18, WIDTH - LEFT - MARGIN, high)
            y += high + 44
        elif part.tag == "div":
            made, y = _dots(part, y)
            drawn += made
        elif "key-line" in kind:
            made, y = _legend(part, y)
            drawn += made
        elif text := _text(part):
            across = "across" in kind
            line = '<text x="{}" y="{}" font-size="11" text-anchor="{}" fill="{}">{}</text>'
            place = ((WIDTH + LEFT / 2) / 2, y - 2, "middle") if across else (MARGIN, y + 4, "start")
            drawn += Markup(line).format(*place, COLOURS["soft"], text)
            y += 8 if across else 14
    made, y = _lines(figure.note, y + 10, 11, COLOURS["soft"])
    head = Markup(
        '<?xml version="1.0" encoding="UTF-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" '
        'viewBox="0 0 {0} {1}" font-family="{2}"><title>{3}</title><rect width="100%" height="100%" fill="{4}"/>{5}'
        "</svg>\n"
    )
    return str(head.format(WIDTH, round(y + 4), FONT, figure.caption, COLOURS["paper"], drawn + made))


def _text(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def _lines(text: str, y: Pixels, size: int, colour: str, weight: str = "normal") -> tuple[Markup, Pixels]:
    """A text broken to the width of the file, and where the next one goes."""
    line = Markup('<text x="{}" y="{}" font-size="{}" fill="{}" font-weight="{}">{}</text>')
    drawn = Markup("")
    for words in textwrap.wrap(text, int((WIDTH - 2 * MARGIN) / (LETTER * size / 12))):
        drawn += line.format(MARGIN, round(y, 1), size, colour, weight, words)
        y += size + 5
    return drawn, y


def _placed(drawing: Element, x: Pixels, y: Pixels, width: Pixels, height: Pixels, role: str = "") -> Markup:
    """One drawing in its box, with all that it holds."""
    box = Markup('<svg x="{}" y="{}" width="{}" height="{}" overflow="visible">{}</svg>')
    return box.format(x, round(y, 1), width, height, _inside(drawing, _MARKS.get(role, COLOURS["run-0"])))


def _inside(element: Element, mark: str) -> Markup:
    return Markup("").join(_drawn(child, mark) for child in element)


def _drawn(element: Element, mark: str) -> Markup:
    """One element with its class turned into attributes; `mark` is the colour of the series that it belongs to."""
    own = element.get("class") or ""
    mark = next((_MARKS[word] for word in own.split() if word in _MARKS), mark)
    attributes = {key: element.attrib[key] for key in _KEPT if key in element.attrib} | _style(element, own, mark)
    told = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in attributes.items())
    inside = _rect(element, own) if "field" in own.split() else _inside(element, mark)
    tag = Markup(element.tag)
    return Markup("<{}{}>{}{}</{}>").format(tag, told, (element.text or "").strip(), inside, tag)


def _style(element: Element, own: str, mark: str) -> dict[str, str]:
    words = own.split()
    if element.tag == "svg":
        return {"overflow": "visible"}
    if element.tag == "text":
        anchor = next((word for word in words if word in ("start", "middle", "end")), "start")
        return {"font-size": "11", "fill": COLOURS["soft"], "text-anchor": anchor}
    if own in _STYLES:
        return _STYLES[own] | ({"vector-effect": "non-scaling-stroke"} if element.tag == "polyline" else {})
    if words == ["mark"]:
        return {"fill": mark, "stroke": COLOURS["paper"]}
    if words == ["whisker"]:
        return {"stroke": mark, "stroke-width": "2.5", "stroke-opacity": ".75"}
    if words[:1] == ["line"]:
        dashes = {"stroke-dasharray": _DASHES[words[1]]} if words[1] in _DASHES else {}
        return {"fill": "none", "stroke": mark, "stroke-width": "2", "vector-effect": "non-scaling-stroke"} | dashes
    return {}


def _rect(element: Element, own: str) -> Markup:
    """The field of a heat map: its colour between the two ends of the scale."""
    title, rect, text = element
    z = float((element.get("style") or "--z:0").partition("--z:")[2])
    fill = mixed(COLOURS["zero"], COLOURS["over" if z >= 0 else "under"], 0.7 * abs(z))
    stroke, thick = (COLOURS["ink"], "2") if "marked" in own else (COLOURS["paper"], "1")
    rect.attrib |= {"fill": COLOURS["line"] if "unknown" in own else fill, "stroke": stroke, "stroke-width": thick}
    kept = Markup("").join(Markup(' {}="{}"').format(*pair) for pair in rect.attrib.items())
    ink = Markup('<text x="{}" y="{}" dy=".35em" font-size="11" text-anchor="middle" fill="{}">{}</text>')
    return Markup("<title>{}</title><rect{}/>{}").format(
        title.text or "", kept, ink.format(text.get("x"), text.get("y"), COLOURS["ink"], text.text or "")
    )


def mixed(first: str, second: str, share: float) -> str:
    """Two colours mixed: `share` of the second."""
    a, b = ([int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (first, second))
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in zip(a, b, strict=True))


def _dots(element: Element, y: Pixels) -> tuple[Markup, Pixels]:
    """The rows of a dot plot: names, tracks and numbers side by side, the axis under them."""
    name_room, number_room, drawn = 250, 190, Markup("")
    width = WIDTH - name_room - number_room - 2 * MARGIN
    word = Markup('<text x="{}" y="{}" font-size="11.5" text-anchor="{}" fill="{}">{}</text>')
    for row in element:
        if row.tag == "svg":
            drawn += _placed(row, MARGIN + name_room, y, width, 16)
            y += 20
            continue
        name, says, track = row
        ink = COLOURS["soft"] if "muted" in (row.get("class") or "") else COLOURS["ink"]
        for i, line in enumerate(textwrap.wrap(_text(name), int((name_room - 10) / LETTER)) or [""]):
            drawn += word.format(MARGIN, round(y + 13 + 14 * i, 1), "start", ink, line)
        drawn += word.format(WIDTH - MARGIN, round(y + 13, 1), "end", COLOURS["soft"], _text(says))
        drawn += _placed(track, MARGIN + name_room, y, width, 18, (row.get("class") or "").split()[-1])
        y += 22 + 14 * i
    return drawn, y


def _legend(element: Element, y: Pixels) -> tuple[Markup, Pixels]:
    """The legend of a chart, broken to the width of the file."""
    drawn, x = Markup(""), MARGIN
    word = Markup('<text x="{}" y="{}" font-size="11.5" fill="{}">{}</text>')
    swatch = Markup('<rect x="{}" y="{}" width="26" height="10"{}/>')
    y += 6
    for item in element:
        text = _text(item)
        wide = 44 + LETTER * len(text)
        if x > MARGIN and x + wide > WIDTH - MARGIN:
            x, y = MARGIN, y + 20
        sample = item[0]
        if sample.tag == "svg":
            mark = (item.get("class") or "").split()
            drawn += _placed(sample, round(x, 1), y, 34, 16, mark[0] if mark else "")
        else:
            own = (sample.get("class") or "").removeprefix("swatch ")
            style = _STYLES["level" if own == "level" else f"band {own}"]
            told = Markup("").join(Markup(' {}="{}"').format(*pair) for pair in style.items())
            drawn += swatch.format(round(x, 1), y + 3, told)
        drawn += word.format(round(x + 40, 1), y + 12, COLOURS["ink"], text)
        x += wide + 12
    return drawn, y + 22
