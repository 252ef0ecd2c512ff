"""How a run converged: mIoU and domain gap by epoch, the paper's Fig. 3 (a, b), from its folder.

`write` reads `evaluation.csv`, `gap.csv` and `config.yaml` and writes `convergence.csv` and
`convergence.png`. A run without `gap.csv` (an older one, or `gap_batches 0`) has the score alone.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cscl_fast.trainer.rows import ADAPTED, AVERAGED, SOURCE_ONLY, TARGET_STATISTICS

COLUMNS = (
    "phase", "epoch", "step", "mIoU", "mIoU averaged", "gap accuracy", "gap divergence",
)  # fmt: skip


@dataclass
class Point:
    """The state of a run at one evaluation; nan where it was not measured."""

    phase: str  # "warmup" or "adaptation"
    epoch: float  # epochs of the adaptation that are done; nan in the warm-up
    step: int  # within the phase
    miou: float = math.nan  # percent
    averaged: float = math.nan  # percent, averaged weights
    accuracy: float = math.nan  # D's balanced accuracy, 0 to 1
    divergence: float = math.nan  # of the class centroids, nats a class

    def cells(self) -> list[str]:
        """As in `convergence.csv`; an empty cell is a value that was not measured."""
        numbers = (self.miou, self.averaged, self.accuracy, self.divergence)
        values = [_cell(x, "{:.6g}") for x in numbers]
        return [self.phase, _cell(self.epoch, "{:.4g}"), str(self.step), *values]


def read(folder: Path) -> list[Point]:
    """The points of a run, in order: after the warm-up, before the first step, then as evaluated.

    The point before the first step of the adaptation is the source-only network with the target's
    statistics (the trained and the averaged weights are still the same).
    """
    steps = _steps_an_epoch(folder)
    points: dict[tuple[str, int], Point] = {}

    def at(phase: str, step: int) -> Point:
        epoch = step / steps if phase == "adaptation" and steps else math.nan
        return points.setdefault((phase, step), Point(phase, epoch, step))

    for row in _rows(folder / "evaluation.csv"):
        value, step = _number(row.get("mIoU")), int(row.get("step") or 0)
        if row["row"] == SOURCE_ONLY:
            at("warmup", step).miou = value
        elif row["row"] == TARGET_STATISTICS:
            at("adaptation", 0).miou = at("adaptation", 0).averaged = value
        elif row["row"] == ADAPTED:
            at("adaptation", step).miou = value
        elif row["row"] == AVERAGED:
            at("adaptation", step).averaged = value
    for row in _rows(folder / "gap.csv"):
        point = at(row.get("phase") or "adaptation", int(row.get("step") or 0))
        point.accuracy = _number(row.get("accuracy"))
        point.divergence = _number(row.get("divergence"))
    return sorted(points.values(), key=lambda p: (p.phase != "warmup", p.step))


def write(folder: Path) -> bool:
    """Write `convergence.csv` and `convergence.png` into a run folder.

    Returns:
        Whether there was an adaptation to draw; nothing is written otherwise.
    """
    points = read(folder)
    adaptation = [p for p in points if p.phase == "adaptation"]
    if all(p.step == 0 for p in adaptation):
        return False
    with open(folder / "convergence.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(point.cells() for point in points)
    source = [p.miou for p in points if p.phase == "warmup"]
    _draw(folder / "convergence.png", adaptation, source[-1] if source else math.nan)
    return True


def _draw(path: Path, points: list[Point], source_only: float) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = [p for p in points if not (math.isnan(p.accuracy) and math.isnan(p.divergence))]
    figure = Figure(figsize=(11 if measured else 5.5, 4), layout="constrained")
    axes = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    epochs = [p.epoch for p in points]
    axes[0].plot(epochs, [p.miou for p in points], marker="o", markersize=3, label=ADAPTED)
    axes[0].plot(epochs, [p.averaged for p in points], marker="o", markersize=3, label=AVERAGED)
    if not math.isnan(source_only):
        axes[0].axhline(source_only, color="gray", linestyle="--", label=SOURCE_ONLY)
    axes[0].set_title("mIoU on the evaluation images (%)", fontsize=10)
    axes[0].legend(fontsize=8)
    if measured:
        _draw_gap(axes[1], measured)
    for axis in axes:
        axis.set_xlabel("epochs of the adaptation")
    FigureCanvasAgg(figure).print_png(str(path))


def _draw_gap(axis: Any, points: list[Point]) -> None:
    """D's accuracy on the left axis, the centroids' divergence on the right one."""
    epochs = [p.epoch for p in points]
    axis.set_title("domain gap", fontsize=10)
    lines = []
    if not all(math.isnan(p.accuracy) for p in points):
        lines += axis.plot(epochs, [p.accuracy for p in points], color="tab:red", marker="o",
                           markersize=3, label="D's balanced accuracy (left)")  # fmt: skip
        axis.set_ylim(0.45, 1.02)
    else:
        axis.set_yticks([])
    right = axis.twinx()
    name = "divergence of the class centroids, nats (right)"
    values = [p.divergence for p in points]
    lines += right.plot(epochs, values, color="tab:purple", marker="s", markersize=3, label=name)
    right.set_ylim(bottom=0)
    axis.legend(handles=lines, fontsize=8)


def _steps_an_epoch(folder: Path) -> int:
    """`adaptation.steps` of the run; 0 if its configuration cannot be read."""
    import yaml

    path = folder / "config.yaml"
    if not path.is_file():
        return 0
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return int(entries.get("adaptation", {}).get("steps", 0))


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _number(cell: str | None) -> float:
    return float(cell) if cell else math.nan


def _cell(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)
