"""Category alignment L_div, Eq. 11, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .class_centroid import wide_centroids
from .numerics import arithmetic_dtype, autocast_off


def _log_distribution(centroids: Tensor, normalise: str, eps: float) -> Tensor:
    """log of the distribution over the channels that each centroid becomes, [K, C]."""
    if normalise == "softmax":
        return centroids.log_softmax(dim=1)
    positive = centroids.clamp(min=0) + eps
    return positive.log() - positive.sum(dim=1, keepdim=True).log()


def symmetric_soft_divergence(
    source_features: Tensor,  # [B, C, h, w] any float dtype
    source_labels: Tensor,  # [B, h, w] int64 or [B, K, h, w] any float dtype
    target_features: Tensor,  # [B', C, h', w'] any float dtype
    target_labels: Tensor,  # [B', h', w'] int64 or [B', K, h', w'] any float dtype
    num_classes: int,
    normalise: str,
    eps: float,
) -> Tensor:  # scalar float32 (float64 for float64 source features)
    """Mean over the classes present on both sides of the symmetric divergence; 0 without one.

    ½(KL(s‖t) + KL(t‖s)) = ½ Σ_c (s_c - t_c)(log s_c - log t_c): no term is negative, so that
    nothing cancels when the two sides agree.
    """
    with autocast_off(source_features):
        source, source_mass = wide_centroids(source_features, source_labels, num_classes)
        target, target_mass = wide_centroids(target_features, target_labels, num_classes)
        present = (source_mass > 0) & (target_mass > 0)
        # Absent classes are hidden before the logarithm, too: a NaN must not return as 0 * NaN.
        source = torch.where(present[:, None], source, 0)
        target = torch.where(present[:, None], target, 0)
        log_source = _log_distribution(source, normalise, eps)
        log_target = _log_distribution(target, normalise, eps)
        gap = (log_source.exp() - log_target.exp()) * (log_source - log_target)
        divergence = 0.5 * torch.where(present, gap.sum(dim=1), 0)
        mean = divergence.sum() / present.sum().clamp(min=1)
        return mean.to(arithmetic_dtype(source_features.dtype))
