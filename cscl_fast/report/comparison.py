"""Runs of one kind put together: means and deviations over seeds, ablations side by side.

Two runs are of one kind if their configurations agree in everything that could change a result but
the seed. A kind is named by what sets it apart from the others in the report: what is left out
(the paper's w/o TC, w/o CG, w/o SD), and any other key that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from cscl_fast.cli import to_yaml
from cscl_fast.presets import PRESETS, preset
from cscl_fast.report.records import ReportError, RunRecords, Score, flatten
from cscl_fast.report.wording import in_words
from cscl_fast.studies.folders import INDIFFERENT
from cscl_fast.studies.spread import Spread, spread
from cscl_fast.trainer.rows import ADAPTED, SOURCE_ONLY

PAPER_NAMES = {"transfer": "TC", "pseudo-labels": "CG", "divergence": "SD"}

# Two runs that differ in these keys alone are of one kind. `source_only` and `without` are looked
# at by themselves; presets are told apart by their names.
_OF_NO_ACCOUNT = (INDIFFERENT - {"preset"}) | {"seed", "source_only", "without", "evaluation_batch"}


@dataclass
class Kind:
    """The runs of one kind, by seed."""

    name: str
    runs: list[RunRecords]
    changed: int = 0  # keys in which it differs from its preset, of those that kinds differ in

    @property
    def without(self) -> tuple[str, ...]:
        return self.runs[0].without

    @property
    def source_only(self) -> bool:
        return self.runs[0].source_only

    @property
    def counted(self) -> list[RunRecords]:
        """The runs that numbers are taken from: the finished ones, or all if there is none."""
        return [run for run in self.runs if run.finished] or self.runs

    def over_runs(self, value: Callable[[RunRecords], float | None]) -> Spread:
        return spread(value(run) for run in self.counted)

    def last(self, row: str, key: str = "mIoU") -> Spread:
        """The last score of a row, percent."""
        return self.over_runs(lambda run: _entry(run.last(row), key))

    def against(self, other: Kind, row: str = ADAPTED, key: str = "mIoU") -> Spread:
        """Points that this kind's last score is above another's, within each seed both have."""
        theirs = {run.seed: _entry(run.last(row), key) for run in other.counted}
        return spread(
            mine - theirs[run.seed]  # type: ignore[operator]
            for run in self.counted
            if (mine := _entry(run.last(row), key)) is not None and theirs.get(run.seed) is not None
        )

    @property
    def counted_as(self) -> str:
        """`3 seeds`, or `3 runs` where a seed occurs more than once."""
        seeds = {run.seed for run in self.counted}
        different = len(seeds) == len(self.counted) and None not in seeds
        return f"{len(self.counted)} {'seeds' if different else 'runs'}"

    def best(self) -> Spread:
        """The best mIoU of each run's adaptation, percent, chosen with the evaluation labels."""
        return self.over_runs(lambda run: _entry(_best(run), "mIoU"))

    def gain(self, before: str, after: str = ADAPTED, key: str = "mIoU") -> Spread:
        """Points gained within each run, so that what its seed brings cancels out."""

        def within(run: RunRecords) -> float | None:
            pair = _entry(run.last(before), key), _entry(run.last(after), key)
            return None if None in pair else pair[1] - pair[0]  # type: ignore[operator]

        return self.over_runs(within)


def _entry(score: Score | None, key: str) -> float | None:
    return None if score is None else score.get(key)


def _best(run: RunRecords) -> Score | None:
    best = run.best()
    return None if best is None else best[2]


@dataclass
class Comparison:
    """All runs of a report."""

    kinds: list[Kind]
    classes: list[str]  # of every run; empty where no run has a score yet
    differing: list[str]  # keys in which runs differ, the seed and such left out

    @property
    def runs(self) -> list[RunRecords]:
        return [run for kind in self.kinds for run in kind.runs]

    @property
    def main(self) -> Kind:
        """The kind that the report opens with: the full method, as near to its preset as it is."""
        adapted = [kind for kind in self.kinds if not kind.source_only]
        full = [kind for kind in adapted if not kind.without]
        return min(full or adapted or self.kinds, key=lambda kind: kind.changed)

    @property
    def shown(self) -> RunRecords:
        """The run whose pictures and details are shown: the main kind's first that has the most."""
        return max(
            self.main.runs,
            key=lambda run: (run.finished, bool(run.panels), bool(run.transferability)),
        )

    @property
    def source(self) -> Kind:
        """The kind whose "source only" scores stand for the source network."""
        alone = [kind for kind in self.kinds if kind.source_only]
        return alone[0] if alone else self.main


