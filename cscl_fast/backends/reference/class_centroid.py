"""Class centroids of features, Eq. 12-13, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import accumulation_dtype, arithmetic_dtype, autocast_off, image_groups

IGNORED = 255


def _assignment(labels: Tensor, num_classes: int, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Row of every location [N] int64 (`num_classes`: none) and its weight [N]."""
    if labels.dtype == torch.int64:
        row = labels.flatten()
        counted = (row >= 0) & (row < num_classes) & (row != IGNORED)
        weight = counted.to(wide)
    else:
        largest, winner = labels.max(dim=1)  # ties: the lowest class
        row, largest = winner.flatten(), largest.flatten().to(wide)
        counted = (largest > 0) & largest.isfinite()
        weight = torch.where(counted, largest, 0)
    return torch.where(counted, row, num_classes), weight


def wide_centroids(
    features: Tensor,  # [B, C, h, w] any float dtype
    labels: Tensor,  # [B, h, w] int64 or [B, K, h, w] any float dtype
    num_classes: int,
) -> tuple[Tensor, Tensor]:  # [K, C], [K] in the accumulation dtype
    """Weighted means of the features of each class and their masses, before rounding.

    Every location adds to one row only: locations of no class go to a row that is cut off, so
    that a NaN there reaches no centroid. Sums in float64: half a million float32 additions into
    one number would lose the fifth digit.
    """
    wide = accumulation_dtype(features.device)
    channels = features.shape[1]
    sums = torch.zeros((num_classes + 1, channels), dtype=wide, device=features.device)
    mass = torch.zeros(num_classes + 1, dtype=wide, device=features.device)
    labels = labels.detach()
    for group in image_groups(features.shape[0], features[:1].numel()):
        row, weight = _assignment(labels[group], num_classes, wide)
        values = features[group].permute(0, 2, 3, 1).reshape(-1, channels).to(wide)
        if labels.dtype != torch.int64:  # hard labels weigh 1, or go to the row that is cut off
            values = values * weight[:, None]
        sums = sums.index_add(0, row, values)
        mass = mass.index_add(0, row, weight)
    sums, mass = sums[:num_classes], mass[:num_classes]
    return sums / torch.where(mass > 0, mass, 1)[:, None], mass


def class_centroids(
    features: Tensor,  # [B, C, h, w] any float dtype
    labels: Tensor,  # [B, h, w] int64 or [B, K, h, w] any float dtype
    num_classes: int,
) -> tuple[Tensor, Tensor]:  # [K, C], [K] float32 (float64 for float64 features)
    """Mean feature of each class and the mass behind it; zeros where there is none."""
    dtype = arithmetic_dtype(features.dtype)
    with autocast_off(features):
        centroids, mass = wide_centroids(features, labels, num_classes)
        return centroids.to(dtype), mass.to(dtype)
