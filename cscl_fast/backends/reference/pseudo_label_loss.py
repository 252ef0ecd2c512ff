"""Self-training loss of the target domain, the second term of Eq. 7, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import (
    accumulation_dtype,
    arithmetic_dtype,
    autocast_off,
    finite_pixels,
    image_groups,
)
from .soft_pseudo_label import log_of_thresholds, solve
from .upsample import evaluation_size, upsampled_logits


def _finite_log_softmax(values: Tensor) -> tuple[Tensor, Tensor]:
    """log p [B, K, H, W], and which pixels are finite [B, 1, H, W].

    Pixels that are not are replaced before the softmax: hidden after it, their NaN would come
    back through the gradient as 0 * NaN.
    """
    finite = finite_pixels(values.detach())
    return torch.where(finite, values, 0).log_softmax(dim=1), finite


def pseudo_label_loss(
    logits: Tensor,  # [B, K, h, w] any float dtype
    thresholds: Tensor,  # [K], in (0, 1]
    gamma: float,
    label_logits: Tensor | None,  # [B, K, h, w] any float dtype; None: the logits themselves
    size: tuple[int, int] | None,  # (H, W)
    align_corners: bool,
) -> tuple[Tensor, Tensor]:  # scalars float32 (float64 for float64 logits), int64
    """Mean over the kept pixels of -Σ_k ŷ_k log p_k, 0 where nothing is kept; their number."""
    batch, classes = logits.shape[:2]
    area = evaluation_size(logits, size)
    wide = accumulation_dtype(logits.device)
    total = torch.zeros((), dtype=wide, device=logits.device)
    count = torch.zeros((), dtype=torch.int64, device=logits.device)
    with autocast_off(logits):
        for group in image_groups(batch, classes * area[0] * area[1]):
            values = upsampled_logits(logits[group], area, align_corners)
            log_probabilities, usable = _finite_log_softmax(values)
            with torch.no_grad():  # ŷ is a constant for the gradient
                teacher = log_probabilities
                if label_logits is not None:
                    values = upsampled_logits(label_logits[group], area, align_corners)
                    teacher, finite = _finite_log_softmax(values)
                    usable = usable & finite
                log_thresholds = log_of_thresholds(thresholds, teacher.dtype)
                soft, kept, _ = solve(teacher, log_thresholds, gamma)
                kept = kept & usable[:, 0]
                soft = soft.masked_fill_(~kept[:, None], 0).to(log_probabilities.dtype)
            total = total + (soft * -log_probabilities).sum(dim=1).sum(dtype=wide)
            count = count + kept.sum()
        return (total / count.clamp(min=1)).to(arithmetic_dtype(logits.dtype)), count
