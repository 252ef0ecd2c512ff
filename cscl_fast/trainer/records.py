"""The tables and curves of a run: scores and thresholds as CSV, the curves drawn from them."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from cscl_fast.data import ClassList
from cscl_fast.trainer.evaluation import Score


class Records:
    """`evaluation.csv` (one row per score), `thresholds.csv` (one row per epoch), `curves.png`."""

    def __init__(self, folder: Path, classes: ClassList) -> None:
        self.folder = folder
        self.names = list(classes.names)

    def score(self, row: str, phase: str, step: int, score: Score) -> None:
        """Append IoU by class in percent."""
        values: dict[str, object] = {"phase": phase, "step": step, "row": row}
        values |= {name: f"{value:.3f}" for name, value in score.row().items()}
        _append(self.folder / "evaluation.csv", values)

    def thresholds(self, epoch: int, step: int, portion: float, thresholds: Tensor) -> None:
        """Append the thresholds δ_k of an epoch, and S_A (`portion`)."""
        values: dict[str, object] = {
            "phase": "adaptation", "step": step, "epoch": epoch, "portion": f"{portion:.3f}",
        }  # fmt: skip
        values |= {n: f"{v:.6f}" for n, v in zip(self.names, thresholds.tolist(), strict=True)}
        _append(self.folder / "thresholds.csv", values)

    def last_thresholds(self, device: torch.device) -> Tensor | None:
        """δ of the last epoch, [K] float32; None if none were computed."""
        rows = _read(self.folder / "thresholds.csv")
        if not rows:
            return None
        return torch.tensor([float(rows[-1][n]) for n in self.names], device=device)

    def cut(self, done: dict[str, int]) -> None:
        """Drop what lies behind a checkpoint that is resumed: it will be written again."""
        for name in ("evaluation.csv", "thresholds.csv"):
            path = self.folder / name
            # An epoch's thresholds are written before its first step, a score after its last; the
            # scores of the source-only network come after the warm-up's last checkpoint.
            late = 1 if name == "thresholds.csv" or "adaptation" not in done else 0
            rows = [
                row
                for row in _read(path)
                if int(row["step"] or 10**15) + late <= done.get(row["phase"], -1)
            ]
            path.unlink(missing_ok=True)
            for row in rows:
                _append(path, dict(row))

    def start_again(self) -> None:
        for name in ("evaluation.csv", "thresholds.csv"):
            (self.folder / name).unlink(missing_ok=True)

    def curves(self) -> None:
        """Losses, kept share, transferability and mIoU over the steps, as `curves.png`."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        metrics = _read(self.folder / "metrics.csv")
        scores = _read(self.folder / "evaluation.csv")
        figure = Figure(figsize=(12, 7), layout="constrained")
        axes = figure.subplots(2, 3).flatten()
        panels = (
            ("warmup", ("source",), "source-only training: cross-entropy (nats)"),
            ("adaptation", ("source", "target"), "segmentation losses, Eq. 7 (nats)"),
            ("adaptation", ("discriminator", "adversarial"), "adversarial losses, Eq. 1 (nats)"),
            ("adaptation", ("kept", "transferability"), "kept share and transferability P"),
            ("adaptation", ("divergence",), "symmetric soft divergence, Eq. 13 (nats)"),
        )
        for axis, (phase, keys, title) in zip(axes, panels, strict=False):
            for key in keys:
                points = [
                    (int(r["step"]), float(r[key]))
                    for r in metrics
                    if r["phase"] == phase and r[key]
                ]
                if points:
                    axis.plot(*zip(*points, strict=True), label=key, linewidth=1)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("step")
            if axis.lines:
                axis.legend(fontsize=8)
            else:  # a phase or a part that this run does not have
                axis.set_axis_off()
                axis.set_title(f"{title}: none", fontsize=10)
        self._score_curve(axes[5], scores)
        FigureCanvasAgg(figure).print_png(str(self.folder / "curves.png"))

    def _score_curve(self, axis: object, scores: list[dict[str, str]]) -> None:
        from matplotlib.axes import Axes

        assert isinstance(axis, Axes)
        for row in dict.fromkeys(r["row"] for r in scores):
            points = [(int(r["step"]), float(r["mIoU"])) for r in scores if r["row"] == row]
            before = [r for r in scores if r["row"] == row and r["phase"] == "warmup"]
            if before:
                axis.axhline(float(before[-1]["mIoU"]), label=row, linestyle="--", color="gray",
                             alpha=0.5 if row == "source only" else 1.0)  # fmt: skip
            else:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=row)
        axis.set_title("mIoU on the evaluation images (%)", fontsize=10)
        axis.set_xlabel("step of the adaptation")
        if axis.lines:
            axis.legend(fontsize=8)


def _append(path: Path, values: dict[str, object]) -> None:
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(values))
        if new:
            writer.writeheader()
        writer.writerow(values)


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
