"""Soft pseudo-labels, Eq. 8-10: `torch.ops.cscl_fast_triton.soft_pseudo_labels`.

A program takes a block of pixels of one image and keeps all K logits of each in registers, where
it solves them; H x W logits exist nowhere. Bytes that must move for a float32 pixel at the logits'
own size: 4 K read, 4 K + 8 written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cscl_fast.backends.reference.soft_pseudo_label import result_memory_format

from .launch import (
    blocks_of,
    kernel_result,
    launch,
    on_device_of,
    operator,
    pixel_stride,
    tuned,
    tuned_block,
)
from .numerics import REJECTED, load_penalties, solve_soft_pseudo_label
from .upsample import block_of_pixels, load_pixels
from .walk import Walk

# Below this γ an error in float32 log-probabilities, divided by γ, would decide about pixels.
PRECISE_BELOW = 0.2
# 1/γ must be a float32 number; so small a γ gives one-hot labels in any case.
SMALLEST_GAMMA = 1e-37


def precise(gamma: float) -> bool:
    """Whether pixels are solved in float64."""
    return gamma < PRECISE_BELOW


@tuned
@triton.jit
def soft_pseudo_label_kernel(
    logits_ptr,  # [B, K, h, w]
    thresholds_ptr,  # [K] float32
    soft_ptr,  # [B, K, H, W] in the logits' dtype, its pixels evenly spaced
    hard_ptr,  # [B, H, W] int64
    gamma,
    height,
    width,
    out_height,
    out_width,
    stride_b,
    stride_k,
    stride_y,
    stride_x,
    soft_stride_b,
    soft_stride_k,
    soft_stride_x,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    ALIGN: tl.constexpr,
    RESAMPLE_Y: tl.constexpr,
    RESAMPLE_X: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    REAL: tl.constexpr = tl.float64 if PRECISE else tl.float32
    rows = tl.arange(0, PADDED)[:, None]
    image, pixel, inside, pixels = block_of_pixels(out_height, out_width, BLOCK, WIDE)
    values = load_pixels(
        logits_ptr + image * stride_b,
        pixel,
        inside,
        height,
        width,
        out_height,
        out_width,
        stride_k,
        stride_y,
        stride_x,
        rows,
        CLASSES,
        ALIGN,
        RESAMPLE_Y,
        RESAMPLE_X,
        FLAT,
        WIDE,
        REAL,
    )
    penalties = load_penalties(thresholds_ptr, rows, CLASSES, REAL)
    soft, winner, kept = solve_soft_pseudo_label(values, penalties, gamma, rows, CLASSES)
    soft = tl.where(kept[None, :], soft, 0.0)
    target = soft_ptr + image * soft_stride_b
    target += rows.to(pixel.dtype) * soft_stride_k + (pixel * soft_stride_x)[None, :]
    mask = (rows < CLASSES) & inside[None, :]
    tl.store(target, soft.to(tl.float32).to(soft_ptr.dtype.element_ty), mask=mask)
    hard = tl.where(kept, winner, REJECTED).to(tl.int64)
    tl.store(hard_ptr + image * pixels + pixel, hard, mask=inside)


def _empty(logits: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    batch, classes = logits.shape[:2]
    soft = torch.empty(
        (batch, classes, height, width),
        dtype=logits.dtype,
        device=logits.device,
        memory_format=result_memory_format(logits),
    )
    hard = torch.empty((batch, height, width), dtype=torch.int64, device=logits.device)
    return soft, hard


def _fake(
    logits: Tensor,
    thresholds: Tensor,
    gamma: float,
    height: int,
    width: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    """soft [B, K, H, W], like the logits, and hard [B, H, W] int64."""
    return _empty(logits, height, width)


def _compute(
    logits: Tensor,
    thresholds: Tensor,
    gamma: float,
    height: int,
    width: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    soft, hard = _empty(logits, height, width)
    if hard.numel() == 0:
        return soft, hard
    soft = kernel_result(soft)
    walk = Walk(logits, (height, width), align_corners)
    batch = logits.shape[0]
    launch(
        soft_pseudo_label_kernel,
        lambda meta: (batch * blocks_of(height * width, meta["BLOCK"]),),
        logits,
        thresholds.contiguous(),
        soft,
        hard,
        max(gamma, SMALLEST_GAMMA),
        *walk.sizes(),
        soft.stride(0),
        soft.stride(1),
        pixel_stride(soft),
        **walk.options(soft),
        PRECISE=precise(gamma),
        **tuned_block(logits.shape[1]),
    )
    return soft.to(logits.dtype), hard


_operator = operator("soft_pseudo_labels", _fake)(_compute)


def soft_pseudo_labels(
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16
    thresholds: Tensor,  # [K] float32, in (0, 1]
    gamma: float,
    height: int,  # H
    width: int,  # W
    align_corners: bool,
) -> tuple[Tensor, Tensor]:  # soft [B, K, H, W] as logits, hard [B, H, W] int64
    """The optimum of Eq. 8 for every pixel; zeros and 255 where it is rejected."""
    with on_device_of(logits):
        soft, hard = _operator(
            logits.detach(), thresholds.detach(), gamma, height, width, align_corners
        )
    return soft, hard
