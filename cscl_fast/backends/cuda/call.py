"""What a call of a CUDA kernel needs beside its arguments: a stream, results and scratch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.cpu.registration import DTYPE_CODES

# (cudaStream_t, device index, scratch): the last argument of every function of the library.
Place = tuple[int, int, Callable[[int], int]]
# (data, type, shape, strides, H, W, align_corners).
Logits = tuple[int, int, tuple[int, ...], tuple[int, ...], int, int, bool]


class Call:
    """One call: all memory it asks for lies on the device of the given tensor.

    The tensors that it hands out and that a kernel reads must live until the kernel is on the
    stream, and the caching allocator does not give their memory to another stream afterwards. So a
    call keeps what it has made.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.device = tensor.device
        self._kept: list[Tensor] = []

    def place(self) -> Place:
        """The current stream of the device, and where scratch comes from."""
        if self.device.type != "cuda":
            return 0, 0, self._scratch
        index = self.device.index
        return torch._C._cuda_getCurrentRawStream(index), index, self._scratch

    def _scratch(self, size: int) -> int:
        return self.keep(self.empty((size,), torch.uint8)).data_ptr()

    def empty(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """A tensor of undefined values."""
        if backends.EMULATES_CUDA and self.device.type == "cpu":
            return _guarded(shape, dtype, memory_format)
        return torch.empty(shape, dtype=dtype, device=self.device, memory_format=memory_format)

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor, which lives as long as this call now."""
        self._kept.append(tensor)
        return tensor

    def read(self, tensor: Tensor) -> Tensor:
        """An input as the kernel may read it."""
        if backends.EMULATES_CUDA and self.device.type == "cpu":
            return self.keep(_guarded_copy(tensor))
        return tensor

    def logits(
        self, logits: Tensor, size: tuple[int, int] | None = None, align_corners: bool = False
    ) -> Logits:
        """Logits [B, K, h, w], evaluated at (H, W); None: as they are."""
        height, width = logits.shape[2:] if size is None else size
        logits = self.read(logits)
        return (
            logits.data_ptr(),
            DTYPE_CODES[logits.dtype],
            tuple(logits.shape),
            logits.stride(),
            height,
            width,
            align_corners,
        )


def _guarded(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format
) -> Tensor:
    """In a test build: memory that ends at a page that nobody may touch."""
    elements = math.prod(shape)
    if elements == 0:
        return torch.empty(shape, dtype=dtype, memory_format=memory_format)
    memory = backends.cuda_library().GuardedMemory(elements * dtype.itemsize)
    flat = torch.frombuffer(memory, dtype=dtype, count=elements)
    if memory_format == torch.channels_last:
        batch, channels, height, width = shape
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(shape)


def _guarded_copy(tensor: Tensor) -> Tensor:
    """The same values and strides, in such memory."""
    if tensor.numel() == 0:
        return tensor
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    span = 1 + sum((length - 1) * stride for length, stride in steps)
    flat = _guarded((span,), tensor.dtype, torch.contiguous_format)
    flat.copy_(tensor.detach().as_strided((span,), (1,)))
    return flat.as_strided(tensor.shape, tensor.stride())
