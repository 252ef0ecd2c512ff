"""Soft pseudo-labels, Eq. 8-10, by csrc/cuda/soft_pseudo_label.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.cpu.registration import implement
from cscl_fast.backends.reference.soft_pseudo_label import result_memory_format

from .call import Call


def _compute(
    logits: Tensor,
    thresholds: Tensor,
    gamma: float,
    height: int,
    width: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    call = Call(logits)
    batch, classes = logits.shape[:2]
    memory_format = result_memory_format(logits)
    soft = call.empty((batch, classes, height, width), logits.dtype, memory_format)
    hard = call.empty((batch, height, width), torch.int64)
    if hard.numel() > 0:
        backends.cuda_library().soft_pseudo_labels(
            call.logits(logits, (height, width), align_corners),
            call.read(call.keep(thresholds.float().contiguous())).data_ptr(),
            gamma,
            soft.data_ptr(),
            memory_format == torch.channels_last,
            hard.data_ptr(),
            call.place(),
        )
    return soft, hard


implement("soft_pseudo_labels", "cuda", _compute)
