"""Rewards of the transferability critic, R = R^s + R^a.

The operator is `torch.ops.cscl_fast_triton.transfer_reward`.

A program takes a block of locations and keeps the logits of both sides. What float32 leaves
undecided is decided once more in float64, by blocks that hold such a location.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import (
    INTERPRETED,
    blocks_of,
    flat,
    launch,
    on_device_of,
    operator,
    padded_classes,
    pixel_block,
    wide,
    wide_positions,
)
from .numerics import label_probability_of
from .upsample import block_of_pixels, load_pixels

_IGNORED = tl.constexpr(255)


@triton.jit
def gains_precisely(gated, plain, label, rows, CLASSES: tl.constexpr):
    """[N] bool: the gate makes the label's class strictly likelier, in float64."""
    gated_log, _, _, _ = label_probability_of(gated.to(tl.float64), label, rows, CLASSES)
    plain_log, _, _, _ = label_probability_of(plain.to(tl.float64), label, rows, CLASSES)
    return gated_log > plain_log


@triton.jit
def transfer_reward_kernel(
    gated_ptr,  # [B, K, h, w]
    plain_ptr,  # [B, K, h, w]
    labels_ptr,  # [B, h, w] int64
    reward_ptr,  # [B, 1, h, w] float32
    valid_ptr,  # [B, 1, h, w] bool
    height,
    width,
    stride_b,
    stride_k,
    stride_y,
    stride_x,
    plain_stride_b,
    plain_stride_k,
    plain_stride_y,
    plain_stride_x,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.arange(0, PADDED)[:, None]
    image, pixel, inside, pixels = block_of_pixels(height, width, BLOCK, WIDE)
    place = image * pixels + pixel
    label = tl.load(labels_ptr + place, mask=inside, other=-1)
    valid = (label >= 0) & (label < CLASSES) & (label != _IGNORED)
    label = tl.where(valid, label, 0).to(tl.int32)
    gated = load_pixels(
        gated_ptr + image * stride_b,
        pixel,
        inside,
        height,
        width,
        height,
        width,
        stride_k,
        stride_y,
        stride_x,
        rows,
        CLASSES,
        False,
        False,
        False,
        FLAT,
        WIDE,
        tl.float32,
    )
    plain = load_pixels(
        plain_ptr + image * plain_stride_b,
        pixel,
        inside,
        height,
        width,
        height,
        width,
        plain_stride_k,
        plain_stride_y,
        plain_stride_x,
        rows,
        CLASSES,
        False,
        False,
        False,
        FLAT,
        WIDE,
        tl.float32,
    )
    gated_log, gated_below, winner, finite = label_probability_of(gated, label, rows, CLASSES)
    plain_log, plain_below, _, plain_finite = label_probability_of(plain, label, rows, CLASSES)
    gain = gated_log - plain_log
    likelier = gain > 0
    # The error of each log-probability is that of its sum, and of z_label - m, which may be large.
    doubt = 1e-5 - 5e-7 * (gated_below + plain_below)
    undecided = valid & finite & plain_finite & ~(tl.abs(gain) >= doubt)
    if tl.max(undecided.to(tl.int32), axis=0) > 0:
        likelier = tl.where(
            undecided, gains_precisely(gated, plain, label, rows, CLASSES), likelier
        )
    earns = valid & finite
    reward = (earns & (winner == label)).to(tl.float32)
    reward += (earns & plain_finite & likelier).to(tl.float32)
    tl.store(reward_ptr + place, reward, mask=inside)
    tl.store(valid_ptr + place, valid, mask=inside)


def reward_block(classes: int) -> dict[str, int]:
    """How many locations a program takes, and its warps: a thread for each, which holds two."""
    block = pixel_block(classes)
    if INTERPRETED or block["BLOCK"] < 64:
        return block
    return {"BLOCK": 64, "num_warps": 2}


def _fake(gated_logits: Tensor, plain_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """reward float32 and valid bool, both [B, 1, h, w]."""
    batch, _, height, width = gated_logits.shape
    shape = (batch, 1, height, width)
    device = gated_logits.device
    return (
        torch.empty(shape, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.bool, device=device),
    )


def _compute(gated_logits: Tensor, plain_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    reward, valid = _fake(gated_logits, plain_logits, labels)
    batch, classes, height, width = gated_logits.shape
    if reward.numel() == 0:
        return reward, valid
    size = (height, width)
    block = reward_block(int(classes))
    launch(
        transfer_reward_kernel,
        (batch * blocks_of(height * width, block["BLOCK"]),),
        gated_logits,
        plain_logits,
        labels.contiguous(),
        reward,
        valid,
        height,
        width,
        *gated_logits.stride(),
        *plain_logits.stride(),
        CLASSES=int(classes),
        PADDED=padded_classes(int(classes)),
        FLAT=flat(gated_logits) and flat(plain_logits),
        WIDE=wide(gated_logits, plain_logits) or wide_positions(size, size),
        **block,
    )
    return reward, valid


_operator = operator("transfer_reward", _fake)(_compute)


def transfer_reward(
    gated_logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16
    plain_logits: Tensor,  # [B, K, h, w]
    labels: Tensor,  # [B, h, w] int64; 255: ignored
) -> tuple[Tensor, Tensor]:  # reward float32, valid bool; both [B, 1, h, w]
    """Rewards, and where they count; a label out of range is not valid."""
    with on_device_of(gated_logits):
        reward, valid = _operator(gated_logits.detach(), plain_logits.detach(), labels)
    return reward, valid
