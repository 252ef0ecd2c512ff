"""Self-training loss of the target domain, the second term of Eq. 7, by the compiled kernel.

`torch.ops.cscl_fast.pseudo_label_loss` is computed by csrc/cpu/pseudo_label_loss.cpp. The gradient
comes from the same walk over the pixels, or, at the logits' own size, from a second one, as in
`upsampled_cross_entropy`.
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
    "pseudo_label_loss(Tensor logits, Tensor? label_logits, Tensor thresholds, float gamma,"
    " SymInt height, SymInt width, bool align_corners, bool record) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "pseudo_label_loss_backward(Tensor scale, Tensor logits, Tensor? label_logits,"
    " Tensor thresholds, float gamma) -> Tensor"
)


def _call(
    logits: Tensor,
    label_logits: Tensor | None,
    thresholds: Tensor,
    gamma: float,
    size: tuple[int, int],
    align_corners: bool,
    loss: Tensor | None,
    count: Tensor | None,
    gradient: Tensor | None,
    scale: float | None,
) -> None:
    thresholds = thresholds.contiguous()
    backends.library().pseudo_label_loss(
        logits.data_ptr(),
        DTYPE_CODES[logits.dtype],
        tuple(logits.shape),
        logits.stride(),
        *size,
        align_corners,
        0 if label_logits is None else label_logits.data_ptr(),
        logits.stride() if label_logits is None else label_logits.stride(),
        thresholds.data_ptr(),
        gamma,
        0 if loss is None else loss.data_ptr(),
        0 if count is None else count.data_ptr(),
        0 if gradient is None else gradient.data_ptr(),
        gradient_format(logits) == torch.channels_last,
        scale is None,
        scale or 0.0,
        torch.get_num_threads(),
    )


@torch.library.register_fake("cscl_fast::pseudo_label_loss", lib=LIBRARY)
def _fake(
    logits: Tensor,
    label_logits: Tensor | None,
    thresholds: Tensor,
    gamma: float,
    height: int,
    width: int,
    align_corners: bool,
    record: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = record and recorded_forward(logits, (height, width))
    return (
        logits.new_empty((), dtype=torch.float32),
        logits.new_empty((), dtype=torch.int64),
        fake_gradient(logits, wanted),
    )


def _compute(
    logits: Tensor,
    label_logits: Tensor | None,
    thresholds: Tensor,
    gamma: float,
    height: int,
    width: int,
    align_corners: bool,
    record: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from cscl_fast.ops import checks  # the operators import this module

    thresholds = checks.check_thresholds(thresholds, logits)
    loss = torch.empty((), dtype=torch.float32)
    count = torch.empty((), dtype=torch.int64)
    wanted = record and recorded_forward(logits, (height, width))
    gradient = empty_gradient(logits, wanted)
    if logits.shape[0] * height * width == 0:
        return loss.zero_(), count.zero_(), gradient.zero_()
    place = gradient if wanted else None
    size = (height, width)
    _call(logits, label_logits, thresholds, gamma, size, align_corners, loss, count, place, None)
    return loss, count, gradient


@torch.library.register_fake("cscl_fast::pseudo_label_loss_backward", lib=LIBRARY)
def _fake_backward(
    scale: Tensor, logits: Tensor, label_logits: Tensor | None, thresholds: Tensor, gamma: float
) -> Tensor:
    return fake_gradient(logits, True, second_walk_dtype(logits))


def _compute_backward(
    scale: Tensor, logits: Tensor, label_logits: Tensor | None, thresholds: Tensor, gamma: float
) -> Tensor:
    gradient = empty_gradient(logits, True)
    if logits.numel() > 0:
        size = (logits.shape[2], logits.shape[3])
        _call(
            logits, label_logits, thresholds, gamma, size, False, None, None, gradient, float(scale)
        )
    return gradient


implement("pseudo_label_loss_backward", "cpu", _compute_backward)
LIBRARY.impl("pseudo_label_loss_backward", torch.library.fallthrough_kernel, "Autograd")


def _walk_again(
    scale: Tensor,
    logits: Tensor,
    label_logits: Tensor | None,
    thresholds: Tensor,
    gamma: float,
    *_: Any,
) -> Tensor:
    return torch.ops.cscl_fast.pseudo_label_loss_backward(
        scale, logits, label_logits, thresholds, gamma
    )


def _size(*inputs: Any) -> tuple[int, int]:
    return inputs[4], inputs[5]


implement("pseudo_label_loss", "cpu", _compute)
_operator = LossOperator("pseudo_label_loss", _walk_again, _size)
register(_operator)


def pseudo_label_loss(
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16
    thresholds: Tensor,  # [K] float32, in (0, 1]
    gamma: float,
    label_logits: Tensor | None,  # [B, K, h, w] float32 | float16 | bfloat16
    size: tuple[int, int] | None,  # (H, W)
    align_corners: bool,
) -> tuple[Tensor, Tensor]:  # scalars float32, int64
    """Mean over the kept pixels of -Σ_k ŷ_k log p_k, 0 where nothing is kept; their number."""
    if label_logits is not None:
        label_logits = label_logits.detach()
        if label_logits.dtype != logits.dtype:
            logits, label_logits = logits.float(), label_logits.float()
    height, width = logits.shape[2:] if size is None else size
    return _operator(logits, label_logits, thresholds, gamma, height, width, align_corners)
