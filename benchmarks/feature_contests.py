"""Features and labels that the benchmarks of centroids and of their divergence share."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from contests import Case, network_labels, network_logits
from torch import Tensor


class Features(NamedTuple):
    """Features of one domain, and how many classes their labels have."""

    shape: tuple[int, int, int, int]  # [B, C, h, w]
    classes: int = 19
    soft: bool = False  # labels [B, K, h, w] instead of [B, h, w]
    dtype: torch.dtype = torch.float32
    channels_last: bool = True

    def __str__(self) -> str:
        parts = [f"{list(self.shape)}", f"{self.classes} classes"]
        if self.soft:
            parts.append("soft")
        parts.append(str(self.dtype).removeprefix("torch."))
        parts.append("channels-last" if self.channels_last else "contiguous")
        return " ".join(parts)

    @property
    def features_bytes(self) -> int:
        batch, channels, height, width = self.shape
        return self.dtype.itemsize * batch * channels * height * width

    @property
    def labels_bytes(self) -> int:
        batch, _, height, width = self.shape
        return batch * height * width * (4 * self.classes if self.soft else 8)


QUICK = [
    Features((1, 2048, 65, 129)),
    Features((1, 2048, 65, 129), channels_last=False),
    Features((1, 19, 32, 64)),
]
FULL = [
    Features((1, 2048, 65, 129), classes=16),
    Features((1, 2048, 65, 129), classes=13),
    Features((4, 2048, 33, 65)),
    Features((1, 2048, 65, 129), dtype=torch.bfloat16),
]


def features_of(case: Features, seed: int, device: str = "cpu") -> Tensor:
    """After a ReLU: half of the channels are 0. A leaf that requires a gradient."""
    generator = torch.Generator(device).manual_seed(seed)
    values = torch.randn(case.shape, generator=generator, device=device).relu().to(case.dtype)
    if case.channels_last:
        values = values.contiguous(memory_format=torch.channels_last)
    return values.requires_grad_()


def hard_labels_of(case: Features) -> Tensor:  # [B, h, w] int64
    return network_labels((case.shape[0], *case.shape[2:]), case.classes)


def soft_labels_of(case: Features) -> Tensor:  # [B, K, h, w] float32
    """As soft_pseudo_labels gives them: zeros where rejected."""
    logits = network_logits(Case((case.shape[0], case.classes, *case.shape[2:])), 4)
    soft = torch.softmax(logits * 4, dim=1)
    kept = torch.softmax(logits, dim=1).amax(dim=1, keepdim=True) > 0.6
    return torch.where(kept, soft, 0.0)


def winners(soft: Tensor) -> tuple[Tensor, Tensor]:  # [B, h, w] int64 (255: rejected), weights
    """Eq. 13's masked argmax."""
    weight, label = soft.max(dim=1)
    return torch.where(weight > 0, label, 255), weight


def one_hot_weights(label: Tensor, weight: Tensor | None, classes: int) -> Tensor:  # [N, K]
    """The weight of every location in the row of its class; zeros where it has none."""
    row = torch.where(label == 255, classes, label).flatten()
    weights = F.one_hot(row, classes + 1)[:, :classes].float()
    return weights if weight is None else weights * weight.flatten()[:, None]


def split(labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Labels of either kind as (label, weight)."""
    return winners(labels) if labels.ndim == 4 else (labels, None)


def centroids_by_matmul(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """As one would write it with care: one matrix product with weighted one-hot labels."""
    weights = one_hot_weights(*split(labels), classes)
    rows = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]).float()
    mass = weights.sum(dim=0)
    return weights.T @ rows / torch.where(mass > 0, mass, 1.0)[:, None], mass


def centroids_by_loop(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Eq. 12-13 as they stand: for each class a mask, a masked sum and a division."""
    label, weight = split(labels)
    centroids, masses = [], []
    for k in range(classes):
        mask = (label == k).float()
        if weight is not None:
            mask = mask * weight
        mass = mask.sum()
        total = (features.float() * mask[:, None]).sum(dim=(0, 2, 3))
        centroids.append(total / torch.where(mass > 0, mass, 1.0))
        masses.append(mass)
    return torch.stack(centroids), torch.stack(masses)
