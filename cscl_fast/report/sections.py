"""The sections on results: scores, curves, classes, thresholds, pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cscl_fast.report import answer, pictures, series
from cscl_fast.report import classes as by_class
from cscl_fast.report.comparison import PAPER_NAMES, Comparison
from cscl_fast.report.curves import COLORS, sparkline
from cscl_fast.report.dots import Dots, dot_chart
from cscl_fast.report.markup import Markup, escape, join, note, swatch, table, tag
from cscl_fast.report.records import RunRecords, Table, number
from cscl_fast.studies.spread import Spread
from cscl_fast.trainer.rows import ADAPTED, SOURCE_ONLY, TARGET_STATISTICS
from cscl_fast.trainer.transferability_panels import REWARD_COLORS

SCORES_NOTE = (
    "IoU in percent on the evaluation images of the target, plain path; gains in points, taken "
    "within each run. ± is the sample standard deviation over the runs of a row. “Last” is the "
    "network at the end; “best” was chosen with the evaluation labels."
)


def scores(comparison: Comparison) -> Markup:
    """mIoU of every kind of run, and of every run."""
    rows = answer.answer_rows(comparison)
    used = [i for i in range(len(rows[0])) if i < 2 or any(row[i] != "–" for row in rows)]
    head = [answer.ANSWER_HEAD[i] for i in used]
    main = comparison.kinds.index(comparison.main)
    caption = " ".join([SCORES_NOTE, *left_out(comparison)])
    content = [
        table(head, [[row[i] for i in used] for row in rows], caption=caption, strong=[main],
              sticky=True)
    ]  # fmt: skip
    if len(comparison.kinds) > 1 or len(comparison.runs) > 1:
        charts = (_kinds_chart(comparison), series.score_chart(comparison))
        content.append(tag("div", *charts, class_="grid2"))
        content.append(
            tag("details", tag("summary", f"All {len(comparison.runs)} runs"), _runs(comparison))
        )
    return join(content)


def left_out(comparison: Comparison) -> list[str]:
    """What the paper's names of the rows mean, for those that occur."""
    parts = dict.fromkeys(part for kind in comparison.kinds for part in kind.without)
    return [
        f"w/o {PAPER_NAMES[p]}: without {answer.LEFT_OUT[p]}." for p in parts if p in PAPER_NAMES
    ]


def _kinds_chart(comparison: Comparison) -> Markup:
    rows = []
    for source in comparison.sources:
        for row in (SOURCE_ONLY, TARGET_STATISTICS):
            value, name = source.last(row), comparison.source_name(source, row)
            rows.append(Dots(name, value.values, value.mean, value.deviation, index=6))
    adapted = comparison.adapted
    for index, kind in enumerate(adapted):
        value = kind.last(ADAPTED)
        color = (len(adapted) - index - 1) % COLORS
        rows.append(Dots(kind.title, value.values, value.mean, value.deviation, index=color))
    remark = "A dot is a run, the upright line their mean, the level line ± one sample deviation."
    return dot_chart("mIoU, last", "%", rows, remark=remark)


def _runs(comparison: Comparison) -> Markup:
    def cell(score: dict[str, float] | None) -> str:
        value = math.nan if score is None else score.get("mIoU", math.nan)
        return Spread((value,)).text() if math.isfinite(value) else "–"

    rows = []
    for kind in comparison.kinds:
        for run in kind.runs:
            best = run.best()
            rows.append(
                [run.name, kind.name, run.place, "–" if run.seed is None else run.seed,
                 cell(run.last(SOURCE_ONLY)), cell(run.last(TARGET_STATISTICS)),
                 cell(run.last(ADAPTED)), "–" if best is None else f"{best[2]['mIoU']:.1f}",
                 "–" if best is None else best[0]]
            )  # fmt: skip
    head = ("run", "row", "state", "seed", SOURCE_ONLY, "target statistics", "CSCL, last", "best",
            "best at step")  # fmt: skip
    return table(head, rows, text_columns=3)


def curves(comparison: Comparison) -> Markup:
    """mIoU, the domain gap, the losses over the steps."""
    gap = series.gap_charts(comparison)
    charts = [gap, series.loss_charts(comparison)]
    if len(comparison.runs) == 1:  # of several it stands beside the scores
        charts.insert(0, series.score_chart(comparison))
    if not any(charts):
        return note("No values have been logged yet.")
    content = [note(series.bands(comparison))] if series.bands(comparison) else []
    content.append(tag("div", *charts, class_="grid2"))
    if not gap and not comparison.main.source_only:
        content.append(note("Domain gap: not recorded (gap.csv)."))
    return join(content)


