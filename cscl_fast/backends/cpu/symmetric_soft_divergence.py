"""Category alignment L_div, Eq. 11, by the compiled kernel.

The operators are `torch.ops.cscl_fast.symmetric_soft_divergence`, computed by
csrc/cpu/symmetric_soft_divergence.cpp, and `symmetric_soft_divergence_backward`. Beside the loss
the forward operator returns, for either side, the gradient by a location of each class and the
class and weight of every location; the features are not kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cscl_fast import backends

from .class_centroid import (
    empty_assignment,
    empty_gradient,
    is_channels_last,
    labelled,
    write_gradient,
)
from .registration import LIBRARY, implement
from .second_derivative import refuse_second_derivative

LIBRARY.define(
    "symmetric_soft_divergence(Tensor source_features, Tensor source_labels,"
    " Tensor target_features, Tensor target_soft_labels, SymInt num_classes, str normalise,"
    " float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "symmetric_soft_divergence_backward(Tensor gradient, Tensor slope, Tensor row, Tensor weight,"
    " ScalarType dtype, bool channels_last) -> Tensor"
)


def _empty_results(
    source_features: Tensor, target_features: Tensor, num_classes: int
) -> tuple[Tensor, ...]:
    """The loss; of either side: slope [K, C], row and weight [B, h, w]."""
    options: dict[str, Any] = {"dtype": torch.float32, "device": source_features.device}
    results = [torch.empty((), **options)]
    for features in (source_features, target_features):
        slope = torch.empty((num_classes, features.shape[1]), **options)
        results += [slope, *empty_assignment(features)]
    return tuple(results)


@torch.library.register_fake("cscl_fast::symmetric_soft_divergence", lib=LIBRARY)
def _fake(
    source_features: Tensor,
    source_labels: Tensor,
    target_features: Tensor,
    target_soft_labels: Tensor,
    num_classes: int,
    normalise: str,
    eps: float,
) -> tuple[Tensor, ...]:
    return _empty_results(source_features, target_features, num_classes)


@torch.library.register_fake("cscl_fast::symmetric_soft_divergence_backward", lib=LIBRARY)
def _fake_backward(
    gradient: Tensor,
    slope: Tensor,
    row: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return empty_gradient(row, slope.shape[1], dtype, channels_last)


def _compute(
    source_features: Tensor,
    source_labels: Tensor,
    target_features: Tensor,
    target_soft_labels: Tensor,
    num_classes: int,
    normalise: str,
    eps: float,
) -> tuple[Tensor, ...]:
    results = _empty_results(source_features, target_features, num_classes)
    loss, source_slope, source_row, source_weight, target_slope, target_row, target_weight = results
    source_good, target_good = backends.library().symmetric_soft_divergence(
        labelled(source_features, source_labels, num_classes, source_row, source_weight),
        labelled(target_features, target_soft_labels, num_classes, target_row, target_weight),
        normalise == "softmax",
        eps,
        loss.data_ptr(),
        source_slope.data_ptr(),
        target_slope.data_ptr(),
        torch.get_num_threads(),
    )
    if not (source_good and target_good):
        from cscl_fast.ops import checks  # the operators import this module

        for labels, features, name, features_name in (
            (source_labels, source_features, "source_labels", "source_features"),
            (target_soft_labels, target_features, "target_soft_labels", "target_features"),
        ):
            checks.check_labels_of_features(
                labels.detach(), features, num_classes, name, features_name
            )
    return results


def _compute_backward(
    gradient: Tensor,
    slope: Tensor,
    row: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return write_gradient(slope, None, gradient, row, weight, dtype, channels_last)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    # The loss depends on the features, whose own second derivative is refused by it.
    ctx.save_for_backward(*output)
    ctx.sides = [(f.dtype, is_channels_last(f)) for f in (inputs[0], inputs[2])]


def _backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    loss, *sides = ctx.saved_tensors
    found: list[Tensor | None] = [None, None]
    for i in range(2):
        if gradient is not None and ctx.needs_input_grad[2 * i]:
            side = torch.ops.cscl_fast.symmetric_soft_divergence_backward(
                gradient, *sides[3 * i : 3 * i + 3], *ctx.sides[i]
            )
            found[i] = refuse_second_derivative(side, loss, "symmetric_soft_divergence")
    return found[0], None, found[1], None, None, None, None


implement("symmetric_soft_divergence", "cpu", _compute)
implement("symmetric_soft_divergence_backward", "cpu", _compute_backward)
LIBRARY.impl("symmetric_soft_divergence_backward", torch.library.fallthrough_kernel, "Autograd")
torch.library.register_autograd(
    "cscl_fast::symmetric_soft_divergence", _backward, setup_context=_setup_context, lib=LIBRARY
)


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
    loss: Tensor = torch.ops.cscl_fast.symmetric_soft_divergence(
        source_features,
        source_labels,
        target_features,
        target_soft_labels,
        num_classes,
        normalise,
        eps,
    )[0]
    return loss
