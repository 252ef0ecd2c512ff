"""Class centroids of features, Eq. 12-13."""

from __future__ import annotations

from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.cpu.class_centroid import takes
from cscl_fast.backends.reference import class_centroid as reference
from cscl_fast.ops import checks

_KERNELS = backends.implementations("class_centroid")


def class_centroids(
    features: Tensor,  # [B, C, h, w] float32 | float16 | bfloat16 (float64: reference only)
    labels: Tensor,  # [B, h, w] int64 (255: ignored), or soft [B, K, h, w] in [0, 1]
    num_classes: int,
) -> tuple[Tensor, Tensor]:  # centroids [K, C] float32, mass [K] float32
    """Mean feature of each class, and how much it is the mean of.

    Hard labels (Eq. 12): the mean of the features of the locations labelled k; the mass is their
    number. Soft labels (Eq. 13): the mean over the kept locations whose largest soft label is k
    (ties: the lowest class), weighted by ŷ_k; the mass is Σ ŷ_k. A class without mass has the
    centroid 0. Differentiable in the features; labels are constants.

    Args:
        features: F, contiguous or channels-last.
        labels: hard labels, or soft ones whose zeros mean rejected.
        num_classes: K.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong rank, shape or device, `num_classes` not in 1..256, a label out of
            range, or soft labels that require a gradient.
    """
    checks.check_num_classes(num_classes)
    checks.check_features(features)
    backend = backends.select("class_centroids", features, "features")
    if not takes(labels):
        backend = "reference"
    checks.check_labels_of_features(labels, features, num_classes, values=backend != "cpu")
    if backend in _KERNELS:
        centroids, mass = _KERNELS[backend].class_centroids(features, labels, num_classes)
        return centroids, mass
    return reference.class_centroids(features, labels, num_classes)
