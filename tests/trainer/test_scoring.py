"""Confusion matrix, IoU and its means, the table."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from cscl_fast.data import CITYSCAPES_19, SYNTHIA_16, ClassList
from cscl_fast.data.classes import RESERVED_NAMES
from cscl_fast.trainer.evaluation import ConfusionMatrix, Score, evaluate, table
from cscl_fast.trainer.records import Records


def brute_force(truth: list[int], prediction: list[int], k: int) -> list[float]:
    """IoU in percent, pixel by pixel with sets."""
    ious = []
    for c in range(k):
        valid = [i for i, t in enumerate(truth) if t < k]
        a = {i for i in valid if truth[i] == c}
        b = {i for i in valid if prediction[i] == c}
        ious.append(100 * len(a & b) / len(a | b) if a | b else math.nan)
    return ious


def test_iou_against_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    k = 6
    truth = torch.randint(0, k - 1, (3, 7, 9), generator=generator)  # class 5 is in no truth,
    prediction = torch.randint(0, k, (3, 7, 9), generator=generator)
    prediction[prediction == 4] = 3  # class 4 is never predicted,
    truth[truth == 2] = 255
    prediction[prediction == 2] = 0  # class 2 in neither
    truth[0, :2] = 255
    matrix = ConfusionMatrix(k)
    for t, p in zip(truth, prediction, strict=True):
        matrix.update(t, p)
    expected = brute_force(truth.flatten().tolist(), prediction.flatten().tolist(), k)
    torch.testing.assert_close(
        matrix.iou(), torch.tensor(expected, dtype=torch.float64), equal_nan=True
    )
    assert matrix.iou()[2].isnan() and matrix.iou()[4] == 0 and matrix.iou()[5] == 0
    score = Score(ClassList(tuple("abcdef"), ((0, 0, 0),) * 6), matrix.iou())
    finite = [v for v in expected if not math.isnan(v)]
    assert score.mean == pytest.approx(sum(finite) / len(finite))
    assert int(matrix.counts.sum()) == int((truth != 255).sum())


def test_sixteen_and_thirteen_classes_of_synthia() -> None:
    iou = torch.arange(16, dtype=torch.float64)
    score = Score(SYNTHIA_16, iou)
    left_out = [SYNTHIA_16.names.index(n) for n in ("wall", "fence", "pole")]
    assert score.mean == pytest.approx(7.5)
    assert score.mean13 == pytest.approx((120 - sum(left_out)) / 13)
    assert list(score.row())[:3] == ["mIoU", "mIoU*", "road"]
    assert Score(CITYSCAPES_19, torch.zeros(19, dtype=torch.float64)).mean13 is None
    own = ClassList(tuple(f"c{i}" for i in range(16)), SYNTHIA_16.colors)
    assert Score(own, iou).mean13 is None  # 16 classes, but not those


def test_every_column_that_is_no_class_has_a_name_that_no_class_may_have(tmp_path: Path) -> None:
    tables = Records(tmp_path, SYNTHIA_16).tables.values()
    by_class = [t.columns for t in tables if SYNTHIA_16.names[0] in t.columns]
    assert len(by_class) == 3
    assert all({*columns} - {*SYNTHIA_16.names} <= RESERVED_NAMES for columns in by_class)


class Constant(nn.Module):
    """Logits at half the image's size: the mean of each 2x2 block picks the class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training and not torch.is_grad_enabled()
        pooled = nn.functional.avg_pool2d(x, 2)
        return torch.cat([-pooled[:, :1], pooled[:, :1]], 1)


def test_evaluate_scores_at_the_labels_size() -> None:
    """Images 4x4, labels 8x8: the logits are upsampled to the labels."""
    image = torch.full((1, 3, 4, 4), -1.0)
    image[..., 2:] = 1.0
    label = torch.zeros(8, 8, dtype=torch.int64)
    label[:, 4:] = 1
    label[0] = 255
    label[1, 0] = 1  # one pixel wrong
    model = Constant().train()
    score = evaluate(model, [(image, [label])], ClassList(("a", "b"), ((0, 0, 0), (1, 1, 1))))
    assert score.iou.tolist() == pytest.approx([100 * 27 / 28, 100 * 28 / 29])
    assert model.training


def test_table_as_text_and_as_markdown() -> None:
    classes = ClassList(("road", "traffic light"), ((0, 0, 0), (1, 1, 1)))
    rows = {
        "source only": Score(classes, torch.tensor([50.04, math.nan], dtype=torch.float64)),
        "CSCL": Score(classes, torch.tensor([100.0, 7.25], dtype=torch.float64)),
    }
    assert table(rows).splitlines() == [
        "             mIoU   road  traffic light",
        "source only  50.0   50.0            nan",
        "CSCL         53.6  100.0            7.2",
    ]
    assert table(rows, markdown=True).splitlines() == [
        "|  | mIoU | road | traffic light |",
        "| --- | ---: | ---: | ---: |",
        "| source only | 50.0 | 50.0 | nan |",
        "| CSCL | 53.6 | 100.0 | 7.2 |",
    ]
    # A class is no markup, whatever it is called.
    marked = ClassList(("road|lane", "*car*"), classes.colors)
    text = table({"CSCL": Score(marked, torch.zeros(2))}, markdown=True)
    assert text.splitlines()[0] == r"|  | mIoU | road\|lane | \*car\* |"
