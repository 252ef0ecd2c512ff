"""Line charts as SVG. Colours are variables of the page, so that they follow its light and dark.

Every line has a colour and a dash pattern of its own, so that neither alone has to tell them
apart, and a title at each of its points, which browsers show under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cscl_fast.report.markup import Markup, escape, figure, tag

COLORS = 7  # --line-0 … --line-6 of the style sheet
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 4")
MOST_POINTS = 120  # of a line; more are averaged
MOST_TITLES = 40  # of a line
WIDTH, HEIGHT = 440, 228
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 22

Points = Sequence[tuple[float, float]]


@dataclass
class Line:
    """One line of a chart."""

    name: str
    points: Points  # (x, y)
    band: Sequence[tuple[float, float, float]] = ()  # (x, low, high)
    index: int = 0  # of its colour and dashes
    level: float | None = None  # a horizontal line instead


def chart(
    title: str,
    unit: str,
    lines: Sequence[Line],
    *,
    x_label: str = "step",
    digits: int = 2,
    low: float | None = None,
    high: float | None = None,
    remark: str = "",
) -> Markup:
    """A figure with its legend; empty if no line has a point.

    Args:
        digits: decimals of the values in the legend and the titles.
        low, high: ends of the scale that must be on it; None: as the values have it.
    """
    lines = [line for line in lines if line.points or line.level is not None]
    if not any(line.points for line in lines):
        return Markup("")
    averaged = max(_window(line.points) for line in lines)
    lines = [_clipped(_thinned(line), low, high) for line in lines]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [y for line in lines for _, *ends in line.band for y in ends]
    ys += [line.level for line in lines if line.level is not None]
    ys += [end for end in (low, high) if end is not None]
    x_ticks, y_ticks = ticks(0.0, max(xs), 5, whole=True), ticks(min(ys), max(ys), 5)
    frame = _Frame((0.0, max(xs)), (y_ticks[0], y_ticks[-1]))
    drawn = [*_grid(frame, x_ticks, y_ticks, x_label)]
    for line in reversed(lines):  # the first one lies on top
        drawn += _line(line, frame, x_label, digits)
    label = f"{title}, {unit}: " + "; ".join(
        f"{line.name} {_value(line, digits)}" for line in lines
    )
    svg = tag(
        "svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label,
        class_="chart",
    )  # fmt: skip
    legend = tag("ul", *(_legend(line, digits) for line in lines), class_="legend")
    remarks = [remark] if remark else []
    if averaged > 1:
        remarks.append(f"Points are means of {averaged} logged values.")
    content = [svg, legend, *([tag("p", " ".join(remarks), class_="remark")] if remarks else [])]
    return figure(title, unit, *content)


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round numbers that span low..high, about `count` of them.

    With `whole` they are whole numbers inside low..high, as steps are.
    """
    if not high > low:
        margin = abs(low) * 0.1 or 1.0
        low, high = (low, low + 1) if whole else (low - margin, high + margin)
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    if whole:
        step = max(1.0, float(round(step)))
        first, last = math.ceil(low / step), math.floor(high / step)
    else:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass
class _Frame:
    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, x: float) -> float:
        share = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def down(self, y: float) -> float:
        share = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _grid(
    frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str
) -> list[Markup]:
    drawn = []
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for y in y_ticks:
        at = f"{frame.down(y):.1f}"
        drawn.append(Markup(f'<path class="grid" d="M{LEFT} {at}H{right}"/>'))
        drawn.append(
            tag("text", _tick(y), x=LEFT - 6, y=at, text_anchor="end", dominant_baseline="middle")
        )
    for x in x_ticks:
        at = f"{frame.across(x):.1f}"
        drawn.append(Markup(f'<path class="tick" d="M{at} {bottom}v4"/>'))
        if frame.across(x) < right - 40:
            drawn.append(tag("text", _tick(x), x=at, y=bottom + 16, text_anchor="middle"))
    drawn.append(tag("text", x_label, x=right, y=bottom + 16, text_anchor="end", class_="axis"))
    drawn.append(Markup(f'<path class="base" d="M{LEFT} {bottom}H{right}"/>'))
    return drawn


def _tick(value: float) -> str:
    if abs(value) >= 10000:
        return f"{value / 1000:g}k".replace("-", "−")
    return f"{value:g}".replace("-", "−")


