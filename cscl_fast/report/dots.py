"""Charts of scores on one common scale: a row for each kind of run, or for each class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cscl_fast.report.curves import ticks
from cscl_fast.report.markup import Markup, figure, tag

WIDTH, ROW = 440, 26
LINE = 15  # of a name that takes two
LONGEST = 30  # characters of a name in one line
RIGHT, TOP, BOTTOM = 16, 6, 24


@dataclass
class Dots:
    """One row: some values (one a run), or a value before and one after."""

    name: str
    values: Sequence[float]
    mean: float = math.nan
    deviation: float = math.nan
    before: float | None = None  # a second, hollow dot with a line to the mean
    index: int = 0  # of its colour


def dot_chart(title: str, unit: str, rows: Sequence[Dots], *, remark: str = "") -> Markup:
    """Dots by row over one scale, hollow before and full after; empty where there is no value."""
    numbers = [v for row in rows for v in (*row.values, row.mean, row.before)]
    numbers += [row.mean + sign * row.deviation for row in rows for sign in (-1, 1)]
    finite = [v for v in numbers if v is not None and math.isfinite(v)]
    if not finite:
        return Markup("")
    scale = ticks(min(finite), max(finite), 6)
    names = [_lines(row.name) for row in rows]
    left = 16 + min(200, round(7.1 * max(len(line) for lines in names for line in lines)))
    tall = ROW + LINE * (max(map(len, names)) - 1)
    height = TOP + tall * len(rows) + BOTTOM

    def across(value: float) -> float:
        return left + (value - scale[0]) / (scale[-1] - scale[0]) * (WIDTH - left - RIGHT)

    drawn = []
    for x in scale:
        at = f"{across(x):.1f}"
        drawn.append(Markup(f'<path class="grid" d="M{at} {TOP}V{height - BOTTOM}"/>'))
        drawn.append(
            tag("text", f"{x:g}".replace("-", "−"), x=at, y=height - BOTTOM + 16,
                text_anchor="middle")
        )  # fmt: skip
    for i, row in enumerate(rows):
        y = TOP + tall * (i + 0.5)
        drawn += [_name(row.name, names[i], left - 8, y), *_row(row, y, tall, left, across)]
    svg = tag(
        "svg", *drawn, viewBox=f"0 0 {WIDTH} {height}", role="img", class_="chart",
        aria_label=f"{title}, {unit}: " + "; ".join(_said(row) for row in rows),
    )  # fmt: skip
    return figure(title, unit, svg, *([tag("p", remark, class_="remark")] if remark else []))


def _lines(name: str) -> list[str]:
    """A name in one line, or broken in two behind the comma nearest to the end of the first."""
    lines = [name]
    if len(name) > LONGEST and (comma := name.rfind(", ", 0, LONGEST + 2)) > 0:
        lines = [name[:comma], name[comma + 2 :]]
    return [line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…" for line in lines]


def _name(name: str, lines: Sequence[str], x: int, y: float) -> Markup:
    first = y - LINE / 2 * (len(lines) - 1)
    spans = [tag("tspan", line, x=x, y=f"{first + LINE * i:.1f}") for i, line in enumerate(lines)]
    return tag("text", tag("title", name), *spans, text_anchor="end", dominant_baseline="middle",
               class_="name")  # fmt: skip


def _row(
    row: Dots, y: float, tall: int, left: int, across: Callable[[float], float]
) -> list[Markup]:
    drawn = []
    look = f"c{row.index}"
    if not math.isfinite(row.mean):
        drawn.append(
            tag("text", "no score", x=left + 4, y=f"{y:.1f}", dominant_baseline="middle",
                class_="axis")
        )  # fmt: skip
        return drawn
    title = tag("title", _said(row))
    at = across(row.mean)
    shapes = ""
    if row.before is not None and math.isfinite(row.before):
        begun = across(row.before)
        shapes += f'<path class="stem {look}" d="M{begun:.1f} {y:.1f}H{at:.1f}"/>'
        shapes += f'<circle class="hollow" cx="{begun:.1f}" cy="{y:.1f}" r="4"/>'
    if math.isfinite(row.deviation):
        low, high = across(row.mean - row.deviation), across(row.mean + row.deviation)
        shapes += f'<path class="stem {look}" d="M{low:.1f} {y:.1f}H{high:.1f}"/>'
    if row.before is None and len(row.values) > 1:
        for value in row.values:
            shapes += f'<circle class="one {look}" cx="{across(value):.1f}" cy="{y:.1f}" r="3.5"/>'
        shapes += f'<path class="mean {look}" d="M{at:.1f} {y - 8:.1f}v16"/>'
    else:
        shapes += f'<circle class="full {look}" cx="{at:.1f}" cy="{y:.1f}" r="5"/>'
    reach = f'<rect class="reach" x="0" y="{y - tall / 2:.1f}" width="{WIDTH}" height="{tall}"/>'
    drawn.append(Markup(f"<g>{title}{reach}{shapes}</g>"))
    return drawn


def _said(row: Dots) -> str:
    if not math.isfinite(row.mean):
        return f"{row.name}: no score"
    text = f"{row.name}: "
    if row.before is not None and math.isfinite(row.before):
        text += f"{row.before:.1f} before, {row.mean:.1f} after ({row.mean - row.before:+.1f})"
    else:
        text += f"{row.mean:.1f}"
        if math.isfinite(row.deviation):
            text += f" ± {row.deviation:.1f} over {len(row.values)} runs"
    return text.replace("-", "−")


def stacked_bar(
    title: str, unit: str, parts: Sequence[tuple[str, float, str]], total: float
) -> Markup:
    """Shares of a whole as one bar: (name, seconds, classes of its colour); the rest is empty."""
    left, width = 0.0, 440.0
    drawn = [Markup('<rect class="empty" x="0" y="2" width="440" height="24" rx="3"/>')]
    for name, value, look in parts:
        wide = width * value / total if total > 0 else 0.0
        text = tag("title", f"{name}: {value:.1f} s, {100 * value / (total or 1):.1f} %")
        drawn.append(
            Markup(f'<rect class="part {look}" x="{left:.1f}" y="2" '
                   f'width="{max(wide, 0):.1f}" height="24">{text}</rect>')
        )  # fmt: skip
        left += wide
    label = f"{title}: " + ", ".join(f"{n} {100 * v / (total or 1):.0f} %" for n, v, _ in parts)
    svg = tag("svg", *drawn, viewBox="0 0 440 28", role="img", aria_label=label, class_="chart bar")
    return figure(title, unit, svg)
