"""Class centroids of features, Eq. 12-13, by the compiled kernels.

The operators are `torch.ops.cscl_fast.class_centroids` and `class_centroids_backward`, computed by
csrc/cpu/class_centroid.cpp. Beside the answer the forward operator returns what the backward one
needs of the labels: class (K: none) and weight of every location.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.reference.soft_pseudo_label import result_memory_format

from . import memory
from .registration import DTYPE_CODES, LIBRARY, implement
from .second_derivative import refuse_second_derivative

LIBRARY.define(
    "class_centroids(Tensor features, Tensor labels, SymInt num_classes)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "class_centroids_backward(Tensor gradient, Tensor mass, Tensor row, Tensor weight,"
    " ScalarType dtype, bool channels_last) -> Tensor"
)

# As csrc/bindings.cpp unpacks it.
Labelled = tuple[Any, ...]


def takes(labels: Any) -> bool:
    """Whether the kernels read these labels; float64 ones are left to the reference."""
    return getattr(labels, "dtype", None) != torch.float64


def is_channels_last(features: Tensor) -> bool:
    """Whether the gradient of these features is channels-last."""
    return result_memory_format(features) == torch.channels_last


def empty_assignment(features: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the class [B, h, w] int32 and the weight [B, h, w] float32 of every location."""
    batch, _, height, width = features.shape
    row = torch.empty((batch, height, width), dtype=torch.int32, device=features.device)
    return row, torch.empty_like(row, dtype=torch.float32)


def labelled(
    features: Tensor, labels: Tensor, num_classes: int, row: Tensor, weight: Tensor
) -> Labelled:
    """Features and their labels as the kernels take them."""
    strides = labels.stride()
    hard = labels.ndim == 3
    return (
        features.data_ptr(),
        DTYPE_CODES[features.dtype],
        tuple(features.shape),
        features.stride(),
        labels.data_ptr(),
        -1 if hard else DTYPE_CODES[labels.dtype],
        num_classes,
        (strides[0], 0, strides[1], strides[2]) if hard else strides,
        row.data_ptr(),
        weight.data_ptr(),
    )


def empty_gradient(row: Tensor, channels: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """Room for a gradient of undefined values [B, C, h, w]; for fake tensors as well."""
    batch, height, width = row.shape
    shape = (batch, channels, height, width)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=row.device, memory_format=memory_format)


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
    batch, height, width = row.shape
    classes, channels = slope.shape
    gradient = memory.empty(
        (batch, channels, height, width),
        dtype,
        torch.channels_last if channels_last else torch.contiguous_format,
    )
    backends.library().centroid_gradient(
        slope.data_ptr(),
        0 if mass is None else mass.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        row.data_ptr(),
        weight.data_ptr(),
        batch,
        classes,
        channels,
        height * width,
        gradient.data_ptr(),
        DTYPE_CODES[dtype],
        channels_last,
        torch.get_num_threads(),
    )
    return gradient


@torch.library.register_fake("cscl_fast::class_centroids", lib=LIBRARY)
def _fake(
    features: Tensor, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centroids [K, C], masses [K], and the assignment."""
    options: dict[str, Any] = {"dtype": torch.float32, "device": features.device}
    centroids = torch.empty((num_classes, features.shape[1]), **options)
    return centroids, torch.empty((num_classes,), **options), *empty_assignment(features)


@torch.library.register_fake("cscl_fast::class_centroids_backward", lib=LIBRARY)
def _fake_backward(
    gradient: Tensor,
    mass: Tensor,
    row: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return empty_gradient(row, gradient.shape[1], dtype, channels_last)


def _compute(
    features: Tensor, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    centroids = torch.empty((num_classes, features.shape[1]), dtype=torch.float32)
    mass = torch.empty((num_classes,), dtype=torch.float32)
    row, weight = empty_assignment(features)
    side = labelled(features, labels, num_classes, row, weight)
    if not backends.library().class_centroids(
        side, centroids.data_ptr(), mass.data_ptr(), torch.get_num_threads()
    ):
        from cscl_fast.ops import checks  # the operators import this module

        checks.check_labels_of_features(labels.detach(), features, num_classes)
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


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features = inputs[0]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.dtype, ctx.channels_last = features.dtype, is_channels_last(features)


def _backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None]:
    if gradient is None:
        return None, None, None
    found = torch.ops.cscl_fast.class_centroids_backward(
        gradient, *ctx.saved_tensors, ctx.dtype, ctx.channels_last
    )
    return refuse_second_derivative(found, gradient, "class_centroids"), None, None


implement("class_centroids", "cpu", _compute)
implement("class_centroids_backward", "cpu", _compute_backward)
LIBRARY.impl("class_centroids_backward", torch.library.fallthrough_kernel, "Autograd")
torch.library.register_autograd(
    "cscl_fast::class_centroids", _backward, setup_context=_setup_context, lib=LIBRARY
)


def class_centroids(
    features: Tensor,  # [B, C, h, w] float32 | float16 | bfloat16
    labels: Tensor,  # [B, h, w] int64 or [B, K, h, w] float32 | float16 | bfloat16
    num_classes: int,
) -> tuple[Tensor, Tensor]:  # [K, C], [K] float32
    """Mean feature of each class and the mass behind it; zeros where there is none."""
    centroids, mass, _, _ = torch.ops.cscl_fast.class_centroids(features, labels, num_classes)
    return centroids, mass
