"""Supervised segmentation loss at the labels' resolution, the first term of Eq. 7."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.reference import upsampled_cross_entropy as reference
from cscl_fast.ops import checks

_KERNELS = backends.implementations("upsampled_cross_entropy")


@overload
def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = 255,
    align_corners: bool = False,
    return_count: Literal[False] = False,
) -> Tensor: ...
@overload
def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = 255,
    align_corners: bool = False,
    return_count: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def upsampled_cross_entropy(
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16 (float64: reference only)
    labels: Tensor,  # [B, H, W] int64, 0..K-1 or ignore_index
    *,
    ignore_index: int = 255,
    align_corners: bool = False,
    return_count: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # scalar float32, nats per labelled pixel; and scalar int64
    """Cross-entropy of the bilinearly upsampled logits with full-size labels.

    Equal to `F.cross_entropy(F.interpolate(logits, labels.shape[-2:], mode="bilinear"), labels,
    ignore_index=ignore_index)`, except that 0 with zero gradients comes of a batch without a
    labelled pixel. NaN and infinite logits at labelled pixels reach the loss, so that a gradient
    scaler sees them; at ignored pixels they take no part.

    Args:
        logits: network output, contiguous or channels-last.
        labels: class of every pixel; their size is the size of evaluation.
        ignore_index: label of pixels that do not count.
        align_corners: convention of the upsampling, as in `torch.nn.functional.interpolate`.
        return_count: also the number of labelled pixels, which the loss is the mean over: what the
            means of several processes are weighted by.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong rank, shape or device, K not in 1..256, or a label that is neither a
            class nor `ignore_index`.
    """
    checks.check_logits(logits)
    backend = backends.select("upsampled_cross_entropy", logits)
    checks.check_full_size_labels(
        labels, logits, ignore_index, align_corners, values=backend != "cpu"
    )  # the CPU's kernel reads the labels anyway and looks itself
    if backend in _KERNELS:
        loss, count = _KERNELS[backend].upsampled_cross_entropy(
            logits, labels, int(ignore_index), align_corners
        )
    else:
        loss, count = reference.upsampled_cross_entropy(logits, labels, ignore_index, align_corners)
    return (loss, count) if return_count else loss