def _line(line: Line, frame: _Frame, x_label: str, digits: int) -> list[Markup]:
    drawn = []
    dash = _dash(line)
    look = f'class="line c{line.index % COLORS}"' + (f' stroke-dasharray="{dash}"' if dash else "")
    if line.level is not None:
        at = f"{frame.down(line.level):.1f}"
        title = tag("title", f"{line.name}: {line.level:.{digits}f}")
        return [Markup(f'<path {look} d="M{LEFT} {at}H{WIDTH - RIGHT}">{title}</path>')]
    if line.band:
        above = [(frame.across(x), frame.down(high)) for x, _, high in line.band]
        below = [(frame.across(x), frame.down(low)) for x, low, _ in reversed(line.band)]
        drawn.append(
            Markup(f'<path class="band c{line.index % COLORS}" d="M{_path(above + below)}Z"/>')
        )
    places = [(frame.across(x), frame.down(y)) for x, y in line.points]
    if len(places) > 1:
        drawn.append(Markup(f'<path {look} d="M{_path(places)}"/>'))
    every = math.ceil(len(places) / MOST_TITLES)
    visible = "dot" if len(places) <= 24 else "hit"
    for i, ((x, y), (step, value)) in enumerate(zip(places, line.points, strict=True)):
        if i % every and i != len(places) - 1:
            continue
        title = tag("title", f"{line.name}, {x_label} {step:g}: {value:.{digits}f}")
        drawn.append(
            Markup(
                f'<g class="{visible} c{line.index % COLORS}">{title}'
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9"/>'
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/></g>'
            )
        )
    return drawn


def _dash(line: Line) -> str:
    """With the colours used up, the same colour comes with other dashes."""
    return DASHES[(line.index + line.index // COLORS) % len(DASHES)]


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _legend(line: Line, digits: int) -> Markup:
    dash = _dash(line)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    sample = Markup(
        f'<svg class="sample" viewBox="0 0 28 8" aria-hidden="true">'
        f'<path class="line c{line.index % COLORS}"{dashed} d="M0 4H28"/></svg>'
    )
    return tag("li", sample, tag("span", line.name), " ", tag("b", _value(line, digits)))


def _value(line: Line, digits: int) -> str:
    value = line.level if line.level is not None else line.points[-1][1]
    return f"{value:.{digits}f}".replace("-", "−")


def _window(points: Points) -> int:
    return math.ceil(len(points) / MOST_POINTS)


def _thinned(line: Line) -> Line:
    """Neighbours averaged, so that a line has no more points than can be seen."""
    window = _window(line.points)
    if window <= 1:
        return line
    groups = [line.points[i : i + window] for i in range(0, len(line.points), window)]
    means = [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]
    bands = [line.band[i : i + window] for i in range(0, len(line.band), window)]
    band = [
        tuple(sum(column) / len(group) for column in zip(*group, strict=True)) for group in bands
    ]
    return Line(line.name, means, band, line.index)


def _clipped(line: Line, low: float | None, high: float | None) -> Line:
    """A share's band ends where the share does."""
    bottom, top = (-math.inf if low is None else low), (math.inf if high is None else high)
    band = [(x, max(below, bottom), min(above, top)) for x, below, above in line.band]
    return Line(line.name, line.points, band, line.index, line.level)


def sparkline(points: Points, label: str, *, high: float) -> Markup:
    """A small line from 0 to `high` for a cell of a table."""
    if not points:
        return escape("–")
    points = _thinned(Line("", points)).points
    first, last = points[0][0], points[-1][0]
    width, height = 120, 26
    places = [
        (
            2 + (x - first) / ((last - first) or 1) * (width - 4),
            height - 3 - min(max(y / (high or 1), 0), 1) * (height - 6),
        )
        for x, y in points
    ]
    if len(places) == 1:
        places = [(2, places[0][1]), (width - 2, places[0][1])]
    line = Markup(f'<path class="line c0" d="M{_path(places)}"/>')
    base = Markup(f'<path class="grid" d="M2 {height - 3}H{width - 2}"/>')
    return tag(
        "svg", tag("title", label), base, line, viewBox=f"0 0 {width} {height}", role="img",
        aria_label=label, class_="sparkline",
    )  # fmt: skip
