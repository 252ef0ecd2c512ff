"""Rewards of the transferability critic, R = R^s + R^a, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import accumulation_dtype, autocast_off, finite_pixels, image_groups

IGNORED = 255


@torch.no_grad()
def transfer_reward(
    gated_logits: Tensor,  # [B, K, h, w] any float dtype
    plain_logits: Tensor,  # [B, K, h, w] any float dtype
    labels: Tensor,  # [B, h, w] int64
) -> tuple[Tensor, Tensor]:  # reward float32, valid bool; both [B, 1, h, w]
    """1 for the right class through the gate, and 1 for a likelier right class than without it.

    The comparison is of float64 log-probabilities by the same arithmetic on both sides, so that
    equal logits are never a gain.
    """
    classes = gated_logits.shape[1]
    label = labels[:, None]
    valid = (label >= 0) & (label < classes) & (label != IGNORED)
    label = torch.where(valid, label, 0)
    reward = torch.empty(label.shape, dtype=torch.float32, device=label.device)
    wide = accumulation_dtype(label.device)
    with autocast_off(gated_logits):
        for group in image_groups(label.shape[0], gated_logits[:1].numel()):
            gated, plain = gated_logits[group].to(wide), plain_logits[group].to(wide)
            finite = finite_pixels(gated)
            right = gated.argmax(dim=1, keepdim=True) == label[group]
            gain = gated.log_softmax(dim=1) - plain.log_softmax(dim=1)
            likelier = gain.gather(1, label[group]) > 0
            likelier = likelier & finite_pixels(plain)
            reward[group] = (right.float() + likelier.float()) * (valid[group] & finite)
    return reward, valid
