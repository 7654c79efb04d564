"""The figures of an experiment, as SVG in per cent of its box: it fits any width and follows the theme, without script.

Everything that a mark says stands in its <title>, which the page's script reads out for the keyboard. Texts are escaped
where they are set in (`Markup.format`).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from deltalens.report.words import number

Scale = Callable[[float], float]
"""From a number to per cent of the box."""

SHAPES = (
    "M0-5A5 5 0 1 0 .01-5Z",
    "M-4.4-4.4H4.4V4.4H-4.4Z",
    "M0-6 6 0 0 6-6 0Z",
    "M0-5.6 5.6 4.6H-5.6Z",
    "M-2-5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z",
    "M0 5.6 5.6-4.6H-5.6Z",
)
"""Circle, square, diamond, triangle, cross, triangle down: a series is told by its shape as well as by its colour."""

_ROLES = {"reference": 0, "edit": 0, "control": 1, "muted": 1, "claim": 2}

_EXTRA = (("operating", "M0-9A9 9 0 1 0 .01-9Z"), ("breaking", "M-5-5 5 5M5-5-5 5"))
"""A ring and a cross, over everything else."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One line of a dot plot.

    Attributes:
        name: On its left.
        value: Where the dot stands, None for none.
        low: Lower end of its interval.
        high: Upper end.
        text: On its right.
        role: "reference", "edit", "control", "muted" or "claim": how it is drawn.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    role: str = "edit"


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a line: where, its interval, what it says, and whether it is an operating or breaking point."""

    x: float
    y: float
    low: float | None
    high: float | None
    text: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One series: its name, its points in order of x, and which of the styles it has; 6 is the quiet one.

    Points that are not `joined` stand alone: what lies between them is not known.
    """

    name: str
    points: Sequence[Point]
    style: int
    joined: bool = True


@dataclass(frozen=True, slots=True)
class Band:
    """What a null gives: lower and upper bound at every x; `style` "a" and "b" are shaded, "line" is outlined."""

    name: str
    xs: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    style: str


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most about `most`."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round((first + i) * step, 12) + 0.0 for i in range(math.floor((high - first * step) / step + 1e-9) + 1)]


