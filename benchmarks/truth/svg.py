"""Small static charts without a plotting library: one card per chart, white so that it reads on any page."""

from dataclasses import dataclass
from html import escape

# Okabe and Ito's palette: told apart by every common kind of colour vision; marks and dashes differ as well.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F"]
DASHES = ["", "6 3", "2 3", "8 3 2 3"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 62, 190, 38, 48


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        label: In the legend; an unnamed series continues the one before it, in the same colour.
        x: Abscissae.
        y: Ordinates.
        curve: A theory: a line without marks. Else marks, joined by a line unless the next series is its curve.
        low: Lower ends of error bars, empty for none.
        high: Upper ends.
        points: Marks alone: the abscissa has no order.
    """

    label: str
    x: list[float]
    y: list[float]
    curve: bool = False
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    points: bool = False


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers inside the range."""
    rough = (high - low) / 5
    power = 10.0 ** len(str(int(rough))) / 10 if rough >= 1 else 10.0 ** -(len(f"{1 / rough:.0f}"))
    step = min((power * k for k in (1, 2, 2.5, 5, 10, 20)), key=lambda s: abs(s - rough))
    first = int(-(-low // step))
    return [round(step * i, 10) for i in range(first, int((high + 1e-9 * step) // step) + 1)]


def mark(index: int, x: float, y: float) -> str:
    """A circle, square, triangle or diamond."""
    colour = COLOURS[index % len(COLOURS)]
    shapes = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{colour}"/>',
        f'<rect x="{x - 3.3:.1f}" y="{y - 3.3:.1f}" width="6.6" height="6.6" fill="{colour}"/>',
        f'<path d="M{x:.1f} {y - 4.4:.1f}l4.2 7.4h-8.4z" fill="{colour}"/>',
        f'<path d="M{x:.1f} {y - 4.8:.1f}l4.8 4.8l-4.8 4.8l-4.8 -4.8z" fill="{colour}"/>',
    ]
    return shapes[index % 4]


def chart(
    title: str,
    xlabel: str,
    ylabel: str,
    series: list[Series],
    xrange: tuple[float, float],
    yrange: tuple[float, float],
    rule: tuple[float, str] | None = None,
    notes: list[str] | None = None,
) -> str:
    """Lines over numeric axes, with a legend at the right.

    `rule` is a horizontal line with its name. `notes` are lines below the legend; with them the abscissa counts.
    """
    (x0, x1), (y0, y1) = xrange, yrange
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def px(x: float) -> float:
        return LEFT + wide * (x - x0) / (x1 - x0)

    def py(y: float) -> float:
        return TOP + tall * (1 - (min(max(y, y0), y1) - y0) / (y1 - y0))

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="#222"><title>{escape(title)}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#fff"/>',
        f'<text x="{LEFT}" y="22" font-size="14" font-weight="600">{escape(title)}</text>',
    ]
    for t in ticks(y0, y1):
        out.append(f'<path d="M{LEFT} {py(t):.1f}h{wide}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 7}" y="{py(t) + 4:.1f}" text-anchor="end">{t:g}</text>')
    for t in range(1, len(notes) + 1) if notes else ticks(x0, x1):
        out.append(f'<path d="M{px(t):.1f} {TOP + tall}v4" stroke="#222"/>')
        out.append(f'<text x="{px(t):.1f}" y="{TOP + tall + 18}" text-anchor="middle">{t:g}</text>')
    out.append(f'<path d="M{LEFT} {TOP}v{tall}h{wide}" fill="none" stroke="#222"/>')
    out.append(f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(xlabel)}</text>')
    middle = TOP + tall / 2
    out.append(f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">{escape(ylabel)}</text>')
    if rule:
        out.append(f'<path d="M{LEFT} {py(rule[0]):.1f}h{wide}" stroke="#222" stroke-dasharray="3 3"/>')
        out.append(f'<text x="{LEFT + 6}" y="{py(rule[0]) - 4:.1f}" fill="#444">{escape(rule[1])}</text>')
    index, row = -1, 0
    for position, one in enumerate(series):
        index += bool(one.label)
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // 2 % len(DASHES)]
        points = [(px(x), py(y)) for x, y in zip(one.x, one.y, strict=True)]
        followed = position + 1 < len(series) and series[position + 1].curve
        if one.curve or not (followed or one.points):
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            out.append(
                f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dash}"/>'
            )
        for (x, _), low, high in zip(points, one.low, one.high, strict=False):
            out.append(f'<path d="M{x:.1f} {py(low):.1f}V{py(high):.1f}" stroke="{colour}" opacity=".6"/>')
        if not one.curve:
            out += [mark(index, x, y) for x, y in points]
        if one.label:
            y = TOP + 26 + 19 * row
            row += 1
            out.append(mark(index, WIDTH - RIGHT + 18, y - 4))
            out.append(f'<text x="{WIDTH - RIGHT + 30}" y="{y}">{escape(one.label)}</text>')
    for line, note in enumerate(notes or []):
        y = TOP + 36 + 19 * (row + line)
        out.append(f'<text x="{WIDTH - RIGHT + 14}" y="{y}">{escape(note)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
