"""Cross-entropy on bilinearly upsampled logits, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import accumulation_dtype, arithmetic_dtype, autocast_off, image_groups
from .upsample import upsampled_logits


def upsampled_cross_entropy(
    logits: Tensor,  # [B, K, h, w] any float dtype
    labels: Tensor,  # [B, H, W] int64
    ignore_index: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:  # scalars float32 (float64 for float64 logits), int64
    """Mean over the labelled pixels of -log p_label, 0 where there is none; their number."""
    batch, classes = logits.shape[:2]
    height, width = labels.shape[1:]
    wide = accumulation_dtype(logits.device)
    total = torch.zeros((), dtype=wide, device=logits.device)
    count = torch.zeros((), dtype=torch.int64, device=logits.device)
    with autocast_off(logits):
        for group in image_groups(batch, classes * height * width):
            label = labels[group][:, None]
            counted = (label != ignore_index) & (label >= 0) & (label < classes)
            values = upsampled_logits(logits[group], (height, width), align_corners)
            # Hidden before the softmax, an ignored pixel has no gradient whatever its logits.
            values = torch.where(counted, values, 0)
            chosen = values.log_softmax(dim=1).gather(1, torch.where(counted, label, 0))
            total = total - torch.where(counted, chosen, 0).sum(dtype=wide)
            count = count + counted.sum()
        return (total / count.clamp(min=1)).to(arithmetic_dtype(logits.dtype)), count
