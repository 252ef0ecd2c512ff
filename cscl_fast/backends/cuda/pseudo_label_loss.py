"""Self-training loss, the second term of Eq. 7, by csrc/cuda/pseudo_label_loss.cu."""

from __future__ import annotations

from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.cpu.loss import second_walk_dtype
from cscl_fast.backends.cpu.registration import implement

from .call import Call
from .loss import empty_gradient, empty_results, zero_results


def _label_source(call: Call, label_logits: Tensor | None) -> tuple[int, tuple[int, ...]]:
    if label_logits is None:
        return 0, (0, 0, 0, 0)
    label_logits = call.read(label_logits)
    return label_logits.data_ptr(), label_logits.stride()


def _compute(
    logits: Tensor,
    label_logits: Tensor | None,
    thresholds: Tensor,
    gamma: float,
    height: int,
    width: int,
    align_corners: bool,
    record: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(logits)
    size = (height, width)
    results, addresses = empty_results(call, logits, size, record)
    if logits.shape[0] * height * width == 0:
        return zero_results(results)
    backends.cuda_library().pseudo_label_loss(
        call.logits(logits, size, align_corners),
        *_label_source(call, label_logits),
        call.read(call.keep(thresholds.float().contiguous())).data_ptr(),
        gamma,
        addresses,
        call.place(),
    )
    return results


def _compute_backward(
    scale: Tensor, logits: Tensor, label_logits: Tensor | None, thresholds: Tensor, gamma: float
) -> Tensor:
    call = Call(logits)
    gradient, addresses = empty_gradient(call, logits, scale, second_walk_dtype(logits))
    if logits.numel() > 0:
        backends.cuda_library().pseudo_label_loss_gradient(
            call.logits(logits),
            *_label_source(call, label_logits),
            call.read(call.keep(thresholds.float().contiguous())).data_ptr(),
            gamma,
            addresses,
            call.place(),
        )
    return gradient


implement("pseudo_label_loss", "cuda", _compute)
implement("pseudo_label_loss_backward", "cuda", _compute_backward)
