"""What came out, in numbers and in words: the page and the Markdown summary open with it."""

from __future__ import annotations

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
    said = [_result(comparison, main), *_more(main), *_ablations(comparison)]
    unfinished = [run for run in comparison.runs if not run.finished]
    if unfinished and len(comparison.runs) > 1:
        names = ", ".join(f"{run.name} ({run.place})" for run in unfinished[:5])
        more = f" and {len(unfinished) - 5} more" if len(unfinished) > 5 else ""
        counting = ", and do not count beside finished ones of their row"
        said.append(
            f"{len(unfinished)} of {len(comparison.runs)} runs are not finished"
            f"{counting if len(unfinished) < len(comparison.runs) else ''}: {names}{more}."
        )
    return [sentence.replace(" %", "\u00a0%") for sentence in said]


def _result(comparison: Comparison, main: Kind) -> str:
    before, after = main.last(SOURCE_ONLY), main.last(ADAPTED)
    over = f"Over {main.counted_as}, " if after.n > 1 else ""
    if not any(run.finished for run in main.counted):
        so_far = f"So far ({main.counted[0].place})" if len(main.counted) == 1 else "So far"
        over = f"{so_far}, over {main.counted_as}, " if after.n > 1 else f"{so_far}, "
    method = _method(main)
    if not before.n and not after.n:
        return "There is no score yet."
    if main.source_only or not after.n:
        over = f"over {main.counted_as}" if before.n > 1 else ""
        text = f"Trained on the source alone{', ' + over + ',' if over else ''} the network"
        text += f" reaches {before.text()} % mIoU on the target"
        statistics = main.last(TARGET_STATISTICS)
        if statistics.n:
            text += f", {statistics.text()} % with the target's batch statistics"
        return text + ("." if main.source_only else "; there is no score of the adaptation yet.")
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


def _method(kind: Kind) -> str:
    if kind.without:
        return f"CSCL without {' and '.join(LEFT_OUT.get(p, p) for p in kind.without)}"
    return "CSCL"


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
        if len(kind.without) != 1 or not difference.n:
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
        figures += [
            (_method(main) if main.without else "CSCL, last", main.last(ADAPTED), "% mIoU", False),
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
            kind.name,
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
