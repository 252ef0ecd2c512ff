"""The scores of a study's runs: by seed, and as mean and standard deviation over the seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cscl_fast.config import Part
from cscl_fast.studies.folders import is_finished, rows_of, scores_of
from cscl_fast.studies.plan import SOURCE_ONLY, PlannedRun, Study
from cscl_fast.studies.spread import Spread, spread
from cscl_fast.trainer.rows import TARGET_STATISTICS

Weights = Literal["last", "averaged"]


@dataclass
class Row:
    """A row of the table: one kind of run over the seeds."""

    title: str
    name: str  # of its runs
    without: tuple[Part, ...] | None  # what is left out; None: no adaptation
    last: dict[int, dict[str, float]]  # seed → class (and mIoU) → percent, last checkpoint
    averaged: dict[int, dict[str, float]] | None  # averaged weights; None where there are none

    def scores(self, weights: Weights) -> dict[int, dict[str, float]] | None:
        return self.last if weights == "last" else self.averaged

    def spread(self, weights: Weights, key: str = "mIoU") -> Spread:
        scores = self.scores(weights)
        return spread([s.get(key, math.nan) for s in (scores or {}).values()])


def collect(study: Study) -> list[Row]:
    """The rows of a study, in order; runs that are not finished are not in them."""
    rows: list[Row] = []
    for name, title in study.titles.items():
        runs = list(study.of(name))
        scores = {run.seed: _final(run) for run in runs if is_finished(run)}
        first, second = rows_of(runs[0])
        last = {seed: s[first] for seed, s in scores.items()}
        other = {seed: s[second] for seed, s in scores.items()}
        if name == SOURCE_ONLY:
            rows.append(Row(title, name, None, last, None))
            rows.append(Row(TARGET_STATISTICS, name, None, other, None))
        else:
            rows.append(Row(title, name, runs[0].config.without, last, other))
    return rows


def keys_of(rows: list[Row]) -> list[str]:
    """mIoU and the classes, in the order of the runs' own tables."""
    every = [s for row in rows for s in (*row.last.values(), *(row.averaged or {}).values())]
    return list(dict.fromkeys(key for scores in every for key in scores))


def _final(run: PlannedRun) -> dict[str, dict[str, float]]:
    scores = scores_of(run)
    assert scores is not None  # it is finished
    return scores
