"""Label maps as files and as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cscl_fast.data.classes import IGNORE, ClassList
from cscl_fast.data.errors import DataError


def save_label_png(
    path: Path | str,
    label: Tensor,  # [H, W], class indices 0..255
    classes: ClassList | None = None,
) -> None:
    """Write a label map as an 8-bit PNG of class indices.

    With `classes` the file carries their colours as its palette: viewers show it in colour, and
    its pixels are the class indices all the same.

    Raises:
        ValueError: the label is not [H, W], or has values that do not fit in 8 bits.
        DataError: the file cannot be written.
    """
    values = _label_values(label)
    image = Image.fromarray(values)
    if classes is not None:
        image.putpalette(classes.palette().tobytes())
    try:
        image.save(path, format="PNG")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from None


def colorize(
    label: Tensor,  # [H, W], class indices, 255 ignored
    classes: ClassList,
) -> Tensor:  # [3, H, W] uint8 RGB; black where ignored
    """The colours of a label map's classes.

    Raises:
        ValueError: the label is not [H, W], or has values that do not fit in 8 bits.
    """
    return torch.from_numpy(classes.palette()[_label_values(label)]).permute(2, 0, 1).contiguous()


def overlay(
    image: Tensor,  # [3, H, W] uint8 RGB
    label: Tensor,  # [H, W], class indices, 255 ignored
    classes: ClassList,
    alpha: float = 0.5,  # of the colours, 0..1
) -> Tensor:  # [3, H, W] uint8 RGB
    """An image under the colours of its classes; ignored pixels show the image alone.

    Raises:
        ValueError: image and label differ in size, or alpha is outside [0, 1].
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"image is {tuple(image.shape)} {image.dtype}; it is [3, H, W] uint8")
    if image.shape[1:] != label.shape:
        raise ValueError(
            f"image is {tuple(image.shape[1:])} (H, W), label {tuple(label.shape)}; "
            "resize one of them first"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it is between 0 and 1")
    image = image.cpu()
    mixed = torch.lerp(image.float(), colorize(label, classes).float(), alpha)
    return torch.where(label.cpu() == IGNORE, image, mixed.round().to(torch.uint8))


def _label_values(label: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    if label.ndim != 2:
        raise ValueError(f"label is {tuple(label.shape)}; it is [H, W]")
    if label.numel() and (int(label.min()) < 0 or int(label.max()) > 255):
        raise ValueError(
            f"label has values {int(label.min())}..{int(label.max())}; they are 0..255"
        )
    return label.detach().to("cpu", torch.uint8).contiguous().numpy()
