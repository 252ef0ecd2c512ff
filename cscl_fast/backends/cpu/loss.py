"""What both losses share: where their gradient lies, when it is found, its scale and its type."""

from __future__ import annotations

import torch
from torch import Tensor

from cscl_fast.backends.reference.soft_pseudo_label import result_memory_format

from . import memory

# The gradient lies as the logits do.
gradient_format = result_memory_format

# At the logits' own size a gradient of up to this many elements (4 MiB) is found in the forward
# walk. A larger one is written in a walk of its own: before the pixels are counted it would have
# to be gone over twice.
_SMALL = 1 << 20


def recorded_forward(logits: Tensor, size: tuple[int, int]) -> bool:
    """Whether the forward walk finds the gradient, for an evaluation at `size` (H, W)."""
    return size != (logits.shape[2], logits.shape[3]) or logits.numel() <= _SMALL


def fake_gradient(logits: Tensor, wanted: bool) -> Tensor:
    """What `empty_gradient` makes, for tracing."""
    if not wanted:
        return logits.new_empty((0,), dtype=torch.float32)
    return torch.empty(
        logits.shape,
        dtype=torch.float32,
        device=logits.device,
        memory_format=gradient_format(logits),
    )


def empty_gradient(logits: Tensor, wanted: bool) -> Tensor:
    """Room for the gradient by the logits [B, K, h, w] float32; [0] if it is not wanted.

    float32 for half types, too: a mean's gradient is below what float16 holds until the caller's
    scale has multiplied it.
    """
    if not wanted:
        return torch.empty((0,), dtype=torch.float32)
    return memory.empty(tuple(logits.shape), torch.float32, gradient_format(logits))


def in_dtype_of(gradient: Tensor, logits: Tensor) -> Tensor:
    """The gradient in the logits' dtype."""
    return gradient if gradient.dtype == logits.dtype else gradient.to(logits.dtype)
