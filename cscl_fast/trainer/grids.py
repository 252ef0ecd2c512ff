"""Logits and labels on another grid: that of the images, or the coarser one of the features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def image_size(images: Tensor) -> tuple[int, int]:
    """(H, W) of a tensor [..., H, W]."""
    return images.shape[-2], images.shape[-1]


def at_grid(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits [B, K, ...] at the locations of a grid, bilinearly; themselves where it is theirs."""
    if image_size(logits) == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def upsampled_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Class indices [B, H, W] int64 of bilinearly upsampled logits [B, K, h, w]."""
    return at_grid(logits, size).argmax(1)


def nearest_labels(labels: Tensor | Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Labels at the locations of a grid, [B, h, w] int64 (nearest).

    Args:
        labels: [B, H, W] int64, or B labels [H', W'] of any sizes.
    """
    if not isinstance(labels, Tensor):
        return torch.cat([nearest_labels(label[None], size) for label in labels])
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0].long()
