"""Label maps as files and as pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cscl_fast.data import (
    CITYSCAPES_19,
    ClassList,
    DataError,
    colorize,
    overlay,
    save_label_png,
)
from cscl_fast.data.decoding import decode_label

CLASSES = ClassList(("a", "b"), ((10, 20, 30), (200, 100, 0)))
LABEL = torch.tensor([[0, 1, 255], [1, 1, 0]])


def test_saved_labels_read_back(tmp_path) -> None:
    label = torch.arange(24).view(4, 6) % 19
    label[0, 0] = 255
    for classes in (None, CITYSCAPES_19):
        save_label_png(tmp_path / "x.png", label, classes)
        assert decode_label(tmp_path / "x.png").tolist() == label.tolist()
    with Image.open(tmp_path / "x.png") as image:
        shown = np.asarray(image.convert("RGB"))
    assert shown[0, 1].tolist() == [244, 35, 232] and shown[0, 0].tolist() == [0, 0, 0]


def test_labels_that_cannot_be_saved(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"label is \(1, 2, 3\); it is \[H, W\]"):
        save_label_png(tmp_path / "x.png", LABEL[None])
    with pytest.raises(ValueError, match=r"values -1\.\.1; they are 0\.\.255"):
        save_label_png(tmp_path / "x.png", torch.tensor([[-1, 1]]))
    with pytest.raises(DataError, match=r"x\.png cannot be written"):
        save_label_png(tmp_path / "none" / "x.png", LABEL)


def test_colorize() -> None:
    picture = colorize(LABEL, CLASSES)
    assert picture.dtype == torch.uint8 and picture.shape == (3, 2, 3)
    assert picture[:, 0].T.tolist() == [[10, 20, 30], [200, 100, 0], [0, 0, 0]]


def test_overlay() -> None:
    image = torch.full((3, 2, 3), 100, dtype=torch.uint8)
    mixed = overlay(image, LABEL, CLASSES, alpha=0.25)
    assert mixed[:, 0, 0].tolist() == [round(75 + 2.5), 80, round(75 + 7.5)]
    assert mixed[:, 0, 2].tolist() == [100, 100, 100]  # ignored: the image alone
    assert torch.equal(overlay(image, LABEL, CLASSES, alpha=0.0), image)
    with pytest.raises(ValueError, match=r"image is \(2, 3\) \(H, W\), label \(1, 3\)"):
        overlay(image, LABEL[:1], CLASSES)
    with pytest.raises(ValueError, match="alpha is 2; it is between 0 and 1"):
        overlay(image, LABEL, CLASSES, alpha=2)
    with pytest.raises(ValueError, match=r"it is \[3, H, W\] uint8"):
        overlay(image.float(), LABEL, CLASSES)