def classes(comparison: Comparison) -> Markup:
    """IoU by class as dots and as a table, the paper's column beside it."""
    columns = by_class.columns(comparison)
    if not columns:
        return note(answer.no_score(comparison))
    paper = by_class.paper(comparison)
    colors = by_class.colors(comparison)
    main = comparison.main
    after = TARGET_STATISTICS if main.source_only else ADAPTED
    dots = [
        Dots(name, (), main.last(after, name).mean, before=main.last(SOURCE_ONLY, name).mean)
        for name in comparison.classes
    ]  # fmt: skip
    what = TARGET_STATISTICS if main.source_only else f"{main.name}, last"
    figure = dot_chart(
        "IoU by class", "%", dots, remark=f"Hollow: {SOURCE_ONLY}; full: {what}."
    )  # fmt: skip
    gains = {
        name: main.gain(SOURCE_ONLY, after, name) for name in ("mIoU", "mIoU*", *comparison.classes)
    }
    keys = [k for k in ("mIoU", "mIoU*") if any(c.values.get(k, Spread(())).n for c in columns)]
    shown = [*columns, *paper.columns]
    head = ["class", *(c.title for c in shown), "gain, points"]
    rows = [
        [_class_name(key, colors), *(c.values.get(key, Spread(())).text() for c in shown),
         gains[key].text(sign=True)]
        for key in (*keys, *comparison.classes)
    ]  # fmt: skip
    caption = (
        f"IoU in percent. Gain: {what}, against {SOURCE_ONLY}, within each run. A dash is a class "
        "in neither the labels nor the prediction; it does not enter the mean."
    )
    beside = "beside" if len(shown) <= 4 else "below"
    numbers = tag(
        "div",
        table(head, rows, caption=caption, strong=range(len(keys)), sticky=True),
        note(paper.remark) if paper.remark else "",
    )
    return tag("div", figure, numbers, class_=beside)


def _class_name(name: str, colors: dict[str, tuple[int, int, int]]) -> Markup:
    return join([swatch(colors.get(name)), name])


def labels(comparison: Comparison) -> Markup:
    """δ and the kept share by class over time, of one run."""
    run = comparison.shown
    if run.source_only:
        return note("A source-only run has no pseudo-labels.")
    if not run.thresholds and not run.kept:
        return note("Not recorded (thresholds.csv, kept.csv): no epoch has begun.")
    colors = by_class.colors(comparison)
    which = _which(comparison, run)
    content = [which] if which else []
    tables = (_threshold_table, _kept_table)
    drawn = [tag("div", draw(run, comparison.classes, colors)) for draw in tables]
    content.append(tag("div", *drawn, class_="grid2"))
    return join(content)


def _threshold_table(
    run: RunRecords, names: Sequence[str], colors: dict[str, tuple[int, int, int]]
) -> Markup:
    if "pseudo-labels" in run.without:
        return note("Thresholds: none; without the pseudo-labels' selection every label is kept.")
    if not run.thresholds:
        return note("Thresholds: not recorded (thresholds.csv).")
    rows = run.thresholds
    chosen = _spread_out(rows, 8)
    head = ["threshold δ", *(f"epoch {row.get('epoch', '?')}" for row in chosen), "over the epochs"]
    body = [["portion S_A", *(_fixed(row, "portion", 2) for row in chosen), ""]]
    for name in names:
        values = [(float(i), number(row.get(name))) for i, row in enumerate(rows)]
        values = [(x, y) for x, y in values if math.isfinite(y)]
        line = sparkline(values, f"δ of {name} over the epochs, 0 to 1", high=1.0)
        body.append([_class_name(name, colors), *(_fixed(r, name, 3) for r in chosen), line])
    caption = (
        "Class-wise thresholds δ (Algorithm 1), 0 to 1: the confidence that the best S_A of a "
        "class's pixels reach; 1 where a class was never predicted."
    )
    return table(head, body, caption=caption, sticky=True)


