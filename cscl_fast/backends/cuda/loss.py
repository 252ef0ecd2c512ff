"""What the losses on a GPU share: room for their results, as the library takes it."""

from __future__ import annotations

import torch
from torch import Tensor

from cscl_fast.backends.cpu.loss import gradient_format, recorded_forward
from cscl_fast.backends.cpu.registration import DTYPE_CODES

from .call import Call

# (loss, count, gradient or 0, channels_last).
Loss = tuple[int, int, int, bool]
# (scale, gradient, type, channels_last).
OwnSizeGradient = tuple[int, int, int, bool]


def empty_results(
    call: Call, logits: Tensor, size: tuple[int, int], record: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], Loss]:
    """Loss, count and gradient (float32, [0] if it is not wanted), and the same as addresses."""
    loss = call.empty((), torch.float32)
    count = call.empty((), torch.int64)
    wanted = record and recorded_forward(logits, size)
    memory_format = gradient_format(logits)
    if wanted:
        gradient = call.empty(tuple(logits.shape), torch.float32, memory_format)
    else:
        gradient = call.empty((0,), torch.float32)
    addresses = (
        loss.data_ptr(),
        count.data_ptr(),
        gradient.data_ptr() if wanted else 0,
        memory_format == torch.channels_last,
    )
    return (loss, count, gradient), addresses


def zero_results(results: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What there is to say of no pixel."""
    loss, count, gradient = results
    return loss.zero_(), count.zero_(), gradient.zero_()


def empty_gradient(
    call: Call, logits: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, OwnSizeGradient]:
    """Room for the gradient at the logits' own size, and the same as addresses."""
    memory_format = gradient_format(logits)
    gradient = call.empty(tuple(logits.shape), dtype, memory_format)
    scale = call.read(call.keep(scale.float()))
    addresses = (
        scale.data_ptr(),
        gradient.data_ptr(),
        DTYPE_CODES[dtype],
        memory_format == torch.channels_last,
    )
    return gradient, addresses
