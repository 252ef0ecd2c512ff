"""Both losses at the logits' own size: a program takes a block of pixels and keeps their logits.

Loss and number of every block are stored and added by `mean_kernel`, in float64 and in a fixed
order. The gradient, as large as the logits, is written by a walk of its own, once the number of
pixels that count is known. Bytes that must move for a float32 pixel: 4 K read for the loss, 4 K
read and 4 K written for the gradient, and a label of 8 for the cross-entropy in either.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import tuned
from .numerics import (
    cross_entropy_of,
    load_penalties,
    pseudo_label_loss_of,
    solve_soft_pseudo_label,
)
from .upsample import block_of_pixels, index_of, load_pixels


@triton.jit
def loss_of(
    values,  # [K, N], float64 if PRECISE and there is no teacher
    teacher_values,  # [K, N]
    labels_ptr,  # [B, H, W] int64
    place,  # [N], number of the pixel in labels
    active,  # [N] bool
    penalties,
    gamma,
    ignore,
    rows,
    CLASSES: tl.constexpr,
    PSEUDO: tl.constexpr,
):
    """Loss [N], its gradient [K, N] and which pixels count, for either loss."""
    if PSEUDO:
        soft, _, kept = solve_soft_pseudo_label(teacher_values, penalties, gamma, rows, CLASSES)
        return pseudo_label_loss_of(
            values.to(tl.float32), soft.to(tl.float32), kept & active, rows, CLASSES
        )
    else:
        label = tl.load(labels_ptr + place, mask=active, other=-1)
        return cross_entropy_of(values, label, ignore, rows, CLASSES)


@triton.jit
def own_size_loss_of(
    logits_ptr,
    teacher_ptr,
    thresholds_ptr,
    labels_ptr,
    gamma,
    ignore,
    height,
    width,
    stride_b,
    stride_k,
    stride_y,
    stride_x,
    teacher_stride_b,
    teacher_stride_k,
    teacher_stride_y,
    teacher_stride_x,
    rows,
    CLASSES: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    PSEUDO: tl.constexpr,
    TEACHER: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`loss_of` for a program's block of pixels, and which block that is."""
    REAL: tl.constexpr = tl.float64 if PRECISE else tl.float32
    image, pixel, inside, pixels = block_of_pixels(height, width, BLOCK, WIDE)
    values = load_pixels(
        logits_ptr + image * stride_b,
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
    teacher_values = values.to(REAL)
    penalties = 0.0
    if PSEUDO:
        penalties = load_penalties(thresholds_ptr, rows, CLASSES, REAL)
        if TEACHER:
            teacher_values = load_pixels(
                teacher_ptr + image * teacher_stride_b,
                pixel,
                inside,
                height,
                width,
                height,
                width,
                teacher_stride_k,
                teacher_stride_y,
                teacher_stride_x,
                rows,
                CLASSES,
                False,
                False,
                False,
                FLAT,
                WIDE,
                REAL,
            )
    place = image * pixels + pixel
    loss, gradient, counted = loss_of(
        values,
        teacher_values,
        labels_ptr,
        place,
        inside,
        penalties,
        gamma,
        ignore,
        rows,
        CLASSES,
        PSEUDO,
    )
    return loss, gradient, counted, image, pixel, inside


@triton.jit
def pixel_loss_kernel(
    logits_ptr,  # [B, K, h, w]
    teacher_ptr,  # [B, K, h, w], read if TEACHER
    thresholds_ptr,  # [K] float32, read if PSEUDO
    labels_ptr,  # [B, h, w] int64, read unless PSEUDO
    losses_ptr,  # [programs] float32, sum of each block
    counts_ptr,  # [programs] int32, number of its pixels that count
    gamma,
    ignore,
    height,
    width,
    stride_b,
    stride_k,
    stride_y,
    stride_x,
    teacher_stride_b,
    teacher_stride_k,
    teacher_stride_y,
    teacher_stride_x,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    PSEUDO: tl.constexpr,
    TEACHER: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.arange(0, PADDED)[:, None]
    loss, _, counted, _, _, _ = own_size_loss_of(
        logits_ptr,
        teacher_ptr,
        thresholds_ptr,
        labels_ptr,
        gamma,
        ignore,
        height,
        width,
        stride_b,
        stride_k,
        stride_y,
        stride_x,
        teacher_stride_b,
        teacher_stride_k,
        teacher_stride_y,
        teacher_stride_x,
        rows,
        CLASSES,
        FLAT,
        WIDE,
        PSEUDO,
        TEACHER,
        PRECISE,
        BLOCK,
    )
    tl.store(losses_ptr + tl.program_id(0), tl.sum(loss, axis=0))
    tl.store(counts_ptr + tl.program_id(0), tl.sum(counted.to(tl.int32), axis=0))


@tuned
@triton.jit
def pixel_gradient_kernel(
    logits_ptr,  # [B, K, h, w]
    teacher_ptr,  # [B, K, h, w], read if TEACHER
    thresholds_ptr,  # [K] float32, read if PSEUDO
    labels_ptr,  # [B, h, w] int64, read unless PSEUDO
    scale_ptr,  # scalar float32
    gradient_ptr,  # [B, K, h, w] in the logits' dtype
    gamma,
    ignore,
    height,
    width,
    stride_b,
    stride_k,
    stride_y,
    stride_x,
    teacher_stride_b,
    teacher_stride_k,
    teacher_stride_y,
    teacher_stride_x,
    gradient_stride_b,
    gradient_stride_k,
    gradient_stride_x,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    PSEUDO: tl.constexpr,
    TEACHER: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.arange(0, PADDED)[:, None]
    _, gradient, _, image, pixel, inside = own_size_loss_of(
        logits_ptr,
        teacher_ptr,
        thresholds_ptr,
        labels_ptr,
        gamma,
        ignore,
        height,
        width,
        stride_b,
        stride_k,
        stride_y,
        stride_x,
        teacher_stride_b,
        teacher_stride_k,
        teacher_stride_y,
        teacher_stride_x,
        rows,
        CLASSES,
        FLAT,
        WIDE,
        PSEUDO,
        TEACHER,
        PRECISE,
        BLOCK,
    )
    target = gradient_ptr + image * gradient_stride_b
    target += index_of(rows, WIDE) * gradient_stride_k + (pixel * gradient_stride_x)[None, :]
    gradient = (gradient * tl.load(scale_ptr)).to(gradient_ptr.dtype.element_ty)
    tl.store(target, gradient, mask=(rows < CLASSES) & inside[None, :])


@triton.jit
def mean_kernel(
    losses_ptr,  # [parts] float32
    counts_ptr,  # [parts] int32
    loss_ptr,  # scalar float32
    count_ptr,  # scalar int64
    parts,
    BLOCK: tl.constexpr,
):
    """One program: the sums are float64 and in a fixed order."""
    total = tl.zeros([BLOCK], dtype=tl.float64)
    count = tl.zeros([BLOCK], dtype=tl.int64)
    for first in range(0, parts, BLOCK):
        part = first + tl.arange(0, BLOCK)
        total += tl.load(losses_ptr + part, mask=part < parts, other=0.0).to(tl.float64)
        count += tl.load(counts_ptr + part, mask=part < parts, other=0).to(tl.int64)
    counted = tl.sum(count, axis=0)
    tl.store(count_ptr, counted)
    mean = tl.sum(total, axis=0) / tl.maximum(counted, 1).to(tl.float64)
    tl.store(loss_ptr, mean.to(tl.float32))
