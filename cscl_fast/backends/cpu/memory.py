"""Room for the results of the CPU kernels, and what their gradients share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cscl_fast import backends

# Smaller results come from PyTorch's allocator, which keeps such pieces itself.
_LARGE = 4 << 20


def empty(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """A tensor of undefined values on the CPU, for a kernel that writes all of it.

    Large ones lie in memory that an earlier result has left (csrc/cpu/memory.h), so that nobody
    fills it with zeros first.

    Args:
        shape: [B, K, H, W] with channels-last, else any.
        memory_format: contiguous or channels-last.
    """
    elements = math.prod(shape)
    if elements * dtype.itemsize < _LARGE:
        return torch.empty(shape, dtype=dtype, memory_format=memory_format)
    memory = backends.library().ResultMemory(elements * dtype.itemsize)
    flat = torch.frombuffer(memory, dtype=dtype, count=elements)
    if memory_format == torch.channels_last:
        batch, channels, height, width = shape
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(shape)
