"""Soft pseudo-labels, Eq. 8-10, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import arithmetic_dtype, autocast_off, finite_pixels, image_groups
from .upsample import evaluation_size, upsampled_logits

REJECTED = 255


@torch.no_grad()
def solve(
    log_probabilities: Tensor,  # [B, K, H, W] float32 | float64, finite
    log_thresholds: Tensor,  # [K], in the same dtype
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:  # soft [B, K, H, W], kept [B, H, W] bool, argmax [B, H, W]
    """Eq. 10 before selection, the selection, and the class of the largest soft label.

    With d = log p - log δ and m = max d the cost of Eq. 8 is S_C = -(m + γ log Σ exp((d - m)/γ)).
    Dividing by γ only after m has been taken off keeps a tiny γ from overflowing.
    """
    distance = log_probabilities - log_thresholds[:, None, None]
    largest, winner = distance.max(dim=1, keepdim=True)  # ties: the lowest class
    powers = distance.sub_(largest).div_(gamma).exp_()
    total = powers.sum(dim=1, keepdim=True)
    kept = largest + gamma * total.log() > 0
    return powers.div_(total), kept[:, 0], winner[:, 0]


def log_of_thresholds(thresholds: Tensor, dtype: torch.dtype) -> Tensor:
    """log δ in the arithmetic dtype."""
    return thresholds.to(dtype).log()


def result_memory_format(logits: Tensor) -> torch.memory_format:
    """Channels-last if the classes of a pixel are neighbours in memory, else contiguous."""
    classes = logits.shape[1]
    if classes > 1 and logits.stride(1) == 1 and logits.stride(3) >= classes:
        return torch.channels_last
    return torch.contiguous_format


@torch.no_grad()
def soft_pseudo_labels(
    logits: Tensor,  # [B, K, h, w] any float dtype
    thresholds: Tensor,  # [K], in (0, 1]
    gamma: float,
    size: tuple[int, int] | None,  # (H, W)
    align_corners: bool,
) -> tuple[Tensor, Tensor]:  # soft [B, K, H, W] as logits, hard [B, H, W] int64
    """The optimum of Eq. 8 for every pixel; zeros and 255 where it is rejected."""
    batch, classes = logits.shape[:2]
    height, width = evaluation_size(logits, size)
    soft = torch.empty(
        (batch, classes, height, width),
        dtype=logits.dtype,
        device=logits.device,
        memory_format=result_memory_format(logits),
    )
    hard = torch.empty((batch, height, width), dtype=torch.int64, device=logits.device)
    with autocast_off(logits):
        log_thresholds = log_of_thresholds(thresholds, arithmetic_dtype(logits.dtype))
        for group in image_groups(batch, classes * height * width):
            values = upsampled_logits(logits[group], (height, width), align_corners)
            answer, kept, winner = solve(values.log_softmax(dim=1), log_thresholds, gamma)
            kept = kept & finite_pixels(values)[:, 0]
            soft[group] = answer.masked_fill_(~kept[:, None], 0)
            hard[group] = winner.masked_fill(~kept, REJECTED)
    return soft, hard
