"""Category alignment L_div, Eq. 11, by csrc/cuda/symmetric_soft_divergence.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.cpu.class_centroid import labelled
from cscl_fast.backends.cpu.registration import implement

from .call import Call
from .class_centroid import empty_assignment, write_gradient


def _compute(
    source_features: Tensor,
    source_labels: Tensor,
    target_features: Tensor,
    target_soft_labels: Tensor,
    num_classes: int,
    normalise: str,
    eps: float,
) -> tuple[Tensor, ...]:
    call = Call(source_features)
    loss = call.empty((), torch.float32)
    results = [loss]
    sides, slopes = [], []
    for features, labels in (
        (source_features, source_labels),
        (target_features, target_soft_labels),
    ):
        slope = call.empty((num_classes, features.shape[1]), torch.float32)
        row, weight = empty_assignment(call, features)
        sides.append(labelled(call.read(features), call.read(labels), num_classes, row, weight))
        slopes.append(slope.data_ptr())
        results += [slope, row, weight]
    backends.cuda_library().symmetric_soft_divergence(
        *sides, normalise == "softmax", eps, loss.data_ptr(), *slopes, call.place()
    )
    return tuple(results)


def _compute_backward(
    gradient: Tensor,
    slope: Tensor,
    row: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return write_gradient(slope, None, gradient, row, weight, dtype, channels_last)


implement("symmetric_soft_divergence", "cuda", _compute)
implement("symmetric_soft_divergence_backward", "cuda", _compute_backward)
