"""Class centroids of features, Eq. 12-13: `torch.ops.cscl_fast_triton.class_centroids`.

Beside the answer the forward operator returns what the backward one needs of the labels: class (K:
none) and weight of every location. The features are not kept. The kernels are in
centroid_kernels.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cscl_fast.backends.cpu.class_centroid import (
    empty_assignment,
    empty_gradient,
    is_channels_last,
)
from cscl_fast.backends.cpu.second_derivative import refuse_second_derivative

from .centroid_kernels import (
    assign_kernel,
    centroid_gradient_kernel,
    centroid_kernel,
    class_sum_kernel,
)
from .launch import (
    INTERPRETED,
    blocks_of,
    flat,
    kernel_result,
    launch,
    on_device_of,
    operator,
    padded_classes,
    pixel_block,
    power_of_two,
    wide,
    wide_positions,
)

# A part of the locations has at least so many of them, and there are at most so many parts.
_PART_LOCATIONS = 512
_MOST_PARTS = 64
# Locations and channels of a tile of the gradient, and channels of a centroid.
GRADIENT_TILE = (32, 64)
_CENTROID_CHANNELS = 256


def sum_tile(classes: int, channels: int) -> dict[str, int]:
    """LOCATIONS and CHANNELS of a tile of `class_sum_kernel`."""
    if INTERPRETED:
        return {"LOCATIONS": 1024, "CHANNELS": min(power_of_two(channels), 256)}
    padded = padded_classes(classes)
    most = 64 if padded <= 32 else 32 if padded <= 64 else 16
    return {"LOCATIONS": 32, "CHANNELS": most}


def _assign(labels: Tensor, num_classes: int, row: Tensor, weight: Tensor) -> None:
    batch, height, width = row.shape
    hard = labels.ndim == 3
    strides = labels.stride()
    block = pixel_block(num_classes)
    launch(
        assign_kernel,
        (batch * blocks_of(height * width, block["BLOCK"]),),
        labels,
        row,
        weight,
        height,
        width,
        *((strides[0], 0, strides[1], strides[2]) if hard else strides),
        CLASSES=num_classes,
        PADDED=padded_classes(num_classes),
        FLAT=flat(labels),
        WIDE=wide(labels) or wide_positions((height, width), (height, width)),
        HARD=hard,
        **block,
    )


def find_centroids(
    features: Tensor, labels: Tensor, num_classes: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centroids [K, C] and masses [K] in `dtype`, and the assignment."""
    num_classes = int(num_classes)
    options: dict[str, Any] = {"device": features.device}
    channels = features.shape[1]
    row, weight = empty_assignment(features)
    locations = row.numel()
    if locations == 0:
        centroids = torch.zeros((num_classes, channels), dtype=dtype, **options)
        return centroids, torch.zeros((num_classes,), dtype=dtype, **options), row, weight
    centroids = torch.empty((num_classes, channels), dtype=dtype, **options)
    mass = torch.empty((num_classes,), dtype=dtype, **options)
    _assign(labels, num_classes, row, weight)
    tile = sum_tile(num_classes, channels)
    parts = min(_MOST_PARTS, blocks_of(locations, _PART_LOCATIONS))
    part_size = blocks_of(blocks_of(locations, parts), tile["LOCATIONS"]) * tile["LOCATIONS"]
    sums = torch.empty((parts, num_classes, channels), dtype=torch.float32, **options)
    masses = torch.empty((parts, num_classes), dtype=torch.float32, **options)
    launch(
        class_sum_kernel,
        (parts, blocks_of(channels, tile["CHANNELS"])),
        features,
        row,
        weight,
        sums,
        masses,
        locations,
        part_size,
        channels,
        *features.shape[2:],
        *features.stride(),
        CLASSES=num_classes,
        PADDED=padded_classes(num_classes),
        **tile,
        num_warps=4,
    )
    launch(
        centroid_kernel,
        (num_classes, blocks_of(channels, _CENTROID_CHANNELS)),
        sums,
        masses,
        centroids,
        mass,
        parts,
        channels,
        CLASSES=num_classes,
        CHANNELS=_CENTROID_CHANNELS,
    )
    return centroids, mass, row, weight


def write_gradient(
    slope: Tensor,  # [K, C] float32
    mass: Tensor | None,  # [K] float32
    scale: Tensor | None,  # scalar float32
    row: Tensor,  # [B, h, w] int32
    weight: Tensor,  # [B, h, w] float32
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:  # [B, C, h, w]
    """weight * slope[row] * scale / mass for every location; zeros where there is no class."""
    classes, channels = slope.shape
    gradient = empty_gradient(row, channels, dtype, channels_last)
    if gradient.numel() == 0:
        return gradient
    slope = slope.contiguous()
    target = kernel_result(gradient)
    locations, (tile, wide_tile) = row.numel(), GRADIENT_TILE
    if INTERPRETED:
        tile = 1024
    launch(
        centroid_gradient_kernel,
        (blocks_of(locations, tile), blocks_of(channels, wide_tile)),
        slope,
        slope if mass is None else mass,
        slope if scale is None else scale,
        row,
        weight,
        target,
        locations,
        channels,
        *row.shape[1:],
        *target.stride(),
        CLASSES=int(classes),
        MASS=mass is not None,
        SCALE=scale is not None,
        LOCATIONS=tile,
        CHANNELS=wide_tile,
        num_warps=4,
    )
    return target.to(dtype)


def _fake(
    features: Tensor, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centroids [K, C], masses [K], and the assignment."""
    options: dict[str, Any] = {"dtype": torch.float32, "device": features.device}
    centroids = torch.empty((num_classes, features.shape[1]), **options)
    return centroids, torch.empty((num_classes,), **options), *empty_assignment(features)


def _compute(
    features: Tensor, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return find_centroids(features, labels, num_classes, torch.float32)


def _fake_backward(
    gradient: Tensor,
    mass: Tensor,
    row: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return empty_gradient(row, gradient.shape[1], dtype, channels_last)


def _compute_backward(
    gradient: Tensor,
    mass: Tensor,
    row: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return write_gradient(gradient, mass, None, row, weight, dtype, channels_last)


_operator = operator("class_centroids", _fake)(_compute)
_backward = operator("class_centroids_backward", _fake_backward)(_compute_backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features = inputs[0]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.dtype, ctx.channels_last = features.dtype, is_channels_last(features)


def _differentiate(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None]:
    if gradient is None:
        return None, None, None
    with torch.no_grad():
        found = _backward(gradient, *ctx.saved_tensors, ctx.dtype, ctx.channels_last)
    return refuse_second_derivative(found, gradient, "class_centroids", "triton"), None, None


_operator.register_autograd(_differentiate, setup_context=_setup_context)


def class_centroids(
    features: Tensor,  # [B, C, h, w] float32 | float16 | bfloat16
    labels: Tensor,  # [B, h, w] int64 or [B, K, h, w] float32 | float16 | bfloat16
    num_classes: int,
) -> tuple[Tensor, Tensor]:  # [K, C], [K] float32
    """Mean feature of each class and the mass behind it; zeros where there is none."""
    with on_device_of(features):
        centroids, mass, _, _ = _operator(features, labels.detach(), num_classes)
    return centroids, mass
