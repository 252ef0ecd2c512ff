"""Algorithm 1, streaming and exact, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import autocast_off, finite_pixels, image_groups
from .upsample import evaluation_size, upsampled_logits

BINS = 1 << 16
# An order key holds the class above the 32 bits of the confidence.
_CLASS_SHIFT = 32
_LARGEST_BITS = (1 << 31) - 1


def _confidences(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest probability float32, its class int64, and which pixels count; each [B, H, W]."""
    largest, winner = values.max(dim=1, keepdim=True)  # ties: the lowest class
    confidence = (values - largest).exp().sum(dim=1).reciprocal().to(torch.float32)
    return confidence, winner[:, 0], finite_pixels(values)[:, 0]


@torch.no_grad()
def accumulate(
    histogram: Tensor,  # [K, BINS] int64, changed in place
    logits: Tensor,  # [B, K, h, w] any float dtype
    size: tuple[int, int] | None,  # (H, W)
    align_corners: bool,
) -> None:
    """Count every pixel in the bin of its confidence, in its class's row."""
    area = evaluation_size(logits, size)
    batch, classes = logits.shape[:2]
    with autocast_off(logits):
        for group in image_groups(batch, classes * area[0] * area[1]):
            values = upsampled_logits(logits[group], area, align_corners)
            confidence, winner, counted = _confidences(values)
            # The bin of a pixel that does not count is taken from a number, not from its NaN.
            scaled = torch.where(counted, confidence, 0) * BINS
            position = winner * BINS + scaled.to(torch.int64).clamp(max=BINS - 1)
            histogram.view(-1).scatter_add_(
                0, position.flatten(), counted.flatten().to(torch.int64)
            )


def _rank(counts: Tensor, portion: float) -> Tensor:
    """Index into the descending order, [K] int64: floor(portion * n) in double, at most n - 1."""
    rank = (counts.to(torch.float64) * portion).floor().to(torch.int64)
    return torch.minimum(rank, counts - 1).clamp(min=0)


@torch.no_grad()
def thresholds_of_histogram(
    histogram: Tensor,  # [K, BINS] int64
    portion: float,
) -> Tensor:  # [K] float32, in (0, 1]
    """The centre of the bin that holds each class's order statistic; 1 for an empty class."""
    from_above = histogram.flip(1).cumsum(1)
    counts = from_above[:, -1]
    rank = _rank(counts, portion)[:, None]
    passed = torch.searchsorted(from_above, rank, right=True)[:, 0]
    # 2 * bin + 1 has 17 bits at most, so that the centre is exact in float32.
    centre = (2 * (BINS - 1 - passed) + 1).to(torch.float32) / (2 * BINS)
    return torch.where(counts > 0, centre, 1.0)


@torch.no_grad()
def class_thresholds(
    logits: Tensor,  # [B, K, h, w] any float dtype
    portion: float,
    size: tuple[int, int] | None,  # (H, W)
    align_corners: bool,
) -> Tensor:  # [K] float32, in (0, 1]
    """Sort all pixels by class and then by falling confidence, and read one place per class.

    The bits of a positive float32 are ordered as the number is, so that one integer sort does it.
    """
    area = evaluation_size(logits, size)
    batch, classes = logits.shape[:2]
    keys = []
    with autocast_off(logits):
        for group in image_groups(batch, classes * area[0] * area[1]):
            values = upsampled_logits(logits[group], area, align_corners)
            confidence, winner, counted = _confidences(values)
            confidence = torch.where(counted, confidence, 0)
            falling = _LARGEST_BITS - confidence.view(torch.int32).to(torch.int64)
            row = torch.where(counted, winner, classes)
            keys.append(((row << _CLASS_SHIFT) + falling).flatten())
    ordered = torch.cat(keys).sort().values
    edges = torch.arange(classes + 1, device=logits.device) << _CLASS_SHIFT
    start = torch.searchsorted(ordered, edges)
    counts = start[1:] - start[:-1]
    # One key more, so that an empty class (or no pixel at all) has something to read.
    ordered = torch.cat((ordered, edges[:1]))
    falling = ordered[start[:-1] + _rank(counts, portion)] & ((1 << _CLASS_SHIFT) - 1)
    order_statistic = (_LARGEST_BITS - falling).to(torch.int32).view(torch.float32)
    return torch.where(counts > 0, order_statistic, 1.0)
