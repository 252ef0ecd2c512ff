"""Soft pseudo-labels, Eq. 8-10, by the compiled kernels.

The operator is `torch.ops.cscl_fast.soft_pseudo_labels`, computed by
csrc/cpu/soft_pseudo_label.cpp, and on a GPU as backends/cuda/soft_pseudo_label.py says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.reference.soft_pseudo_label import result_memory_format

from . import memory
from .registration import DTYPE_CODES, LIBRARY, implement

LIBRARY.define(
    "soft_pseudo_labels(Tensor logits, Tensor thresholds, float gamma, SymInt height, SymInt width,"
    " bool align_corners) -> (Tensor, Tensor)"
)


@torch.library.register_fake("cscl_fast::soft_pseudo_labels", lib=LIBRARY)
def _fake(
    logits: Tensor,
    thresholds: Tensor,
    gamma: float,
    height: int,
    width: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    """soft [B, K, H, W], like the logits, and hard [B, H, W] int64."""
    batch, classes = logits.shape[:2]
    soft = torch.empty(
        (batch, classes, height, width),
        dtype=logits.dtype,
        device=logits.device,
        memory_format=result_memory_format(logits),
    )
    hard = torch.empty((batch, height, width), dtype=torch.int64, device=logits.device)
    return soft, hard


def _compute(
    logits: Tensor,
    thresholds: Tensor,
    gamma: float,
    height: int,
    width: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    from cscl_fast.ops import checks  # the operators import this module

    thresholds = checks.check_thresholds(thresholds, logits).contiguous()
    batch, classes = logits.shape[:2]
    memory_format = result_memory_format(logits)
    soft = memory.empty((batch, classes, height, width), logits.dtype, memory_format)
    hard = memory.empty((batch, height, width), torch.int64)
    if hard.numel() == 0:
        return soft, hard
    backends.library().soft_pseudo_labels(
        logits.data_ptr(),
        DTYPE_CODES[logits.dtype],
        tuple(logits.shape),
        logits.stride(),
        height,
        width,
        align_corners,
        thresholds.data_ptr(),
        gamma,
        soft.data_ptr(),
        memory_format == torch.channels_last,
        hard.data_ptr(),
        torch.get_num_threads(),
    )
    return soft, hard


implement("soft_pseudo_labels", "cpu", _compute)
# Pseudo-labels are constants: no gradient flows, so there is nothing for autograd to record.
LIBRARY.impl("soft_pseudo_labels", torch.library.fallthrough_kernel, "Autograd")


def soft_pseudo_labels(
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16
    thresholds: Tensor,  # [K] float32, in (0, 1]
    gamma: float,
    height: int,  # H
    width: int,  # W
    align_corners: bool,
) -> tuple[Tensor, Tensor]:  # soft [B, K, H, W] as logits, hard [B, H, W] int64
    """The optimum of Eq. 8 for every pixel; zeros and 255 where it is rejected."""
    soft, hard = torch.ops.cscl_fast.soft_pseudo_labels(
        logits, thresholds, gamma, height, width, align_corners
    )
    return soft, hard
