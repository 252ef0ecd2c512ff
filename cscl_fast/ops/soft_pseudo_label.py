"""Soft pseudo-labels of the target domain, Eq. 8-10."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.reference import soft_pseudo_label as reference
from cscl_fast.ops import checks

_KERNELS = backends.implementations("soft_pseudo_label")


class SoftPseudoLabels(NamedTuple):
    """What `soft_pseudo_labels` returns."""

    soft: Tensor  # [B, K, H, W] in the logits' dtype and memory format; zeros where rejected
    hard: Tensor  # [B, H, W] int64, class of the largest soft label; 255 where rejected


def soft_pseudo_labels(
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16 (float64: reference only)
    thresholds: Tensor,  # [K] float32, in (0, 1]
    gamma: float = 0.25,
    *,
    size: tuple[int, int] | None = None,  # (H, W) pixels; None keeps h, w
    align_corners: bool = False,
) -> SoftPseudoLabels:
    """The optimum of the self-training cost for every pixel, or its rejection.

    With a_k = (log p_k - log δ_k) / γ the optimum of Eq. 8 is ŷ = softmax(a), at the cost
    S_C = -γ logsumexp(a). A pixel is kept if that is below the zero of not being labelled:
    logsumexp(a) > 0. Pixels with a NaN or infinite logit are rejected. Ties between classes go
    to the lowest one.

    The labels are constants: no gradient flows into the logits. With 256 classes a `hard` of 255
    is either the last class or a rejection; `soft` tells them apart.

    Args:
        logits: network output, contiguous or channels-last.
        thresholds: δ, one for each class.
        gamma: γ, the sharpness: small is close to one-hot.
        size: evaluate on logits upsampled bilinearly to this size.
        align_corners: convention of the upsampling, as in `torch.nn.functional.interpolate`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong rank, shape or device, K not in 1..256, a threshold not in (0, 1] or
            one that requires a gradient, or `gamma` not positive and finite.
    """
    checks.check_logits(logits)
    checks.check_gamma(gamma)
    size = checks.check_size(size, logits, align_corners)
    thresholds = checks.check_thresholds(thresholds, logits)
    kernels = _KERNELS.get(backends.select("soft_pseudo_labels", logits))
    if kernels is not None:
        height, width = logits.shape[2:] if size is None else size
        return SoftPseudoLabels(
            *kernels.soft_pseudo_labels(logits, thresholds, gamma, height, width, align_corners)
        )
    return SoftPseudoLabels(
        *reference.soft_pseudo_labels(logits, thresholds, gamma, size, align_corners)
    )
