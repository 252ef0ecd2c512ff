"""The sections on how the results came about: time, configuration, environment."""

from __future__ import annotations

from typing import Any

from cscl_fast.report.comparison import Comparison, preset_values
from cscl_fast.report.dots import stacked_bar
from cscl_fast.report.markup import Markup, join, note, table, tag
from cscl_fast.report.records import RunRecords, number
from cscl_fast.report.wording import in_words, shortened_yaml
from cscl_fast.studies.folders import resolved_by_runs

PHASES = {"warmup": "Source-only training", "adaptation": "Adaptation"}
# In the order of their colours: the seventh is grey.
PARTS = {
    "wait": "waiting for data",
    "labels": "label network and pseudo-labels",
    "losses": "forward passes and losses",
    "backward": "backward pass",
    "optimizer": "optimizer",
    "thresholds": "thresholds (Algorithm 1)",
    "other": "everything else",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
    "records": "tables and pictures",
}
# Of the configuration, what is the run's own and no difference from a preset.
_OWN = ("run", "preset", "config", "resume", "overwrite")


def timing(comparison: Comparison) -> Markup:
    """Seconds by part of each phase, of one run; totals of all runs."""
    run = comparison.shown
    content: list[Markup] = []
    if len(comparison.runs) > 1:
        content.append(note("By part: run ", tag("b", run.name), "."))
    timed = [_phase(title, run.timing[p]) for p, title in PHASES.items() if run.timing.get(p)]
    content.append(tag("div", *timed, class_="grid2"))
    if not any(run.timing.get(phase) for phase in PHASES):
        content.append(note("By part: not recorded (timing.json). ", _from_metrics(run)))
    if len(comparison.runs) > 1:
        rows = [
            [r.name, *(_seconds(r, phase) for phase in PHASES), _per_step(r, "adaptation")]
            for r in comparison.runs
        ]
        head = ("run", "source-only training, s", "adaptation, s", "adaptation, ms a step")
        content.append(tag("details", tag("summary", "All runs"), table(head, rows)))
    return join(content)


def _phase(title: str, entry: dict[str, Any]) -> Markup:
    steps, seconds = number(entry.get("steps")), number(entry.get("seconds"))
    if not seconds > 0 or not steps > 0:
        return note(f"{title}: no step was timed.")
    parts = entry.get("parts")
    parts = parts if isinstance(parts, dict) else {}
    order = [*PARTS, *(str(name) for name in parts if str(name) not in PARTS)]
    named = [
        (PARTS.get(str(name), str(name)), number(value), _look(order.index(str(name))))
        for name, value in parts.items()
        if number(value) > 0
    ]
    named.sort(key=lambda part: -part[1])
    rest = seconds - sum(value for _, value, _ in named)
    unit = f"{seconds:,.0f} s for {steps:,.0f} steps, {1000 * seconds / steps:,.0f} ms a step"
    rows = [
        [
            join([Markup(f'<i class="swatch time {look}"></i>'), name]),
            f"{value:,.1f}",
            f"{100 * value / seconds:.1f}",
            f"{1000 * value / steps:,.1f}",
        ]
        for name, value, look in named
    ]
    if rest > 0.0005 * seconds:
        rows.append(["not counted", f"{rest:,.1f}", f"{100 * rest / seconds:.1f}",
                     f"{1000 * rest / steps:,.1f}"])  # fmt: skip
    bar = stacked_bar(title, unit, named, seconds)
    return tag("div", bar, table(("part", "seconds", "% of the phase", "ms a step"), rows))


def _look(index: int) -> str:
    """A part has one colour in all phases."""
    return f"c{index % 7} o{index // 7}"


def _from_metrics(run: RunRecords) -> str:
    """Seconds of the phases as metrics.csv has them: since a process began, so one process each."""
    said = []
    for phase, title in PHASES.items():
        rows = [r for r in run.metrics if r.get("phase") == phase]
        times = [(number(r.get("step")), number(r.get("seconds"))) for r in rows]
        if len(times) > 1 and times[-1][1] > times[0][1]:
            steps, seconds = times[-1][0] - times[0][0], times[-1][1] - times[0][1]
            said.append(f"{title}: {steps:.0f} steps in {seconds:,.0f} s")
    return f"From metrics.csv: {'; '.join(said)}." if said else ""


def _seconds(run: RunRecords, phase: str) -> str:
    value = number(run.timing.get(phase, {}).get("seconds"))
    return f"{value:,.0f}" if value > 0 else "–"


def _per_step(run: RunRecords, phase: str) -> str:
    entry = run.timing.get(phase, {})
    seconds, steps = number(entry.get("seconds")), number(entry.get("steps"))
    return f"{1000 * seconds / steps:,.0f}" if seconds > 0 and steps > 0 else "–"


def configuration(comparison: Comparison) -> Markup:
    """What differs from the preset, what differs between the runs, and everything."""
    run = comparison.shown
    differences = from_preset(run)
    content = []
    if len(comparison.runs) > 1:
        content.append(note("Shown: run ", tag("b", run.name), "."))
    name = run.config.get("preset", "demo")
    if differences is None:
        content.append(note(f"The preset {name} is not one of this version."))
    elif differences:
        rows = [
            [tag("code", key), in_words(mine), in_words(usual)] for key, mine, usual in differences
        ]
        head = ["key", "this run", f"preset {name}"]
        caption = f"What differs from the preset {name}."
        content.append(table(head, rows, caption=caption, text_columns=3))
    else:
        content.append(note(f"Everything is as in the preset {name}."))
    if comparison.differing:
        rows = [
            [kind.name, *(in_words(kind.runs[0].config.get(k, "–")) for k in comparison.differing)]
            for kind in comparison.kinds
        ]
        head = ["row", *(tag("code", key) for key in comparison.differing)]
        caption = "What differs between the rows, besides the parts left out."
        content.append(table(head, rows, caption=caption, text_columns=len(head)))
    whole = tag("pre", tag("code", shortened_yaml(run.config_text)), tabindex="0")
    content.append(tag("details", tag("summary", "The whole configuration"), whole))
    return join(content)


def from_preset(run: RunRecords) -> list[tuple[str, Any, Any]] | None:
    """(key, this run's value, the preset's) where they differ; None for an unknown preset."""
    usual = preset_values(run.config.get("preset", "demo"))
    if not usual:
        return None
    return [
        (key, value, usual[key])
        for key, value in run.config.items()
        if key in usual
        and key not in _OWN
        and value != usual[key]
        and not resolved_by_runs(key, value, usual[key])
    ]


def environment(comparison: Comparison) -> Markup:
    """Versions and machine of each run; runs that agree share a column."""
    recorded = [run for run in comparison.runs if run.environment]
    if not recorded:
        return note("Not recorded (environment.json).")
    own = ("started", "command")
    keys = list(dict.fromkeys(key for run in recorded for key in run.environment))
    rows = []
    for key in keys:
        values = list(dict.fromkeys(in_words(run.environment.get(key, "–")) for run in recorded))
        if key in own and len(values) > 1:
            more = len(values) - 1
            values = [f"{values[0]} (and {more} other{'s' if more > 1 else ''})"]
        rows.append([key, "; ".join(values)])
    missing = len(comparison.runs) - len(recorded)
    content = [table(("", "value"), rows, text_columns=2, wrap=True)]
    if missing:
        content.append(note(f"Not recorded for {missing} of {len(comparison.runs)} runs."))
    return join(content)
