"""Self-training loss on the target domain, the second term of Eq. 7."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.cpu.registration import DTYPE_CODES
from cscl_fast.backends.reference import pseudo_label_loss as reference
from cscl_fast.ops import checks

_KERNELS = backends.implementations("pseudo_label_loss")


@overload
def pseudo_label_loss(
    logits: Tensor,
    thresholds: Tensor,
    gamma: float = 0.25,
    *,
    label_logits: Tensor | None = None,
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    return_count: Literal[False] = False,
) -> Tensor: ...
@overload
def pseudo_label_loss(
    logits: Tensor,
    thresholds: Tensor,
    gamma: float = 0.25,
    *,
    label_logits: Tensor | None = None,
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    return_count: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def pseudo_label_loss(
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16 (float64: reference only)
    thresholds: Tensor,  # [K] float32, in (0, 1]
    gamma: float = 0.25,
    *,
    label_logits: Tensor | None = None,  # [B, K, h, w]; None: the logits themselves
    size: tuple[int, int] | None = None,  # (H, W) pixels; None keeps h, w
    align_corners: bool = False,
    return_count: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # scalar float32, nats per kept pixel; and scalar int64
    """Cross-entropy of the network with its soft pseudo-labels.

    Mean over the kept pixels of -Σ_k ŷ_k log p_k, with the ŷ of Eq. 10 (`soft_pseudo_labels`)
    solved on the fly and never stored. No kept pixel: 0, with zero gradients.

    ŷ is a constant: gradients flow into `logits` through log p only, and never into
    `label_logits`. A pixel with a NaN or infinite logit, in either, is rejected and has no
    gradient.

    Args:
        logits: output of the network being trained.
        thresholds: δ, one for each class.
        gamma: γ, the sharpness of the soft labels.
        label_logits: output of the network that gives the labels, if that is another one.
        size: evaluate on logits upsampled bilinearly to this size.
        align_corners: convention of the upsampling, as in `torch.nn.functional.interpolate`.
        return_count: also the number of kept pixels, which the loss is the mean over: what the
            means of several processes are weighted by.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong rank, shape or device, K not in 1..256, a threshold not in (0, 1] or
            one that requires a gradient, or `gamma` not positive and finite.
    """
    checks.check_logits(logits)
    checks.check_gamma(gamma)
    size = checks.check_size(size, logits, align_corners)
    thresholds = checks.check_thresholds(thresholds, logits)
    if label_logits is not None:
        checks.check_logits(label_logits, "label_logits")
        checks.check_same_shape("label_logits", label_logits, "logits", logits)
        checks.check_same_device("label_logits", label_logits, "logits", logits)
    labelled_here = label_logits is None or label_logits.dtype in DTYPE_CODES
    kernels = _KERNELS.get(backends.select("pseudo_label_loss", logits))
    if kernels is not None and labelled_here:
        loss, count = kernels.pseudo_label_loss(
            logits, thresholds, gamma, label_logits, size, align_corners
        )
    else:
        loss, count = reference.pseudo_label_loss(
            logits, thresholds, gamma, label_logits, size, align_corners
        )
    return (loss, count) if return_count else loss
