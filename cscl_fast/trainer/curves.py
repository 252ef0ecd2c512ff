"""`curves.png`: losses, kept share, transferability and mIoU over the steps of a run."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANELS = (
    ("warmup", ("source",), "source-only training: cross-entropy (nats)"),
    ("adaptation", ("source", "target"), "segmentation losses, Eq. 7 (nats)"),
    ("adaptation", ("discriminator", "adversarial"), "adversarial losses, Eq. 1 (nats)"),
    ("adaptation", ("kept", "transferability"), "kept share and transferability P"),
    ("adaptation", ("divergence",), "symmetric soft divergence, Eq. 13 (nats)"),
)  # phase, columns of metrics.csv, title


def draw_curves(path: Path, metrics: list[dict[str, str]], scores: list[dict[str, str]]) -> None:
    """Draw the rows of `metrics.csv` and `evaluation.csv` into the PNG at `path`."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    for axis, (phase, keys, title) in zip(axes, PANELS, strict=False):
        for key in keys:
            points = [
                (int(r["step"]), float(r[key])) for r in metrics if r["phase"] == phase and r[key]
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
    _score_curve(axes[5], scores)
    FigureCanvasAgg(figure).print_png(str(path))


def _score_curve(axis: Axes, scores: list[dict[str, str]]) -> None:
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