def compare(runs: Sequence[RunRecords]) -> Comparison:
    """Group the runs of a report.

    Raises:
        ReportError: no run, or runs with different class lists (named, with what differs).
    """
    if not runs:
        raise ReportError("there is no run to report on; give at least one run folder")
    classes = _common_classes(runs)
    adapted = [run for run in runs if not run.source_only]
    alone = [run for run in runs if run.source_only]
    kinds = [*_kinds(alone), *_kinds(adapted)]
    return Comparison(kinds, classes, sorted({*_differing(adapted), *_differing(alone)}))


def _common_classes(runs: Sequence[RunRecords]) -> list[str]:
    first = next((run for run in runs if run.classes), None)
    if first is None:
        return []
    for run in runs:
        if not run.classes or run.classes == first.classes:
            continue
        only_first = [c for c in first.classes if c not in run.classes]
        only_other = [c for c in run.classes if c not in first.classes]
        details = [
            f"only {r.folder}: {', '.join(only)}"
            for r, only in ((first, only_first), (run, only_other))
            if only
        ] or ["the same classes in another order"]
        raise ReportError(
            f"one report needs one class list, but {first.folder} has {len(first.classes)} "
            f"classes and {run.folder} has {len(run.classes)} ({'; '.join(details)}): "
            "make a report of each"
        )
    return first.classes


def _kinds(runs: Sequence[RunRecords]) -> list[Kind]:
    """Kinds in the order of the paper's tables: each part left out, then the full method."""
    keys = _differing(runs)
    usual = {name: preset_values(name) for name in {run.config.get("preset") for run in runs}}

    def changes(run: RunRecords) -> list[str]:
        values = usual[run.config.get("preset")]
        return [k for k in keys if _comparable(run.config.get(k)) != _comparable(values.get(k))]

    found: dict[tuple[Any, ...], list[RunRecords]] = {}
    for run in runs:
        key = (run.without, *(_comparable(run.config.get(k)) for k in keys))
        found.setdefault(key, []).append(run)
    kinds = [
        Kind(
            _name(group[0], changes(group[0])),
            sorted(group, key=lambda run: (run.seed or 0, run.name)),
            len(changes(group[0])),
        )
        for group in found.values()
    ]
    order = list(PAPER_NAMES)
    return sorted(
        kinds,
        key=lambda kind: (
            not kind.without,
            -len(kind.without),
            [order.index(part) if part in order else len(order) for part in kind.without],
        ),
    )


def _differing(runs: Sequence[RunRecords]) -> list[str]:
    """The keys of account in which these runs differ; a key that one lacks does not differ."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [
        key
        for key in keys
        if not _is_path_of_weights(key, runs)
        and key not in _OF_NO_ACCOUNT
        and len({_comparable(run.config[key]) for run in runs if key in run.config}) > 1
    ]


def _is_path_of_weights(key: str, runs: Sequence[RunRecords]) -> bool:
    """Each seed of a study starts from the source network of that seed."""
    return key == "model.init" and all(
        str(run.config.get(key)).endswith(".pt") for run in runs if key in run.config
    )


def _comparable(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)


def _name(run: RunRecords, keys: Sequence[str]) -> str:
    if run.source_only:
        name = SOURCE_ONLY
    elif run.without:
        name = ", ".join(f"w/o {PAPER_NAMES.get(part, part)}" for part in run.without)
    else:
        name = ADAPTED
    if len(keys) > 3:  # whole other experiments: their settings would be no name
        return f"{name} ({run.name})"
    values = [
        f"{key.removeprefix('adaptation.')} {in_words(run.config.get(key, '?'))}" for key in keys
    ]
    return ", ".join([name, *values])


def preset_values(name: Any) -> dict[str, Any]:
    """Dotted key → value of a preset; empty for one that this version does not have."""
    if name not in PRESETS:
        return {}
    return flatten(yaml.safe_load(to_yaml(preset(name))))
