"""Intersection over union on an evaluation set, by class and on the subsets the field reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cscl_fast.data import SYNTHIA_16, ClassList, thirteen_of_sixteen
from cscl_fast.markdown import table as as_markdown
from cscl_fast.trainer.grids import image_size, upsampled_argmax
from cscl_fast.trainer.labelling import evaluating
from cscl_fast.trainer.processes import Processes


class ConfusionMatrix:
    """Counts [K, K] int64: rows are the truth, columns the prediction."""

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, truth: Tensor, prediction: Tensor) -> None:
        """Add the pixels of two [.., H, W] int64 maps; truth outside 0..K-1 is ignored."""
        k = len(self.counts)
        valid = (truth >= 0) & (truth < k)
        pairs = truth[valid] * k + prediction[valid]
        self.counts += torch.bincount(pairs, minlength=k * k).view(k, k).cpu()

    def iou(self) -> Tensor:
        """IoU [K] float64 in percent; NaN for a class in neither truth nor prediction."""
        counts = self.counts.double()
        union = counts.sum(0) + counts.sum(1) - counts.diag()
        return 100 * counts.diag() / union


@dataclass
class Score:
    """IoU by class in percent, and its means."""

    classes: ClassList
    iou: Tensor  # [K] float64, percent

    @property
    def mean(self) -> float:
        """mIoU in percent over the classes that occur."""
        return float(self.iou.nanmean())

    @property
    def mean13(self) -> float | None:
        """mIoU over 13 of SYNTHIA's 16 classes ("mIoU*"); None for other class lists."""
        if self.classes.names != SYNTHIA_16.names:
            return None
        return float(self.iou[list(thirteen_of_sixteen())].nanmean())

    def row(self) -> dict[str, float]:
        """Name → percent: the mean(s) first, then each class."""
        result = {"mIoU": self.mean}
        if self.mean13 is not None:
            result["mIoU*"] = self.mean13
        return result | dict(zip(self.classes.names, self.iou.tolist(), strict=True))


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, list[Tensor]]],
    classes: ClassList,
    processes: Processes | None = None,
) -> Score:
    """Score the plain path of a network.

    Args:
        model: images [B, 3, H, W] → logits [B, K, h, w].
        batches: images and their B labels [H', W'] int64 (255 = ignored), which may be larger
            than the images: the logits are upsampled to them.
        processes: that read a share of the batches each; the score is that of all of them.
    """
    confusion = ConfusionMatrix(classes.num_classes)
    with evaluating(model):
        for images, labels in batches:
            logits = model(images)
            for one, label in zip(logits, labels, strict=True):
                prediction = upsampled_argmax(one[None], image_size(label))[0]
                confusion.update(label.to(prediction.device), prediction)
    if processes is not None:
        confusion.counts = processes.sum(confusion.counts)
    return Score(classes, confusion.iou())


def table(rows: dict[str, Score], *, markdown: bool = False) -> str:
    """Several scores side by side, one row each, as text or as a Markdown table."""
    names = list(dict.fromkeys(key for score in rows.values() for key in score.row()))
    cells = [["", *names]]
    for label, score in rows.items():
        row = score.row()
        cells.append([label, *(f"{row[n]:.1f}" if n in row else "" for n in names)])
    if markdown:
        return as_markdown(cells)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
        )
        for line in cells
    )
