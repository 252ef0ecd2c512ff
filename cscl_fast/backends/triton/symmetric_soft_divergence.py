"""Category alignment L_div, Eq. 11: `torch.ops.cscl_fast_triton.symmetric_soft_divergence`.

The centroids of both sides stay in float64. Beside the loss the forward operator returns, for
either side, the gradient by a location of each class and the class and weight of every location;
the features are not kept.
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

from .class_centroid import find_centroids, write_gradient
from .divergence_kernels import divergence_kernel, divergence_mean_kernel
from .launch import launch, on_device_of, operator, padded_classes

_CHUNK = 1024


def _results(
    source_features: Tensor, target_features: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and the slopes [K, C] of either side."""
    options: dict[str, Any] = {"dtype": torch.float32, "device": source_features.device}
    shape = (num_classes, source_features.shape[1])
    loss = torch.empty((), **options)
    return loss, torch.empty(shape, **options), torch.empty(shape, **options)


def _fake(
    source_features: Tensor,
    source_labels: Tensor,
    target_features: Tensor,
    target_soft_labels: Tensor,
    num_classes: int,
    normalise: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss; of either side: slope [K, C], row and weight [B, h, w]."""
    loss, source_slope, target_slope = _results(source_features, target_features, num_classes)
    source = empty_assignment(source_features)
    target = empty_assignment(target_features)
    return loss, source_slope, *source, target_slope, *target


def _compute(
    source_features: Tensor,
    source_labels: Tensor,
    target_features: Tensor,
    target_soft_labels: Tensor,
    num_classes: int,
    normalise: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_classes = int(num_classes)
    source, source_mass, *source_assignment = find_centroids(
        source_features, source_labels, num_classes, torch.float64
    )
    target, target_mass, *target_assignment = find_centroids(
        target_features, target_soft_labels, num_classes, torch.float64
    )
    loss, source_slope, target_slope = _results(source_features, target_features, num_classes)
    divergences = torch.empty((num_classes,), dtype=torch.float64, device=loss.device)
    launch(
        divergence_kernel,
        (num_classes,),
        source,
        target,
        source_mass,
        target_mass,
        divergences,
        source_slope,
        target_slope,
        source.shape[1],
        eps,
        CLASSES=num_classes,
        PADDED=padded_classes(num_classes),
        SOFTMAX=normalise == "softmax",
        CHUNK=_CHUNK,
    )
    launch(
        divergence_mean_kernel,
        (1,),
        divergences,
        source_mass,
        target_mass,
        loss,
        CLASSES=num_classes,
        PADDED=padded_classes(num_classes),
    )
    source_row, source_weight = source_assignment
    target_row, target_weight = target_assignment
    return (
        loss,
        source_slope,
        source_row,
        source_weight,
        target_slope,
        target_row,
        target_weight,
    )


def _fake_backward(
    gradient: Tensor,
    slope: Tensor,
    row: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return empty_gradient(row, slope.shape[1], dtype, channels_last)


def _compute_backward(
    gradient: Tensor,
    slope: Tensor,
    row: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return write_gradient(slope, None, gradient, row, weight, dtype, channels_last)


_operator = operator("symmetric_soft_divergence", _fake)(_compute)
_backward = operator("symmetric_soft_divergence_backward", _fake_backward)(_compute_backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    # The loss depends on the features, whose own second derivative is refused by it.
    ctx.save_for_backward(*output)
    ctx.sides = [(f.dtype, is_channels_last(f)) for f in (inputs[0], inputs[2])]


def _differentiate(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    loss, *sides = ctx.saved_tensors
    found: list[Tensor | None] = [None, None]
    for i in range(2):
        if gradient is not None and ctx.needs_input_grad[2 * i]:
            with torch.no_grad():
                side = _backward(gradient, *sides[3 * i : 3 * i + 3], *ctx.sides[i])
            found[i] = refuse_second_derivative(side, loss, "symmetric_soft_divergence", "triton")
    return found[0], None, found[1], None, None, None, None


_operator.register_autograd(_differentiate, setup_context=_setup_context)


def symmetric_soft_divergence(
    source_features: Tensor,  # [B, C, h, w] float32 | float16 | bfloat16
    source_labels: Tensor,  # [B, h, w] int64 or [B, K, h, w] any of these
    target_features: Tensor,  # [B', C, h', w'] any of these
    target_soft_labels: Tensor,  # [B', K, h', w'] any of these or [B', h', w'] int64
    num_classes: int,
    normalise: str,
    eps: float,
) -> Tensor:  # scalar float32
    """Mean over the classes present on both sides of the symmetric divergence; 0 without one."""
    with on_device_of(source_features):
        loss: Tensor = _operator(
            source_features,
            source_labels.detach(),
            target_features,
            target_soft_labels.detach(),
            num_classes,
            normalise,
            eps,
        )[0]
    return loss
