"""Self-training loss of the target domain, the second term of Eq. 7.

`torch.ops.cscl_fast_triton.pseudo_label_loss` solves the soft pseudo-label of every pixel on the
fly, in the walk of `upsampled_cross_entropy`; it is never stored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import loss
from .launch import on_device_of, operator


def _size(*inputs: Any) -> tuple[int, int]:
    return inputs[4], inputs[5]


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
    return loss.fake(logits, (height, width), record)


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
    terms = loss.Terms(logits, thresholds=thresholds, gamma=gamma, label_logits=label_logits)
    return loss.forward(logits, (height, width), align_corners, terms, record)


def _fake_backward(
    scale: Tensor, logits: Tensor, label_logits: Tensor | None, thresholds: Tensor, gamma: float
) -> Tensor:
    return loss.empty_gradient(logits, logits.dtype)


def _compute_backward(
    scale: Tensor, logits: Tensor, label_logits: Tensor | None, thresholds: Tensor, gamma: float
) -> Tensor:
    terms = loss.Terms(logits, thresholds=thresholds, gamma=gamma, label_logits=label_logits)
    return loss.backward(scale, logits, terms)


_operator = operator("pseudo_label_loss", _fake)(_compute)
_backward = operator("pseudo_label_loss_backward", _fake_backward)(_compute_backward)


def _walk_again(
    scale: Tensor,
    logits: Tensor,
    label_logits: Tensor | None,
    thresholds: Tensor,
    gamma: float,
    *_: Any,
) -> Any:
    return _backward(scale, logits, label_logits, thresholds, gamma)


loss.register_gradient("pseudo_label_loss", _operator, _walk_again, _size)


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
    height, width = logits.shape[2:] if size is None else size
    record = torch.is_grad_enabled() and logits.requires_grad
    with on_device_of(logits):
        mean, count, _ = _operator(
            logits, label_logits, thresholds.detach(), gamma, height, width, align_corners, record
        )
    return mean, count
