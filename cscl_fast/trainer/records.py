"""The tables of a run: what was logged, scored and kept, as CSV."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cscl_fast.data import ClassList
from cscl_fast.trainer.evaluation import Score
from cscl_fast.trainer.journal import COLUMNS, Table
from cscl_fast.trainer.observers import Observer

if TYPE_CHECKING:
    from cscl_fast.trainer.gap import DomainGap


class Records(Observer):
    """The observer that writes the run folder's tables; docs/training.md has their columns."""

    def __init__(self, folder: Path, classes: ClassList) -> None:
        self.folder = folder
        self.names = list(classes.names)
        place = ("phase", "epoch", "step")
        means = Score(classes, torch.zeros(classes.num_classes)).row()
        columns = {
            "metrics": COLUMNS,
            "evaluation": ("phase", "step", "row", *means),
            "thresholds": ("phase", "step", "epoch", "portion", *self.names),
            "kept": (*place, *self.names),
            "gap": (*place, "accuracy", "divergence"),
        }
        self.tables = {key: Table(folder / f"{key}.csv", value) for key, value in columns.items()}
        self.started = time.monotonic()

    def start_again(self) -> None:
        self.go_back({})

    def log(self, values: dict[str, float | int | str]) -> None:
        seconds = round(time.monotonic() - self.started, 2)
        self.tables["metrics"].append({"seconds": seconds, **values})

    def score(self, row: str, phase: str, step: int, score: Score) -> None:
        """IoU by class in percent."""
        ious = {name: f"{value:.3f}" for name, value in score.row().items()}
        self.tables["evaluation"].append({"phase": phase, "step": step, "row": row, **ious})

    def thresholds(self, epoch: int, step: int, portion: float, thresholds: Tensor) -> None:
        self.tables["thresholds"].append(
            {
                "phase": "adaptation", "step": step, "epoch": epoch, "portion": f"{portion:.3f}",
                **self._by_class(thresholds),
            }
        )  # fmt: skip

    def kept(self, epoch: int, step: int, shares: Tensor) -> None:
        place = {"phase": "adaptation", "epoch": epoch, "step": step}
        self.tables["kept"].append({**place, **self._by_class(shares)})

    def gap(self, epoch: int, step: int, gap: DomainGap) -> None:
        place = {"phase": "adaptation", "epoch": epoch, "step": step}
        values = {"accuracy": float(gap.accuracy), "divergence": float(gap.divergence)}
        self.tables["gap"].append({**place, **values})

    def _by_class(self, values: Tensor) -> dict[str, str]:
        return {name: f"{v:.6f}" for name, v in zip(self.names, values.tolist(), strict=True)}

    def last_thresholds(self, device: torch.device) -> Tensor | None:
        """δ of the last epoch, [K] float32; None if none were computed."""
        rows = self.tables["thresholds"].rows()
        if not rows:
            return None
        return torch.tensor([float(rows[-1][n]) for n in self.names], device=device)

    def lengths(self) -> dict[str, int]:
        """How far each table has been written: what a checkpoint holds."""
        return {name: table.length() for name, table in self.tables.items()}

    def go_back(self, lengths: dict[str, int]) -> list[str]:
        """Drop what was written after `lengths`: a run that goes on writes it again.

        Returns the names of the files that are shorter than they were.
        """
        return [t.path.name for key, t in self.tables.items() if not t.cut(lengths.get(key, 0))]

    def curves(self) -> None:
        """Losses, kept share, transferability and mIoU over the steps, as `curves.png`."""
        from cscl_fast.trainer.curves import draw_curves  # matplotlib takes a while to import

        draw_curves(
            self.folder / "curves.png",
            self.tables["metrics"].rows(),
            self.tables["evaluation"].rows(),
        )
