"""Algorithm 1 on a GPU as one would write it with care in PyTorch: contenders of ClassThresholds.

The CPU benchmark's collect and select on the host, which no one would do with a GPU at hand.
"""

from __future__ import annotations

from typing import Any

import torch
from bench_class_threshold import confidences, place_in_order
from contests import compiled
from torch import Tensor


def _found(images: list[Tensor], size: Any) -> tuple[Tensor, Tensor]:
    """Confidence and class of every pixel."""
    found = [confidences(z, size) for z in images]
    return torch.cat([pair[0] for pair in found]), torch.cat([pair[1] for pair in found])


def selected(confidence: Tensor, prediction: Tensor, classes: int, portion: float) -> Tensor:  # [K]
    """A selection for each class, on the device; waits once, for the counts."""
    order = prediction.to(torch.uint8).argsort(stable=True)
    counts = torch.bincount(prediction, minlength=classes).tolist()
    found = []
    for members in confidence[order].split(counts):
        count = members.numel()
        rank = count - place_in_order(portion, count)
        found.append(members.kthvalue(rank).values if count else confidence.new_ones(()))
    return torch.stack(found)


def by_selection(images: list[Tensor], portion: float, size: Any) -> Tensor:
    return selected(*_found(images, size), images[0].shape[1], portion)


def by_selection_compiled(images: list[Tensor], portion: float, size: Any) -> Tensor:
    """The confidences compiled; the selection depends on counts and stays as it is."""
    found = [compiled(confidences)(z, size) for z in images]
    confidence = torch.cat([pair[0] for pair in found])
    prediction = torch.cat([pair[1] for pair in found])
    return selected(confidence, prediction, images[0].shape[1], portion)


def by_sorting(images: list[Tensor], portion: float, size: Any) -> Tensor:
    """One sort of all pixels, by class and then by confidence; waits for nothing."""
    confidence, prediction = _found(images, size)
    classes = images[0].shape[1]
    ordered = (prediction + (1 - confidence.double())).sort().values
    counts = torch.zeros(classes, dtype=torch.int64, device=ordered.device)
    counts.scatter_add_(0, prediction, torch.ones_like(prediction))
    rank = torch.minimum((counts * portion).long(), counts - 1).clamp(min=0)
    place = (counts.cumsum(0) - counts + rank).clamp(max=ordered.numel() - 1)
    answer = 1 - (ordered[place] - torch.arange(classes, device=ordered.device))
    return torch.where(counts > 0, answer, 1.0).float()