def dots(rows: Sequence[Dot], low: float | None = None, high: float | None = None, zero: bool = False) -> Markup:
    """A dot plot: a line of text and a track for each row, and one axis under all.

    Args:
        rows: From top to bottom.
        low: Left end of the axis; None for what the rows need.
        high: Right end.
        zero: Whether to mark 0, where nothing differs.
    """
    ends = [x for row in rows for x in (row.value, row.low, row.high) if x is not None]
    left, right = _range([*ends, 0.0] if zero else ends, low, high)
    place = _scale(left, right)
    at = ticks(left, right, 4)
    grid = _join(Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>').format(_r(place(x))) for x in at)
    if zero:
        grid += Markup('<line class="zero" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>').format(_r(place(0.0)))
    lines = _join(
        Markup(
            '<div class="row {}"><span class="name"><bdi>{}</bdi></span> <span class="says">{}</span>'
            '<svg class="track" aria-hidden="true">{}{}</svg></div>'
        ).format(row.role, row.name, row.text, grid, _dot(row, place))
        for row in rows
    )
    labels = _join(
        Markup('<text x="{}%" y="11" class="{}">{}</text>').format(_r(place(x)), _anchor(place(x)), _tick(x))
        for x in at
    )
    return Markup('<div class="dots">{}<svg class="ends" aria-hidden="true">{}</svg></div>').format(lines, labels)


def _dot(row: Dot, place: Scale) -> Markup:
    if row.value is None:
        return Markup("")
    whisker = Markup("")
    if row.low is not None and row.high is not None:
        whisker = Markup('<line class="whisker" x1="{}%" x2="{}%" y1="50%" y2="50%"/>').format(
            _r(place(row.low)), _r(place(row.high))
        )
    return whisker + _mark(place(row.value), 50.0, SHAPES[_ROLES[row.role]], "mark")


def chart(
    lines: Sequence[Line],
    bands: Sequence[Band],
    titles: tuple[str, str],
    y: tuple[float | None, float | None] = (None, None),
    level: tuple[float, str] | None = None,
    whole: bool = False,
    places: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Lines with intervals over shaded bands, with a legend.

    Args:
        lines: At least one with a point; later ones are drawn over earlier ones.
        bands: Under them.
        titles: Of the x and of the y axis.
        y: Ends of the y axis, None for what the numbers need.
        level: A height to mark, and its name.
        whole: Whether x is a whole number, such as a layer.
        places: Places on the x axis and what stands under them, in place of round numbers; the axis covers all.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup('<p class="hint">No numbers to draw.</p>')
    xs = [*(point.x for point in points), *(x for x, _ in places)]
    ys = [v for point in points for v in (point.y, point.low, point.high) if v is not None]
    ys += [v for band in bands for v in (*band.low, *band.high)] + ([level[0]] if level else [])
    left, right = min(xs), max(xs)
    pad = 0.04 * (right - left) or 0.5
    left, right = left - pad, right + pad
    bottom, top = _range(ys, *y)
    px, py = _scale(left, right), _scale(top, bottom)
    across = sorted(set(xs)) if whole and len(set(xs)) <= 12 else ticks(left, right, 8)
    at_x, at_y = [x for x in across if not whole or x == int(x)], ticks(bottom, top, 5)
    drawn = [Markup('<line class="grid" x1="0" x2="100%" y1="{0}%" y2="{0}%"/>').format(_r(py(v))) for v in at_y]
    drawn += [Markup('<text class="end" x="-8" y="{}%" dy=".35em">{}</text>').format(_r(py(v)), _tick(v)) for v in at_y]
    under = Markup('<text class="middle" x="{}%" y="100%" dy="1.5em">{}</text>')
    drawn += [under.format(_r(px(x)), name) for x, name in places or [(x, _tick(x)) for x in at_x]]
    areas = [_band(band, px, py, 100 * pad / (right - left)) for band in bands]
    path = Markup('<polyline class="line s{}" points="{}"/>')
    strokes = [path.format(line.style, _path((px(p.x), py(p.y)) for p in line.points)) for line in lines if line.joined]
    drawn.append(
        Markup('<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">{}{}</svg>').format(
            _join(areas), _join(strokes)
        )
    )
    if level:
        drawn.append(Markup('<line class="level" x1="0" x2="100%" y1="{0}%" y2="{0}%"/>').format(_r(py(level[0]))))
    drawn += [_point(line, point, px, py) for line in lines for point in line.points]
    drawn += [_mark(px(p.x), py(p.y), shape, kind) for kind, shape in _EXTRA for p in points if kind in p.mark.split()]
    return Markup(
        '<p class="axis">{}</p><div class="canvas"><svg role="img" aria-label="{}, over {}" tabindex="0">{}</svg></div>'
        '<p class="axis across">{}</p>{}<p class="reading" aria-live="polite"></p>'
    ).format(titles[1], titles[1], titles[0], _join(drawn), titles[0], _legend(lines, bands, level))


def _point(line: Line, point: Point, px: Scale, py: Scale) -> Markup:
    whisker = Markup("")
    if point.low is not None and point.high is not None:
        whisker = Markup('<line class="whisker" x1="{0}%" x2="{0}%" y1="{1}%" y2="{2}%"/>').format(
            _r(px(point.x)), _r(py(point.low)), _r(py(point.high))
        )
    marks = _mark(px(point.x), py(point.y), SHAPES[line.style % 6], "mark")
    return Markup('<g class="point s{}"><title>{}</title>{}{}</g>').format(line.style, point.text, whisker, marks)


def _band(band: Band, px: Scale, py: Scale, pad: float) -> Markup:
    if not band.xs:
        return Markup("")
    upper = [(px(x), py(v)) for x, v in zip(band.xs, band.high, strict=True)]
    lower = [(px(x), py(v)) for x, v in zip(band.xs, band.low, strict=True)]
    # To the sides of the first and last x, so that a band at a single x can be seen.
    both = [[(line[0][0] - pad, line[0][1]), *line, (line[-1][0] + pad, line[-1][1])] for line in (upper, lower)]
    if band.style == "line":
        return _join(Markup('<polyline class="band line" points="{}"/>').format(_path(line)) for line in both)
    return Markup('<polygon class="band {}" points="{}"/>').format(band.style, _path([*both[0], *reversed(both[1])]))


def _legend(lines: Sequence[Line], bands: Sequence[Band], level: tuple[float, str] | None) -> Markup:
    sample = Markup(
        '<span class="s{0}"><svg class="sample" aria-hidden="true"><line class="line s{0}" x1="0" x2="100%" y1="50%" '
        'y2="50%"/>{1}</svg><bdi>{2}</bdi></span>'
    )
    styled = [line for line in lines if line.style < len(SHAPES)]
    items = [sample.format(one.style, _mark(50.0, 50.0, SHAPES[one.style], "mark"), one.name) for one in styled]
    marks = {word for line in lines for point in line.points for word in point.mark.split()}
    items += [
        Markup('<span><svg class="sample" aria-hidden="true">{}</svg>{} point</span>').format(
            _mark(50.0, 50.0, shape, kind), kind
        )
        for kind, shape in _EXTRA
        if kind in marks
    ]
    items += [
        Markup('<span><i class="swatch {}" aria-hidden="true"></i>{}</span>').format(band.style, band.name)
        for band in bands
    ]
    if level:
        items.append(Markup('<span><i class="swatch level" aria-hidden="true"></i>{}</span>').format(level[1]))
    return Markup('<p class="key-line">{}</p>').format(_join(items))


def _mark(x: float, y: float, shape: str, kind: str) -> Markup:
    return Markup('<svg x="{}%" y="{}%" class="at"><path class="{}" d="{}"/></svg>').format(_r(x), _r(y), kind, shape)


def _scale(start: float, end: float) -> Scale:
    return lambda x: 100 * (x - start) / (end - start)


def _range(values: Sequence[float], low: float | None, high: float | None) -> tuple[float, float]:
    """Ends of an axis, with a little air where they are not given."""
    least, most = min(values, default=0.0), max(values, default=1.0)
    air = 0.05 * (most - least) or abs(most) * 0.1 or 1.0
    return (least - air if low is None else low), (most + air if high is None else high)


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_r(x)},{_r(y)}" for x, y in points)


def _join(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _r(x: float) -> float:
    return round(x, 2) + 0.0


def _tick(x: float) -> str:
    return number(x).replace("-", "−")


def _anchor(percent: float) -> str:
    return "start" if percent < 4 else "end" if percent > 96 else "middle"
