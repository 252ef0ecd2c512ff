"""Cross-entropy on bilinearly upsampled logits, the first term of Eq. 7.

`torch.ops.cscl_fast_triton.upsampled_cross_entropy` walks over the quads of the logits
(quad_loss.py) or, at their own size, over the pixels (pixel_loss.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import loss
from .launch import on_device_of, operator


def _size(_logits: Tensor, labels: Tensor, *_: Any) -> tuple[int, int]:
    return labels.shape[1], labels.shape[2]


def _fake(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, record: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return loss.fake(logits, _size(logits, labels), record)


def _compute(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, record: bool
) -> tuple[Tensor, Tensor, Tensor]:
    terms = loss.Terms(logits, labels=labels, ignore_index=ignore_index)
    return loss.forward(logits, _size(logits, labels), align_corners, terms, record)


def _fake_backward(scale: Tensor, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return loss.empty_gradient(logits, logits.dtype)


def _compute_backward(scale: Tensor, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return loss.backward(
        scale, logits, loss.Terms(logits, labels=labels, ignore_index=ignore_index)
    )


_operator = operator("upsampled_cross_entropy", _fake)(_compute)
_backward = operator("upsampled_cross_entropy_backward", _fake_backward)(_compute_backward)


def _walk_again(scale: Tensor, logits: Tensor, labels: Tensor, ignore_index: int, *_: Any) -> Any:
    return _backward(scale, logits, labels, ignore_index)


loss.register_gradient("upsampled_cross_entropy", _operator, _walk_again, _size)


def upsampled_cross_entropy(
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16
    labels: Tensor,  # [B, H, W] int64
    ignore_index: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:  # scalars float32, int64
    """Mean over the labelled pixels of -log p_label, 0 where there is none; their number."""
    record = torch.is_grad_enabled() and logits.requires_grad
    with on_device_of(logits):
        mean, count, _ = _operator(logits, labels, ignore_index, align_corners, record)
    return mean, count