def _kept_table(
    run: RunRecords, names: Sequence[str], colors: dict[str, tuple[int, int, int]]
) -> Markup:
    if not run.kept:
        kept = run.series("kept", "adaptation")
        if not kept:
            return note("Kept share: not recorded (kept.csv).")
        return note(
            f"Kept share by class: not recorded (kept.csv). Over all classes it went from "
            f"{100 * kept[0][1]:.1f} to {100 * kept[-1][1]:.1f} % of the target's locations."
        )
    rows = [row for row in run.kept if row.get("phase", "adaptation") == "adaptation"]
    quarter = max(1, len(rows) // 4)
    points = {
        name: [
            (number(r.get("step")), 100 * number(r.get(name)))
            for r in rows
            if math.isfinite(number(r.get("step"))) and math.isfinite(number(r.get(name)))
        ]
        for name in names
    }

    def mean(values: Sequence[tuple[float, float]]) -> float:
        return sum(y for _, y in values) / len(values) if values else math.nan

    body = []
    for name in names:
        values = points[name]
        high = max((y for _, y in values), default=math.nan)
        body.append(
            [_class_name(name, colors), _number(mean(values[:quarter]), 2),
             _number(mean(values[-quarter:]), 2), _number(high, 2),
             sparkline(values, f"kept share of {name}, 0 to {high:.2f} %", high=high)]
        )  # fmt: skip
    total = [sum(points[n][i][1] for n in names if i < len(points[n])) for i in range(len(rows))]
    body.insert(
        0,
        ["all classes", _number(mean([(0, y) for y in total[:quarter]]), 2),
         _number(mean([(0, y) for y in total[-quarter:]]), 2),
         _number(max(total, default=math.nan), 2),
         sparkline([(float(i), y) for i, y in enumerate(total)], "kept share of all classes, "
                   "0 to 100 %", high=100.0)],
    )  # fmt: skip
    head = ("kept share, %", "first quarter", "last quarter", "most", "over the steps")
    caption = (
        "Share of the target's locations that carry a pseudo-label of the class, in percent: means "
        "of the first and the last quarter of the rows, the highest one, and the course (each "
        "class from 0 to its own highest)."
    )
    return table(head, body, caption=caption, strong=[0], sticky=True)


def transferability(comparison: Comparison) -> Markup:
    """The maps P and R on training images of both domains."""
    run = comparison.shown
    if run.source_only or "transfer" in run.without:
        return note("This run has no transfer part: there is neither P nor R.")
    if not run.transferability:
        return note("Not recorded (transferability/): the maps are drawn at the end of a run.")
    swatches = [
        Markup(f'<span><i style="background:rgb{color}"></i>reward {value}</span>')
        for value, color in enumerate(REWARD_COLORS)
    ]
    keys = tag(
        "div",
        Markup('<span class="scale">P from 0 <i></i> to 1</span>'),
        *swatches,
        Markup('<span><i class="hatched"></i>no label, hence no reward</span>'),
        class_="keys",
    )
    text = note(
        "Training images with the labels that the reward is judged by (truth on the source, "
        "pseudo-labels on the target), transferability P (Eq. 2) and reward R (Eq. 3, 4)."
    )
    return join([_which(comparison, run), text, keys, pictures.gallery(run.transferability)])


def panels(comparison: Comparison) -> Markup:
    """Evaluation images before and after the adaptation."""
    run = comparison.shown
    if not run.panels:
        reason = "a source-only run draws none" if run.source_only else "drawn at the end of a run"
        return note(f"Not recorded (panels/): {reason}.")
    text = note(
        "Evaluation images: the truth, the network after the source-only training, the adapted "
        "one, and the pseudo-labels that it would keep (black: ignored or rejected)."
    )
    return join([_which(comparison, run), text, _class_keys(comparison),
                 pictures.gallery(run.panels)])  # fmt: skip


def _class_keys(comparison: Comparison) -> Markup:
    colors = by_class.colors(comparison)
    if not colors:
        return note("The colours of the classes are not recorded (classes.json).")
    spans = [tag("span", swatch(colors[name]), name) for name in comparison.classes]
    return tag("div", *spans, class_="keys")


def _which(comparison: Comparison, run: RunRecords) -> Markup:
    """Which of several runs is shown."""
    if len(comparison.runs) == 1:
        return escape("")
    return note("Shown: run ", tag("b", run.name), f" ({comparison.main.name}).")


def _spread_out(rows: Table, count: int) -> Table:
    if len(rows) <= count:
        return rows
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def _fixed(row: dict[str, str], key: str, digits: int) -> str:
    return _number(number(row.get(key)), digits)


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"
