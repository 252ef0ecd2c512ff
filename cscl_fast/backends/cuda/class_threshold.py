"""Algorithm 1, streaming and exact, by csrc/cuda/class_threshold.cu."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.cpu.registration import implement

from .call import Call


def _update(
    histogram: Tensor, logits: Tensor, height: int, width: int, align_corners: bool
) -> None:
    torch.autograd.graph.increment_version(histogram)
    if logits.shape[0] * height * width > 0:
        call = Call(logits)
        backends.cuda_library().class_threshold_update(
            call.logits(logits, (height, width), align_corners), histogram.data_ptr(), call.place()
        )


def _of_histogram(histogram: Tensor, other: Tensor | None, portions: Sequence[float]) -> Tensor:
    call = Call(histogram)
    thresholds = call.empty((len(portions), histogram.shape[0]), torch.float32)
    backends.cuda_library().thresholds_of_histogram(
        histogram.data_ptr(),
        0 if other is None else other.data_ptr(),
        histogram.shape[0],
        list(portions),
        thresholds.data_ptr(),
        call.place(),
    )
    return thresholds


def _exact(logits: Tensor, portion: float, height: int, width: int, align_corners: bool) -> Tensor:
    call = Call(logits)
    thresholds = call.empty((logits.shape[1],), torch.float32)
    backends.cuda_library().class_thresholds(
        call.logits(logits, (height, width), align_corners),
        portion,
        thresholds.data_ptr(),
        call.place(),
    )
    return thresholds


implement("class_threshold_update", "cuda", _update)
implement("thresholds_of_histogram", "cuda", _of_histogram)
implement("class_thresholds", "cuda", _exact)
