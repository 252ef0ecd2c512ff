"""Ticks, thinning and the drawing of charts."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from cscl_fast.report.curves import MOST_POINTS, Line, _thinned, chart, ticks
from cscl_fast.report.dots import Dots, dot_chart
from cscl_fast.report.markup import Markup, escape, table, tag


def test_ticks_are_round_and_span_the_values() -> None:
    draw = random.Random(0)
    for _ in range(300):
        low = draw.uniform(-1, 1) * 10 ** draw.randint(-4, 5)
        high = low + draw.random() * 10 ** draw.randint(-4, 5)
        found = ticks(low, high, 5)
        span = found[-1] - found[0]
        assert found[0] <= low + 1e-9 * span and found[-1] >= high - 1e-9 * span
        assert 2 <= len(found) <= 12
        steps = [b - a for a, b in itertools.pairwise(found)]
        # float64 near the values, and the twelve decimals that ticks are rounded to
        rounding = 1e-15 * max(map(abs, found)) + 1e-12
        assert max(steps) == pytest.approx(min(steps), rel=1e-6, abs=4 * rounding)
    assert ticks(0, 200, 5, whole=True) == [0, 50, 100, 150, 200]
    assert ticks(0, 3, 5, whole=True) == [0, 1, 2, 3]
    assert len(ticks(5.0, 5.0, 5)) > 1  # a constant still has a scale


def test_many_points_are_averaged_not_dropped() -> None:
    points = [(float(i), float(i % 7)) for i in range(1000)]
    thinned = _thinned(Line("x", points, [(x, y - 1, y + 1) for x, y in points]))
    assert len(thinned.points) <= MOST_POINTS and len(thinned.band) == len(thinned.points)
    window = 9  # 1000 / 120, rounded up: the last group is of one
    sizes = [min(window, 1000 - i) for i in range(0, 1000, window)]
    mean = sum(y * n for (_, y), n in zip(thinned.points, sizes, strict=True)) / 1000
    assert mean == pytest.approx(sum(y for _, y in points) / 1000)
    assert "Points are means of 9 logged values." in chart("t", "u", [Line("x", points)])


def test_a_chart_has_its_values_in_its_titles() -> None:
    drawn = chart("Loss <1>", "nats", [Line("a & b", [(1, 0.5), (2, 0.25)], index=3)], digits=3)
    assert "a &amp; b, step 2: 0.250" in drawn and "Loss &lt;1&gt;" in drawn
    assert 'class="line c3"' in drawn and "stroke-dasharray" in drawn
    assert chart("t", "u", [Line("nothing", [])]) == ""
    assert chart("t", "u", [Line("level", [], level=3.0)]) == ""


def test_dots() -> None:
    rows = [Dots("a", (1.0, 3.0), 2.0, 1.414), Dots("b", ()), Dots("c", (), 5.0, before=4.0)]
    drawn = dot_chart("t", "%", rows)
    assert "a: 2.0 ± 1.4 over 2 runs" in drawn
    assert "b: no score" in drawn
    assert "c: 4.0 before, 5.0 after (+1.0)" in drawn
    assert dot_chart("t", "%", [Dots("b", ())]) == ""


def test_long_names_take_two_lines() -> None:
    name = "source only, target statistics, preset gta5-cityscapes"
    drawn = dot_chart("t", "%", [Dots(name, (), 5.0), Dots("x" * 90, (), 4.0)])
    spans = re.findall(r"<tspan[^>]*>([^<]*)</tspan>", drawn)
    assert spans == ["source only, target statistics", "preset gta5-cityscapes", "x" * 29 + "…"]
    assert f"<title>{name}</title>" in drawn


def test_everything_is_escaped_but_markup() -> None:
    assert tag("p", "<b>", Markup("<i>"), title='"<') == '<p title="&quot;&lt;">&lt;b&gt;<i></p>'
    assert escape(3.5) == "3.5"
    assert "&lt;td&gt;" in table(["<td>"], [["<td>"]])


def test_a_deviation_stays_on_the_scale() -> None:
    """Of two values one deviation reaches beyond both of them."""
    drawn = dot_chart("t", "%", [Dots("two", (0.0, 10.0), 5.0, 7.07)])
    ends = re.search(r'class="stem c0" d="M([\d.-]+) [\d.]+H([\d.]+)"', drawn)
    grid = [float(x) for x in re.findall(r'class="grid" d="M([\d.]+) ', drawn)]
    assert ends and min(grid) <= float(ends[1]) < float(ends[2]) <= max(grid)
