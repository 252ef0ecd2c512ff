"""Class centroids of features, Eq. 12-13, by csrc/cuda/class_centroid.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.cpu.class_centroid import labelled
from cscl_fast.backends.cpu.registration import DTYPE_CODES, implement

from .call import Call


def empty_assignment(call: Call, features: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the class [B, h, w] int32 and the weight [B, h, w] float32 of every location."""
    batch, _, height, width = features.shape
    shape = (batch, height, width)
    return call.empty(shape, torch.int32), call.empty(shape, torch.float32)


def write_gradient(
    slope: Tensor,  # [K, C] float32, contiguous
    mass: Tensor | None,  # [K] float32
    scale: Tensor | None,  # scalar float32
    row: Tensor,  # [B, h, w] int32
    weight: Tensor,  # [B, h, w] float32
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:  # [B, C, h, w]
    """weight * slope[row] * scale / mass for every location; zeros where there is no class."""
    call = Call(slope)
    batch, height, width = row.shape
    classes, channels = slope.shape
    gradient = call.empty(
        (batch, channels, height, width),
        dtype,
        torch.channels_last if channels_last else torch.contiguous_format,
    )
    if gradient.numel() > 0:
        backends.cuda_library().centroid_gradient(
            call.read(slope).data_ptr(),
            0 if mass is None else call.read(mass).data_ptr(),
            0 if scale is None else call.read(scale).data_ptr(),
            call.read(row).data_ptr(),
            call.read(weight).data_ptr(),
            batch,
            classes,
            channels,
            height * width,
            gradient.data_ptr(),
            DTYPE_CODES[dtype],
            channels_last,
            call.place(),
        )
    return gradient


def _compute(
    features: Tensor, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Call(features)
    centroids = call.empty((num_classes, features.shape[1]), torch.float32)
    mass = call.empty((num_classes,), torch.float32)
    row, weight = empty_assignment(call, features)
    side = labelled(call.read(features), call.read(labels), num_classes, row, weight)
    backends.cuda_library().class_centroids(
        side, centroids.data_ptr(), mass.data_ptr(), call.place()
    )
    return centroids, mass, row, weight


def _compute_backward(
    gradient: Tensor,
    mass: Tensor,
    row: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return write_gradient(gradient.contiguous(), mass, None, row, weight, dtype, channels_last)


implement("class_centroids", "cuda", _compute)
implement("class_centroids_backward", "cuda", _compute_backward)
