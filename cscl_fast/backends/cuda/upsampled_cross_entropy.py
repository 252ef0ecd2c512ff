"""Cross-entropy on bilinearly upsampled logits, by csrc/cuda/upsampled_cross_entropy.cu."""

from __future__ import annotations

from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.cpu.loss import second_walk_dtype
from cscl_fast.backends.cpu.registration import implement

from .call import Call
from .loss import empty_gradient, empty_results, zero_results


def _compute(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, record: bool
) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(logits)
    size = (labels.shape[1], labels.shape[2])
    results, addresses = empty_results(call, logits, size, record)
    if labels.numel() == 0:
        return zero_results(results)
    backends.cuda_library().upsampled_cross_entropy(
        call.logits(logits, size, align_corners),
        call.read(call.keep(labels.contiguous())).data_ptr(),
        ignore_index,
        addresses,
        call.place(),
    )
    return results


def _compute_backward(scale: Tensor, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    call = Call(logits)
    gradient, addresses = empty_gradient(call, logits, scale, second_walk_dtype(logits))
    if labels.numel() > 0:
        backends.cuda_library().upsampled_cross_entropy_gradient(
            call.logits(logits),
            call.read(call.keep(labels.contiguous())).data_ptr(),
            ignore_index,
            addresses,
            call.place(),
        )
    return gradient


implement("upsampled_cross_entropy", "cuda", _compute)
implement("upsampled_cross_entropy_backward", "cuda", _compute_backward)
