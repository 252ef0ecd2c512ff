"""The grids of images, of features and of D, and logits and labels on another one than theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cscl_fast.config import AdaptationConfig
from cscl_fast.models import SegmentationModel


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


def discriminator_strides(
    model: SegmentationModel, config: AdaptationConfig
) -> tuple[int, int, int, int, int]:
    """The configured strides, or those with which D judges at 1/32 of the image."""
    if config.discriminator_strides is not None:
        return config.discriminator_strides
    strides = [1, 1, 1, 1, 1]
    for layer in range(min(5, int(math.log2(max(1, 32 // model.feature_stride))))):
        strides[layer] = 2
    return tuple(strides)  # type: ignore[return-value]  # five of them
