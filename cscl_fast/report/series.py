"""From the tables of runs to the lines of charts: means over the seeds of a kind, with a band."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from cscl_fast.report.comparison import Comparison, Kind
from cscl_fast.report.curves import COLORS, Line, chart
from cscl_fast.report.markup import Markup, join
from cscl_fast.report.records import RunRecords
from cscl_fast.trainer.rows import ADAPTED, AVERAGED, SOURCE_ONLY, TARGET_STATISTICS

Points = list[tuple[float, float]]

# Phase, columns of metrics.csv, title, unit.
LOSSES: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("adaptation", ("source", "target"), "Segmentation losses, Eq. 7", "nats per pixel"),
    ("adaptation", ("discriminator", "adversarial"), "Adversarial losses, Eq. 1", "nats"),
    ("adaptation", ("divergence",), "Symmetric soft divergence, Eq. 13", "nats per class"),
    ("adaptation", ("regression",), "Regression of the critic, Eq. 6", "reward²"),
    ("adaptation", ("critic",), "What the critic expects, Eq. 5", "negative reward"),
)
# Column, title, unit, end of the scale that begins at 0.
SHARES: tuple[tuple[str, str, str, float], ...] = (
    ("kept", "Kept share of the target's locations", "0 to 1", 1.0),
    ("transferability", "Transferability P, mean", "0 to 1", 1.0),
    ("reward", "Reward R, mean over rewarded locations", "0 to 2", 2.0),
)
NAMES = {"source": "source", "target": "target", "discriminator": "D", "adversarial": "E"}


def over_runs(kind: Kind, points: Callable[[RunRecords], Points]) -> Line:
    """The mean over the runs of a kind at the steps that all of them have, ± a deviation."""
    found = [values for run in kind.counted if (values := points(run))]
    if not found:
        return Line(kind.title, [])
    if len(found) == 1:
        return Line(kind.title, found[0])
    tables = [dict(values) for values in found]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    mean, band = [], []
    for step in steps:
        there = [table[step] for table in tables]
        middle, deviation = statistics.fmean(there), statistics.stdev(there)
        mean.append((step, middle))
        band.append((step, middle - deviation, middle + deviation))
    return Line(kind.title, mean, band)


def score_chart(comparison: Comparison) -> Markup:
    """mIoU over the steps of the adaptation; what was before it as level lines."""
    adapted = comparison.adapted
    lines = []
    if len(adapted) == 1:
        for index, row in enumerate((ADAPTED, AVERAGED)):
            line = over_runs(adapted[0], lambda run, row=row: _scores(run, row))  # type: ignore[misc]
            lines.append(Line(row, line.points, line.band, index))
    else:
        for index, kind in enumerate(reversed(adapted)):
            line = over_runs(kind, lambda run: _scores(run, ADAPTED))
            lines.append(Line(kind.title, line.points, line.band, index))
    for i, source in enumerate(comparison.sources):
        for index, row in ((6 - 2 * i, SOURCE_ONLY), (5 - 2 * i, TARGET_STATISTICS)):
            level, name = source.last(row), comparison.source_name(source, row)
            if level.n:
                lines.append(Line(name, [], index=index % COLORS, level=level.mean))
    return chart("mIoU on the evaluation images", "%", lines, digits=1)


def gap_charts(comparison: Comparison) -> Markup:
    """The domain gap: D's balanced accuracy and the divergence of the class centroids."""
    return join(
        chart(title, unit, _kinds(comparison, lambda run, key=key: run.gap_series(key)),  # type: ignore[misc]
              digits=digits, low=low, high=high)
        for key, title, unit, digits, low, high in (
            ("accuracy", "Domain gap: balanced accuracy of D", "0.5 cannot tell, 1 always", 2,
             0.5, 1.0),
            ("divergence", "Domain gap: divergence of the centroids", "nats", 4, 0.0, None),
        )
    )  # fmt: skip


def loss_charts(comparison: Comparison) -> Markup:
    """A chart for each group of losses; with several kinds, one for each loss."""
    several = len(comparison.adapted) > 1
    charts = [_warmup(comparison)]
    for phase, keys, title, unit in LOSSES:
        if several:
            charts += [
                _one(comparison, phase, key, f"{title}: {NAMES[key]}" if len(keys) > 1 else title,
                     unit)
                for key in keys
            ]  # fmt: skip
        else:
            lines = [_line(comparison.main, phase, key, i) for i, key in enumerate(keys)]
            charts.append(chart(title, unit, lines, digits=3))
    for key, title, unit, high in SHARES:
        charts.append(_one(comparison, "adaptation", key, title, unit, low=0.0, high=high))
    return join(charts)


def _warmup(comparison: Comparison) -> Markup:
    """Of the kinds that trained on the source: a study's others begin where they ended."""
    sources = comparison.sources
    lines = [_line(kind, "warmup", "source", i) for i, kind in enumerate(sources)]
    if len(sources) > 1:
        for line, kind in zip(lines, sources, strict=True):
            line.name = comparison.source_name(kind)
    if not any(line.points for line in lines):
        lines = [_line(comparison.main, "warmup", "source", 0)]
    title = "Source-only training: cross-entropy"
    return chart(title, "nats per pixel", lines, digits=3, low=0.0)


def _line(kind: Kind, phase: str, key: str, index: int) -> Line:
    line = over_runs(kind, lambda run: run.series(key, phase))
    return Line(NAMES.get(key, key), line.points, line.band, index)


def _one(
    comparison: Comparison, phase: str, key: str, title: str, unit: str,
    low: float | None = None, high: float | None = None,
) -> Markup:  # fmt: skip
    lines = _kinds(comparison, lambda run: run.series(key, phase))
    return chart(title, unit, lines, digits=3, low=low, high=high)


def _kinds(comparison: Comparison, points: Callable[[RunRecords], Points]) -> list[Line]:
    """One line for each kind that adapts, in the colours of the chart of scores."""
    adapted = comparison.adapted
    lines = []
    for index, kind in enumerate(reversed(adapted)):
        line = over_runs(kind, points)
        lines.append(Line(kind.title, line.points, line.band, index))
    return lines


def _scores(run: RunRecords, row: str) -> Points:
    points = [(float(step), score.get("mIoU", math.nan)) for step, score in run.scores(row)]
    return [(x, y) for x, y in points if math.isfinite(y)]


def bands(comparison: Comparison) -> str:
    """What the charts' bands are; empty where there are none."""
    if all(len(kind.counted) < 2 for kind in comparison.kinds):
        return ""
    return "Lines are means over the runs of a row, bands ± one sample standard deviation."
