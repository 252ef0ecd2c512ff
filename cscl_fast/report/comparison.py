"""Runs of one kind put together: means and deviations over seeds, ablations side by side.

Two runs are of one kind if their configurations agree in everything that could change a result but
the seed. A kind is named by what sets it apart from the others in the report: what is left out
(the paper's w/o TC, w/o CG, w/o SD), and any other key that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from cscl_fast.cli import to_yaml
from cscl_fast.presets import PRESETS, preset
from cscl_fast.report.records import ReportError, RunRecords, Score, flatten
from cscl_fast.report.wording import in_words
from cscl_fast.studies.folders import INDIFFERENT, resolved_by_runs
from cscl_fast.studies.spread import Spread, spread
from cscl_fast.trainer.rows import ADAPTED, SOURCE_ONLY

PAPER_NAMES = {"transfer": "TC", "pseudo-labels": "CG", "divergence": "SD"}

# Two runs that differ in these keys alone are of one kind. `source_only` and `without` are looked
# at by themselves; presets are told apart by their names.
_OF_NO_ACCOUNT = (INDIFFERENT - {"preset"}) | {"seed", "source_only", "without", "evaluation_batch"}


@dataclass
class Kind:
    """The runs of one kind, by seed."""

    runs: list[RunRecords]
    details: list[str]  # what sets it apart from other kinds, besides the parts left out
    changed: int = 0  # keys in which it differs from its preset, of those that kinds differ in

    @property
    def name(self) -> str:
        """As the paper's tables have it, with the details."""
        if self.source_only:
            name = SOURCE_ONLY
        elif self.without:
            name = ", ".join(f"w/o {PAPER_NAMES.get(part, part)}" for part in self.without)
        else:
            name = ADAPTED
        return ", ".join([name, *self.details])

    @property
    def title(self) -> str:
        """The name, where numbers of kinds stand beside each other."""
        return self.name if self.finished else f"{self.name}, so far"

    @property
    def preset(self) -> str:
        return str(self.runs[0].config.get("preset", "?"))

    @property
    def without(self) -> tuple[str, ...]:
        return self.runs[0].without

    @property
    def source_only(self) -> bool:
        return self.runs[0].source_only

    @property
    def finished(self) -> bool:
        """Whether its numbers are of finished runs."""
        return any(run.finished for run in self.runs)

    @cached_property
    def counted(self) -> list[RunRecords]:
        """The runs that numbers are taken from: the finished ones, or all if there is none.

        Of these the ones with a score both before and after the adaptation, as far as there are
        any: means over the same runs differ by the mean gain.
        """
        chosen = [run for run in self.runs if run.finished] or self.runs
        for rows in ((SOURCE_ONLY, ADAPTED), (ADAPTED,), (SOURCE_ONLY,)):
            scored = [run for run in chosen if all(_has_score(run, row) for row in rows)]
            if scored:
                return scored
        return chosen

    def over_runs(self, value: Callable[[RunRecords], float | None]) -> Spread:
        return spread(value(run) for run in self.counted)

    def last(self, row: str, key: str = "mIoU") -> Spread:
        """The last score of a row, percent."""
        return self.over_runs(lambda run: _entry(run.last(row), key))

    def against(self, other: Kind, row: str = ADAPTED, key: str = "mIoU") -> Spread:
        """Points that this kind's last score is above another's, within each seed both have.

        Nothing as long as one of the two has no finished run: it may be at another step.
        """
        if not (self.finished and other.finished):
            return spread(())
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


def _has_score(run: RunRecords, row: str) -> bool:
    return spread([_entry(run.last(row), "mIoU")]).n > 0


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
    def adapted(self) -> list[Kind]:
        return [kind for kind in self.kinds if not kind.source_only]

    @property
    def main(self) -> Kind:
        """The kind that the report opens with: the full method, as near to its preset as it is.

        One with a score, as long as there is any: an ablation if the full method has only begun.
        """
        adapted = [kind for kind in self.adapted if kind.last(ADAPTED).n] or self.adapted
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
    def sources(self) -> list[Kind]:
        """The kinds whose "source only" scores stand for the source networks, of each preset."""
        found = [kind for kind in self.kinds if kind.source_only]
        for kind in (self.main, *self.adapted):
            if kind.preset not in {other.preset for other in found}:
                found.append(kind)
        return found

    def source_name(self, kind: Kind, row: str = SOURCE_ONLY) -> str:
        """A row of one of the `sources`: with what sets it apart from the others."""
        presets = {other.preset for other in self.kinds}
        apart = [f"preset {kind.preset}"] if len(presets) > 1 else []
        return ", ".join([row, *(kind.details if kind.source_only else apart)])


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
    presets = len({run.config.get("preset") for run in runs}) > 1
    kinds = [*_kinds(alone, presets), *_kinds(adapted, presets)]
    names = [kind.name for kind in kinds]
    for kind, name in zip(kinds, names, strict=True):
        if names.count(name) > 1:  # they differ in something that the words do not show
            kind.details.append(f"run {kind.runs[0].name}")
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


def _kinds(runs: Sequence[RunRecords], presets: bool) -> list[Kind]:
    """Kinds in the order of the paper's tables: each part left out, then the full method.

    Args:
        presets: several are in the report, so that a kind says which is its own.
    """
    keys = _differing(runs)
    names = {run.config.get("preset") for run in runs}
    of_presets = {name: preset_values(name) for name in names}

    def changes(run: RunRecords) -> list[str]:
        values = of_presets[run.config.get("preset")]
        pairs = {k: (run.config.get(k), values.get(k)) for k in keys if k != "preset"}
        return [
            k
            for k, (mine, usual) in pairs.items()
            if _comparable(mine) != _comparable(usual)
            # Another start settles this, too, and is a name already.
            and not ("model.init" in keys and resolved_by_runs(k, mine, usual))
        ]

    found: dict[tuple[Any, ...], list[RunRecords]] = {}
    for run in runs:
        key = (run.without, *(_comparable(run.config.get(k)) for k in keys))
        found.setdefault(key, []).append(run)
    kinds = []
    for group in found.values():
        group.sort(key=lambda run: (run.seed or 0, run.name))
        changed = changes(group[0])
        details = [f"preset {group[0].config.get('preset', '?')}"] if presets else []
        details += _details(group[0], changed)
        kinds.append(Kind(group, details, len(changed)))
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


def _details(run: RunRecords, keys: Sequence[str]) -> list[str]:
    if len(keys) > 3:  # whole other experiments: their settings would be no name
        return [f"run {run.name}"]
    return [
        f"{key.removeprefix('adaptation.')} {in_words(run.config.get(key, '?'))}" for key in keys
    ]


def preset_values(name: Any) -> dict[str, Any]:
    """Dotted key → value of a preset; empty for one that this version does not have."""
    if name not in PRESETS:
        return {}
    return flatten(yaml.safe_load(to_yaml(preset(name))))
