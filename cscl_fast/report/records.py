"""What a run left behind, read back: any of it may be missing, torn or of an older version."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cscl_fast.data import DataError
from cscl_fast.data.classes import Color, folder_classes
from cscl_fast.trainer.rows import ADAPTED, AVERAGED, SOURCE_ONLY

Table = list[dict[str, str]]  # the rows of a CSV file
Score = dict[str, float]  # mIoU, mIoU* and IoU by class, percent; NaN where there is none

_MEANS = ("mIoU", "mIoU*")


class ReportError(ValueError):
    """What was given cannot be reported on; the message says what is needed."""


@dataclass
class RunRecords:
    """One run folder. Missing files are empty tables, mappings and lists."""

    folder: Path
    name: str  # as the report calls it
    config: dict[str, Any]  # dotted key → value
    config_text: str
    metrics: Table = field(default_factory=list)
    evaluation: Table = field(default_factory=list)
    thresholds: Table = field(default_factory=list)
    kept: Table = field(default_factory=list)
    gap: Table = field(default_factory=list)
    timing: dict[str, dict[str, Any]] = field(default_factory=dict)  # phase → steps, seconds, parts
    environment: dict[str, Any] = field(default_factory=dict)
    panels: list[Path] = field(default_factory=list)
    transferability: list[Path] = field(default_factory=list)
    colors: dict[str, Color] = field(default_factory=dict)  # class → RGB, as its pictures have it

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @property
    def source_only(self) -> bool:
        return bool(self.config.get("source_only", False))

    @property
    def without(self) -> tuple[str, ...]:
        return tuple(self.config.get("without") or ())

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their indices; empty where no table has been begun."""
        for table, before in ((self.evaluation, 3), (self.thresholds, 4), (self.kept, 3)):
            if table:
                return [c for c in list(table[0])[before:] if c not in _MEANS]
        return []

    @property
    def adaptation_steps(self) -> int:
        """Steps that the adaptation has by its configuration; 0 for a source-only run."""
        if self.source_only:
            return 0
        epochs = self.config.get("adaptation.epochs", 0)
        return int(epochs) * int(self.config.get("adaptation.steps", 0))

    @property
    def finished(self) -> bool:
        """Whether the last score that the configuration asks for has been taken."""
        if self.adaptation_steps == 0:
            return bool(self.scores(SOURCE_ONLY))
        rows = self.scores(ADAPTED)
        return bool(rows) and rows[-1][0] >= self.adaptation_steps

    @property
    def place(self) -> str:
        """Where the run is, in words."""
        if self.finished:
            return "finished"
        rows = [r for r in [*self.metrics, *self.evaluation] if number(r.get("step")) >= 0]
        for phase, total in (
            ("adaptation", self.adaptation_steps),
            ("warmup", int(self.config.get("warmup.steps", 0))),
        ):
            steps = [int(number(r["step"])) for r in rows if r.get("phase") == phase]
            if steps:
                what = "adaptation" if phase == "adaptation" else "warm-up"
                return f"{what} step {max(steps)} of {total}"
        return "no step logged"

    def scores(self, row: str) -> list[tuple[int, Score]]:
        """(step, score) of every evaluation of this row, in the order of the steps."""
        found = [
            (int(number(r["step"])), {k: number(v) for k, v in list(r.items())[3:]})
            for r in self.evaluation
            if r.get("row") == row and number(r.get("step")) >= 0
        ]
        return sorted(found, key=lambda entry: entry[0])

    def last(self, row: str) -> Score | None:
        """The last score of this row."""
        rows = self.scores(row)
        return rows[-1][1] if rows else None

    def best(self) -> tuple[int, str, Score] | None:
        """The evaluation of the adaptation with the highest mIoU: its step, row and score."""
        found = [
            (step, row, score)
            for row in (ADAPTED, AVERAGED)
            for step, score in self.scores(row)
            if not math.isnan(score.get("mIoU", math.nan))
        ]
        return max(found, key=lambda entry: entry[2]["mIoU"]) if found else None

    def series(self, key: str, phase: str) -> list[tuple[float, float]]:
        """(step, value) of a column of metrics.csv in one phase, without the empty cells."""
        return _points([r for r in self.metrics if r.get("phase") == phase], key)

    def gap_series(self, key: str) -> list[tuple[float, float]]:
        return _points(self.gap, key)


def number(text: object) -> float:
    """A cell as a number; NaN where it is none, as in a row that was torn."""
    try:
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _points(rows: Table, key: str) -> list[tuple[float, float]]:
    points = [(number(r.get("step")), number(r.get(key))) for r in rows]
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run that has begun (a study's own config.yaml is none)."""
    return (folder / "config.yaml").is_file() and any(
        (folder / name).exists() for name in ("metrics.csv", "evaluation.csv", "checkpoints")
    )


def runs_below(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else every run below it, sorted by path.

    Raises:
        ReportError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise ReportError(
            f"{folder} is not a folder; a run folder is needed (it holds config.yaml and "
            "metrics.csv), or a folder of run folders"
        )
    if is_run(folder):
        return [folder]
    found = []
    for place, folders, files in os.walk(folder):
        if "config.yaml" in files and is_run(Path(place)):
            found.append(Path(place))
            folders.clear()  # no run inside a run
    if not found:
        raise ReportError(
            f"there is no run in {folder} nor below it: a run folder holds config.yaml and "
            "metrics.csv, written by python -m cscl_fast.train"
        )
    return sorted(found)


def read_run(folder: Path, name: str | None = None) -> RunRecords:
    """Read one run folder.

    Raises:
        ReportError: its config.yaml is not a configuration.
        OSError: a file cannot be read.
    """
    text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    try:
        entries = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ReportError(f"{folder / 'config.yaml'} is not valid YAML: {error}") from None
    if not isinstance(entries, dict):
        raise ReportError(f"{folder / 'config.yaml'} holds no keys and values")
    return RunRecords(
        folder=folder,
        name=name or folder.name,
        config=flatten(entries),
        config_text=text,
        metrics=_table(folder / "metrics.csv"),
        evaluation=_table(folder / "evaluation.csv"),
        thresholds=_table(folder / "thresholds.csv"),
        kept=_table(folder / "kept.csv"),
        gap=_table(folder / "gap.csv"),
        timing={k: v for k, v in _mapping(folder / "timing.json").items() if isinstance(v, dict)},
        environment=_mapping(folder / "environment.json"),
        panels=[p for p in _pictures(folder / "panels") if p.stem != "overview"],
        transferability=_pictures(folder / "transferability"),
        colors=class_colors(folder / "classes.json"),
    )


def flatten(entries: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys, whatever they are called."""
    flat: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _table(path: Path) -> Table:
    """The rows of a CSV file; of a last line that was torn off no cell can be trusted."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    whole = text[: text.rfind("\n") + 1]
    return [
        {key: value or "" for key, value in row.items() if key is not None}
        for row in csv.DictReader(io.StringIO(whole))
    ]


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or torn: it is written again at the end
        return {}
    return content if isinstance(content, dict) else {}


def class_colors(file: Path) -> dict[str, Color]:
    """Class → RGB of a `classes.json`; empty where there is none."""
    try:
        classes, _ = folder_classes(file)
    except (OSError, DataError):
        return {}
    return dict(zip(classes.names, classes.colors, strict=True))


def _pictures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png")) if folder.is_dir() else []
