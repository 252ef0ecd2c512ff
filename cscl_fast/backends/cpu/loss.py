"""What both losses share on the way back: the gradient's place, scale and type."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cscl_fast.backends.reference.soft_pseudo_label import result_memory_format

from . import memory
from .second_derivative import refuse_second_derivative

# The gradient lies as the logits do.
gradient_format = result_memory_format


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


def scaled_gradient(
    upstream: Tensor,  # scalar: gradient by the loss
    logits: Tensor,  # [B, K, h, w]
    count: Tensor,  # scalar int64
    recorded: Tensor | None,  # [B, K, h, w] float32, found by the forward walk
    walk_again: Callable[[Tensor], Tensor],  # scale → the sum's gradient times it
    operator: str,
) -> Tensor:
    """Gradient by the logits, in their dtype."""
    with torch.no_grad():
        if recorded is not None:
            gradient = recorded * upstream
        else:
            gradient = walk_again(upstream / count.clamp(min=1))
        gradient = gradient.to(logits.dtype)
    return refuse_second_derivative(gradient, logits, operator)
