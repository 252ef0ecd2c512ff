"""What came out, in numbers and in words: the page and the Markdown summary open with it."""

from __future__ import annotations

import math

from cscl_fast.report.comparison import PAPER_NAMES, Comparison, Kind
from cscl_fast.studies.spread import Spread
from cscl_fast.trainer.rows import ADAPTED, AVERAGED, SOURCE_ONLY, TARGET_STATISTICS

LEFT_OUT = {
    "transfer": "the critical transfer",
    "pseudo-labels": "the confidence-guided pseudo-labels",
    "divergence": "the symmetric soft divergence",
}


def sentences(comparison: Comparison) -> list[str]:
    """The answer first, then what it has to be read with."""
    main = comparison.main
    said = [_result(comparison, main), *_more(main), *_ablations(comparison), *_left(comparison)]
    return [sentence.replace(" %", "\u00a0%") for sentence in said]


def _left(comparison: Comparison) -> list[str]:
    """The runs that are not finished, and those that are and still do not count."""
    runs, said = comparison.runs, []
    if len(runs) == 1:
        return []
    unfinished = [run for run in runs if not run.finished]
    if unfinished:
        names = _named([f"{run.name} ({run.place})" for run in unfinished])
        said.append(f"{len(unfinished)} of {len(runs)} runs are not finished: {names}.")
        if len(unfinished) < len(runs):
            said[-1] += (
                " They do not count beside finished ones of their row; a row that has only such is "
                "marked “so far” and compared with no other."
            )
    counted = {id(run) for kind in comparison.kinds for run in kind.counted}
    unscored = [run.name for run in runs if run.finished and id(run) not in counted]
    if unscored:
        said.append(f"Finished, but without a score before or after: {_named(unscored)}.")
    return said


def _named(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def no_score(comparison: Comparison) -> str:
    """Why there is none."""
    rows = (SOURCE_ONLY, TARGET_STATISTICS, ADAPTED, AVERAGED)
    scores = [s for run in comparison.runs for row in rows for _, s in run.scores(row)]
    if scores and all(math.isnan(score.get("mIoU", math.nan)) for score in scores):
        return "There is no score: the evaluation images have no labels."
    return "There is no score yet."


def _result(comparison: Comparison, main: Kind) -> str:
    before, after = main.last(SOURCE_ONLY), main.last(ADAPTED)
    if not after.n:
        return _before(comparison, main)
    over = f"Over {main.counted_as}, " if after.n > 1 else ""
    if not main.finished:
        so_far = f"So far ({main.counted[0].place})" if len(main.counted) == 1 else "So far"
        over = f"{so_far}, over {main.counted_as}, " if after.n > 1 else f"{so_far}, "
    method = _method(main)
    gain = main.gain(SOURCE_ONLY)
    if not gain.n:
        return f"{over}{method} reaches {after.text()} % mIoU on the target."
    if abs(gain.mean) < 0.05:
        verb, change = "left", f"at {after.text()} % (from {before.text()} %, source only)"
        return f"{over}{method} {verb} the mIoU on the target {change}."
    verb = "raised" if gain.mean > 0 else "lowered"
    size = Spread(tuple(v if gain.mean > 0 else -v for v in gain.values))
    return (
        f"{over}{method} {verb} the mIoU on the target from {before.text()} % (source only) to "
        f"{after.text()} %, by {size.text()} points."
    )


def _before(comparison: Comparison, main: Kind) -> str:
    """What there is to say as long as no adaptation has a score."""
    kind = main if main.last(SOURCE_ONLY).n else comparison.sources[0]
    before = kind.last(SOURCE_ONLY)
    if not before.n:
        return no_score(comparison)
    over = f", over {kind.counted_as}," if before.n > 1 else ""
    apart = f" ({', '.join(kind.details)})" if kind.details else ""
    text = f"Trained on the source alone{apart}{over} the network"
    text += f" reaches {before.text()} % mIoU on the target"
    statistics = kind.last(TARGET_STATISTICS)
    if statistics.n:
        text += f", {statistics.text()} % with the target's batch statistics"
    return text + ("; there is no score of the adaptation yet." if comparison.adapted else ".")


def _method(kind: Kind) -> str:
    """What was done, and what sets it apart from the report's other kinds."""
    name = "CSCL"
    if kind.without:
        name += f" without {' and '.join(LEFT_OUT.get(p, p) for p in kind.without)}"
    return f"{name} ({', '.join(kind.details)})" if kind.details else name


def _more(main: Kind) -> list[str]:
    if not main.last(ADAPTED).n:
        return []
    said = []
    statistics = main.gain(SOURCE_ONLY, TARGET_STATISTICS)
    if statistics.n:
        said.append(
            f"The target's own batch statistics alone, before any adaptation, change it by "
            f"{statistics.text(sign=True)} points."
        )
    averaged, best = main.last(AVERAGED), main.best()
    if averaged.n:
        said.append(f"The averaged weights end at {averaged.text()} %.")
    if best.n:
        at = ""
        if len(main.counted) == 1 and (found := main.counted[0].best()):
            row = "" if found[1] == ADAPTED else ", averaged weights"
            at = f" (step {found[0]}{row})"
        said.append(
            f"The best evaluation on the way was {best.text()} %{at}; it was chosen with the "
            "evaluation labels."
        )
    return said


def _ablations(comparison: Comparison) -> list[str]:
    """What each part left out changes, with the spread over the seeds."""
    main = comparison.main
    if main.without or main.source_only:
        return []
    parts = []
    for kind in comparison.kinds:
        difference = kind.against(main)
        if len(kind.without) != 1 or kind.details != main.details or not difference.n:
            continue
        part = kind.without[0]
        parts.append(
            f"{LEFT_OUT.get(part, part)} ({PAPER_NAMES.get(part, part)}) "
            f"{difference.text(sign=True)} points"
        )
    if not parts:
        return []
    return [f"What leaving a part out does to full CSCL, within each seed: {'; '.join(parts)}."]


def headline(comparison: Comparison) -> list[tuple[str, str, str]]:
    """(label, value, unit) of the large figures, as far as there are any."""
    main = comparison.main
    figures = [("source only", main.last(SOURCE_ONLY), "% mIoU", False)]
    if main.last(ADAPTED).n:
        method = _method(main)
        figures += [
            ("CSCL, last" if method == "CSCL" else method, main.last(ADAPTED), "% mIoU", False),
            ("gain", main.gain(SOURCE_ONLY), "points", True),
            ("best on the way", main.best(), "% mIoU", False),
        ]
    elif main.last(TARGET_STATISTICS).n:
        figures.append(("with target statistics", main.last(TARGET_STATISTICS), "% mIoU", False))
    return [(label, value.text(sign=sign), unit) for label, value, unit, sign in figures if value.n]


ANSWER_HEAD = (
    "", "runs", "source only", "source only, target statistics", "CSCL, last", "gain",
    "gain over target statistics", "averaged weights", "best",
)  # fmt: skip


def answer_rows(comparison: Comparison) -> list[list[str]]:
    """mIoU in percent of every kind, gains in points: the cells under `ANSWER_HEAD`."""
    return [
        [
            kind.title,
            str(len(kind.counted)),
            kind.last(SOURCE_ONLY).text(),
            kind.last(TARGET_STATISTICS).text(),
            kind.last(ADAPTED).text(),
            kind.gain(SOURCE_ONLY).text(sign=True),
            kind.gain(TARGET_STATISTICS).text(sign=True),
            kind.last(AVERAGED).text(),
            kind.best().text(),
        ]
        for kind in comparison.kinds
    ]
