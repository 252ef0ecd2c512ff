"""What every reference operator shares: its arithmetic types and its walk over the images."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# A walk holds about this many upsampled values at once (128 MiB of float32); one image at least.
ELEMENTS_AT_ONCE = 1 << 25


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 answers in float64; everything else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The type that sums over pixels are carried in: a float32 sum of millions drifts."""
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def autocast_off(tensor: Tensor) -> AbstractContextManager[object]:
    """Context in which autocast leaves the arithmetic alone, on this tensor's device."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def finite_pixels(values: Tensor) -> Tensor:
    """Which pixels of [B, K, H, W] have no NaN and no infinite value, [B, 1, H, W]."""
    # NaN and +inf show in the largest value, -inf in the smallest.
    return values.amax(dim=1, keepdim=True).isfinite() & values.amin(dim=1, keepdim=True).isfinite()


def image_groups(batch: int, elements_per_image: int) -> list[slice]:
    """Slices of the batch that are small enough to be held upsampled; at least one, maybe empty.

    A compiled graph takes the batch whole: the compiler fuses the walk itself, and unrolling it
    would tie the graph to one batch size.
    """
    if torch.compiler.is_compiling():
        return [slice(None)]
    images = max(1, ELEMENTS_AT_ONCE // max(1, elements_per_image))
    return [slice(first, first + images) for first in range(0, max(1, batch), images)]
