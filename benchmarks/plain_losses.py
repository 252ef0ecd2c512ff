"""The two losses at image size as they are usually written: upsample, softmax, multiply.

A step whose losses are these keeps logits, probabilities and soft labels of every pixel, as the
code of a careful practitioner does: the soft labels are made once for both paths, without
gradients, and PyTorch's own cross-entropy takes the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from cscl_fast import ops, use_backend


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """`ops.upsampled_cross_entropy`; logits [B, K, h, w], labels [B, H, W] int64."""
    upsampled = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(upsampled, labels, ignore_index=255)


class SelfTraining:
    """`ops.pseudo_label_loss`, with the soft labels of a batch kept for its second path."""

    def __init__(self) -> None:
        self.of: Tensor | None = None  # the label network's logits
        self.soft = torch.empty(0)  # [B, K, H, W]

    def __call__(
        self,
        logits: Tensor,  # [B, K, h, w]
        thresholds: Tensor,  # [K]
        gamma: float,
        *,
        label_logits: Tensor,  # [B, K, h, w]
        size: tuple[int, int],  # (H, W)
    ) -> Tensor:
        if self.of is not label_logits:
            self.of, self.soft = label_logits, soft_labels(label_logits, thresholds, gamma, size)
        upsampled = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        kept = self.soft.sum().clamp(min=1)  # a kept pixel's labels add up to 1
        return -(self.soft * F.log_softmax(upsampled, dim=1)).sum() / kept


@torch.no_grad()
def soft_labels(
    logits: Tensor, thresholds: Tensor, gamma: float, size: tuple[int, int]
) -> Tensor:  # [B, K, H, W]
    """Eq. 10 at image size; zeros where rejected."""
    upsampled = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    probabilities = F.softmax(upsampled, dim=1)
    weights = (probabilities / thresholds[:, None, None]) ** (1 / gamma)
    total = weights.sum(dim=1, keepdim=True)
    return torch.where(total > 1, weights / total, 0)


@contextmanager
def plain_losses() -> Iterator[None]:
    """Inside, steps of the method take these losses, and PyTorch for every other operator."""
    with (
        use_backend("reference"),
        mock.patch.object(ops, "upsampled_cross_entropy", cross_entropy),
        mock.patch.object(ops, "pseudo_label_loss", SelfTraining()),
    ):
        yield
