"""Running class centroids: for batches too small to show every class (`centroid_momentum`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cscl_fast import ops


class RunningCentroids(nn.Module):
    """Exponential averages of both domains' class centroids.

    A class of the batch enters as m · running + (1 − m) · batch, and gradients flow to the batch's
    part; a class that the batch does not show keeps its running centroid, a constant.

    Args:
        momentum: m in (0, 1); the weight of the past.
    """

    running: Tensor  # [2, K, C] float32
    seen: Tensor  # [2, K] bool

    def __init__(self, momentum: float, num_classes: int, channels: int) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running", torch.zeros(2, num_classes, channels))
        self.register_buffer("seen", torch.zeros(2, num_classes, dtype=torch.bool))

    def blend(self, domain: int, features: Tensor, labels: Tensor) -> Tensor:
        """Centroids [K, C] of one domain (0 source, 1 target); the running ones move along."""
        batch, mass = ops.class_centroids(features, labels, self.running.shape[1])
        present = (mass > 0)[:, None]
        # Copies: the backward pass wants them as they are now, not as they become below.
        past = self.running[domain].clone()
        known = self.seen[domain][:, None].clone()
        mixed = torch.where(known, self.momentum * past + (1 - self.momentum) * batch, batch)
        blended = torch.where(present, mixed, past)
        self.running[domain] = blended.detach()
        self.seen[domain] |= present[:, 0]
        return blended

    def divergence(
        self,
        source_features: Tensor,  # [B, C, h, w]
        source_labels: Tensor,  # [B, h, w] int64
        target_features: Tensor,  # [B, C, h, w]
        target_soft: Tensor,  # [B, K, h, w]
        *,
        normalise: str,
    ) -> Tensor:  # scalar float32, nats
        """L_div (Eq. 13) between the blended centroids of the classes seen on both sides."""
        s = self.blend(0, source_features, source_labels)
        t = self.blend(1, target_features, target_soft)
        # A centroid is a one-pixel feature map: one location per class, labelled by its class.
        both = self.seen.all(0)
        k = len(both)
        labels = torch.arange(k, device=both.device).masked_fill(~both, 255).view(1, 1, k)
        return ops.symmetric_soft_divergence(
            s.t()[None, :, None],
            labels,
            t.t()[None, :, None],
            torch.diag(both.float()).t()[None, :, None],
            normalise=normalise,
        )
