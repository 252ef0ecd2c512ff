"""Cross-entropy on bilinearly upsampled logits, by the compiled kernel.

`torch.ops.cscl_fast.upsampled_cross_entropy` is computed by csrc/cpu/upsampled_cross_entropy.cpp.
When a gradient will be needed, the same walk over the pixels finds it, at the logits' own small
size. Labels as small as the logits are walked again by `..._backward`: their gradient is as large
as the logits, and writing it before the number of pixels is known would mean writing it twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cscl_fast import backends

from .loss import (
    LossOperator,
    empty_gradient,
    fake_gradient,
    gradient_format,
    recorded_forward,
    register,
    second_walk_dtype,
)
from .registration import DTYPE_CODES, LIBRARY, implement

LIBRARY.define(
    "upsampled_cross_entropy(Tensor logits, Tensor labels, int ignore_index, bool align_corners,"
    " bool record) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "upsampled_cross_entropy_backward(Tensor scale, Tensor logits, Tensor labels, int ignore_index)"
    " -> Tensor"
)


def _call(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    align_corners: bool,
    loss: Tensor | None,
    count: Tensor | None,
    gradient: Tensor | None,
    scale: float | None,
) -> None:
    labels = labels.contiguous()
    in_range = backends.library().upsampled_cross_entropy(
        logits.data_ptr(),
        DTYPE_CODES[logits.dtype],
        tuple(logits.shape),
        logits.stride(),
        *labels.shape[1:],
        align_corners,
        labels.data_ptr(),
        ignore_index,
        0 if loss is None else loss.data_ptr(),
        0 if count is None else count.data_ptr(),
        0 if gradient is None else gradient.data_ptr(),
        gradient_format(logits) == torch.channels_last,
        scale is None,
        scale or 0.0,
        torch.get_num_threads(),
    )
    if not in_range:
        from cscl_fast.ops import checks  # the operators import this module

        checks.check_label_values("labels", labels, logits.shape[1], ignore_index)


@torch.library.register_fake("cscl_fast::upsampled_cross_entropy", lib=LIBRARY)
def _fake(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, record: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = record and recorded_forward(logits, (labels.shape[1], labels.shape[2]))
    return (
        logits.new_empty((), dtype=torch.float32),
        logits.new_empty((), dtype=torch.int64),
        fake_gradient(logits, wanted),
    )


def _compute(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, record: bool
) -> tuple[Tensor, Tensor, Tensor]:
    loss = torch.empty((), dtype=torch.float32)
    count = torch.empty((), dtype=torch.int64)
    wanted = record and recorded_forward(logits, (labels.shape[1], labels.shape[2]))
    gradient = empty_gradient(logits, wanted)
    if labels.numel() == 0:
        return loss.zero_(), count.zero_(), gradient.zero_()
    place = gradient if wanted else None
    _call(logits, labels, ignore_index, align_corners, loss, count, place, None)
    return loss, count, gradient


@torch.library.register_fake("cscl_fast::upsampled_cross_entropy_backward", lib=LIBRARY)
def _fake_backward(scale: Tensor, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return fake_gradient(logits, True, second_walk_dtype(logits))


def _compute_backward(scale: Tensor, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    gradient = empty_gradient(logits, True)
    if labels.numel() > 0:
        _call(logits, labels, ignore_index, False, None, None, gradient, float(scale))
    return gradient


implement("upsampled_cross_entropy_backward", "cpu", _compute_backward)
LIBRARY.impl("upsampled_cross_entropy_backward", torch.library.fallthrough_kernel, "Autograd")


def _walk_again(
    scale: Tensor,
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    _align_corners: bool,
    _record: bool,
) -> Tensor:
    return torch.ops.cscl_fast.upsampled_cross_entropy_backward(scale, logits, labels, ignore_index)


def _size(_logits: Tensor, labels: Tensor, *_: Any) -> tuple[int, int]:
    return labels.shape[1], labels.shape[2]


implement("upsampled_cross_entropy", "cpu", _compute)
_operator = LossOperator("upsampled_cross_entropy", _walk_again, _size)
register(_operator)


def upsampled_cross_entropy(
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16
    labels: Tensor,  # [B, H, W] int64
    ignore_index: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:  # scalars float32, int64
    """Mean over the labelled pixels of -log p_label, 0 where there is none; their number."""
    return _operator(logits, labels, ignore_index, align_corners)
