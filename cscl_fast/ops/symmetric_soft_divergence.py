"""Category alignment between the domains, L_div of Eq. 11."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.cpu.class_centroid import takes
from cscl_fast.backends.reference import symmetric_soft_divergence as reference
from cscl_fast.ops import checks

_KERNELS = backends.implementations("symmetric_soft_divergence")


def _number_of_classes(num_classes: int | None, *labels: Any) -> int:
    """`num_classes`, or the number of classes that soft labels have."""
    if num_classes is None:
        for candidate in labels:
            if isinstance(candidate, Tensor) and candidate.ndim == 4:
                num_classes = candidate.shape[1]
                break
        else:
            raise ValueError("num_classes is None; it must be given when no labels are soft")
    checks.check_num_classes(num_classes)
    return num_classes


def symmetric_soft_divergence(
    source_features: Tensor,  # [B, C, h, w] float32 | float16 | bfloat16 (float64: reference only)
    source_labels: Tensor,  # [B, h, w] int64 (255: ignored), or soft [B, K, h, w]
    target_features: Tensor,  # [B', C, h', w']
    target_soft_labels: Tensor,  # [B', K, h', w'], zeros where rejected; or int64 [B', h', w']
    *,
    num_classes: int | None = None,
    normalise: str = "softmax",
    eps: float = 1e-6,
) -> Tensor:  # scalar float32, nats per class
    """Symmetric divergence of the class centroids of the two domains.

    Each centroid (`class_centroids`) becomes a distribution over its channels; the loss is the
    mean, over the classes present on both sides, of ½(KL(s‖t) + KL(t‖s)). No such class: 0, with
    zero gradients. Differentiable in both features; labels are constants.

    Args:
        source_features: features of source images.
        source_labels: their labels at the features' resolution.
        target_features: features of target images; batch and resolution may differ.
        target_soft_labels: their soft pseudo-labels at the features' resolution.
        num_classes: K; None takes it from the soft labels.
        normalise: "softmax" over the channels, or "l1": clamp at 0, add `eps` to every channel,
            divide by the sum. The gradient of "l1" is as large as 1/`eps` in dead channels.
        eps: what "l1" adds.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong rank, shape or device, different numbers of channels or classes, a
            label out of range, an unknown `normalise`, or `eps` not positive and finite.
    """
    num_classes = _number_of_classes(num_classes, target_soft_labels, source_labels)
    checks.check_normalise(normalise)
    checks.check_eps(eps)
    checks.check_features(source_features, "source_features")
    checks.check_features(target_features, "target_features")
    if source_features.shape[1] != target_features.shape[1]:
        raise ValueError(
            f"source_features {list(source_features.shape)} and target_features "
            f"{list(target_features.shape)} must have the same number of channels"
        )
    checks.check_same_device("target_features", target_features, "source_features", source_features)
    backend = backends.select("symmetric_soft_divergence", source_features, "source_features")
    if not (
        target_features.dtype != torch.float64
        and takes(source_labels)
        and takes(target_soft_labels)
    ):
        backend = "reference"
    sides = (
        (source_labels, source_features, "source_labels", "source_features"),
        (target_soft_labels, target_features, "target_soft_labels", "target_features"),
    )
    for labels, features, name, features_name in sides:
        checks.check_labels_of_features(
            labels, features, num_classes, name, features_name, values=backend != "cpu"
        )
    if backend in _KERNELS:
        loss: Tensor = _KERNELS[backend].symmetric_soft_divergence(
            source_features,
            source_labels,
            target_features,
            target_soft_labels,
            num_classes,
            normalise,
            eps,
        )
        return loss
    return reference.symmetric_soft_divergence(
        source_features,
        source_labels,
        target_features,
        target_soft_labels,
        num_classes,
        normalise,
        eps,
    )
