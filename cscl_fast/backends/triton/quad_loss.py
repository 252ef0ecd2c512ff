"""Both losses on upsampled logits, with their gradient by the logits, in one walk over quads.

A quad is what lies between four source locations. Its pixels read the same four logit columns, so
a program that owns it loads them once for a whole row of pixels, and sums the gradient of each
corner in registers: the walk that finds the loss finds the gradient, and no pixel is solved twice.
`corner_gradient_kernel` then adds the (up to) four quads around every location. No atomics: all
sums have a fixed order. Nothing of the size of the pixels but their labels is read or stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import load_penalties
from .pixel_loss import loss_of
from .upsample import first_reader, index_of, interpolate, line_position, load_location


@triton.jit
def load_edge(
    image_ptr,
    top,  # [N], offset of the upper location
    bottom,  # [N], of the lower one
    near_y,
    far_y,
    stride_k,
    rows,
    inside,
    CLASSES: tl.constexpr,
    RESAMPLE_Y: tl.constexpr,
    REAL: tl.constexpr,
):
    """Logits [K, N] between two locations, one above the other."""
    values = load_location(image_ptr, top, stride_k, rows, inside, CLASSES, REAL)
    if RESAMPLE_Y:
        below = load_location(image_ptr, bottom, stride_k, rows, inside, CLASSES, REAL)
        values = interpolate(near_y.to(REAL), values, far_y.to(REAL), below)
    return values


@triton.jit
def quad_loss_kernel(
    logits_ptr,  # [B, K, h, w]
    teacher_ptr,  # [B, K, h, w], read if TEACHER
    thresholds_ptr,  # [K] float32, read if PSEUDO
    labels_ptr,  # [B, H, W] int64, read unless PSEUDO
    corners_ptr,  # [groups, 4, B, K, h, w] float32, written if RECORD
    losses_ptr,  # [programs] float32
    counts_ptr,  # [programs] int32
    gamma,
    ignore,
    groups,  # over how many programs the pixel rows of a quad are dealt out
    batch,
    height,
    width,
    out_height,
    out_width,
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
    ALIGN: tl.constexpr,
    RESAMPLE_Y: tl.constexpr,
    RESAMPLE_X: tl.constexpr,
    WIDE: tl.constexpr,
    PSEUDO: tl.constexpr,
    TEACHER: tl.constexpr,
    PRECISE: tl.constexpr,
    RECORD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    TEACHER_REAL: tl.constexpr = tl.float64 if PRECISE else tl.float32
    REAL: tl.constexpr = tl.float64 if (PRECISE and not TEACHER) else tl.float32
    rows = index_of(tl.arange(0, PADDED)[:, None], WIDE)
    h = index_of(height, WIDE)
    w = index_of(width, WIDE)
    out_h = index_of(out_height, WIDE)
    out_w = index_of(out_width, WIDE)

    quads = h * w
    blocks = tl.cdiv(height * width, BLOCK)
    program = tl.program_id(0)
    block = program % blocks
    group = (program // blocks) % groups
    image = (program // (blocks * groups)).to(tl.int64)
    quad = index_of(block, WIDE) * BLOCK + tl.arange(0, BLOCK)
    inside = quad < quads
    i = quad // w
    j = quad - i * w
    y_first = first_reader(i, h, out_h, ALIGN, RESAMPLE_Y) + group
    y_end = first_reader(i + 1, h, out_h, ALIGN, RESAMPLE_Y)
    x_first = first_reader(j, w, out_w, ALIGN, RESAMPLE_X)
    x_end = first_reader(j + 1, w, out_w, ALIGN, RESAMPLE_X)
    y_trips = tl.max(tl.where(inside, (y_end - y_first + groups - 1) // groups, 0), axis=0)
    x_trips = tl.max(tl.where(inside, x_end - x_first, 0), axis=0)
    below = tl.minimum(i + 1, h - 1)
    right = tl.minimum(j + 1, w - 1)

    image_ptr = logits_ptr + image * stride_b
    teacher_image_ptr = teacher_ptr + image * teacher_stride_b
    penalties = 0.0
    if PSEUDO:
        penalties = load_penalties(thresholds_ptr, rows, CLASSES, TEACHER_REAL)
    loss_sum = tl.zeros([BLOCK], dtype=tl.float32)
    count = tl.zeros([BLOCK], dtype=tl.int32)
    if RECORD:
        top_left = tl.zeros([PADDED, BLOCK], dtype=tl.float32)
        if RESAMPLE_X:
            top_right = tl.zeros([PADDED, BLOCK], dtype=tl.float32)
        if RESAMPLE_Y:
            bottom_left = tl.zeros([PADDED, BLOCK], dtype=tl.float32)
            if RESAMPLE_X:
                bottom_right = tl.zeros([PADDED, BLOCK], dtype=tl.float32)

    for row in range(0, y_trips):
        y = y_first + row * groups
        in_row = inside & (y < y_end)
        near_y = tl.full([BLOCK], 1.0, dtype=TEACHER_REAL)
        far_y = tl.zeros([BLOCK], dtype=TEACHER_REAL)
        if RESAMPLE_Y:
            _, _, near_y, far_y = line_position(y, h, out_h, ALIGN, TEACHER_REAL)
        left_values = load_edge(
            image_ptr,
            i * stride_y + j * stride_x,
            below * stride_y + j * stride_x,
            near_y,
            far_y,
            stride_k,
            rows,
            in_row,
            CLASSES,
            RESAMPLE_Y,
            REAL,
        )
        if RESAMPLE_X:
            right_values = load_edge(
                image_ptr,
                i * stride_y + right * stride_x,
                below * stride_y + right * stride_x,
                near_y,
                far_y,
                stride_k,
                rows,
                in_row,
                CLASSES,
                RESAMPLE_Y,
                REAL,
            )
        if TEACHER:
            teacher_left = load_edge(
                teacher_image_ptr,
                i * teacher_stride_y + j * teacher_stride_x,
                below * teacher_stride_y + j * teacher_stride_x,
                near_y,
                far_y,
                teacher_stride_k,
                rows,
                in_row,
                CLASSES,
                RESAMPLE_Y,
                TEACHER_REAL,
            )
            if RESAMPLE_X:
                teacher_right = load_edge(
                    teacher_image_ptr,
                    i * teacher_stride_y + right * teacher_stride_x,
                    below * teacher_stride_y + right * teacher_stride_x,
                    near_y,
                    far_y,
                    teacher_stride_k,
                    rows,
                    in_row,
                    CLASSES,
                    RESAMPLE_Y,
                    TEACHER_REAL,
                )
        for column in range(0, x_trips):
            x = x_first + column
            active = in_row & (x < x_end)
            values = left_values
            near_x = tl.full([BLOCK], 1.0, dtype=TEACHER_REAL)
            if RESAMPLE_X:
                _, _, near_x, far_x = line_position(x, w, out_w, ALIGN, TEACHER_REAL)
                values = interpolate(near_x.to(REAL), left_values, far_x.to(REAL), right_values)
            teacher_values = values
            if TEACHER:
                teacher_values = teacher_left
                if RESAMPLE_X:
                    teacher_values = interpolate(near_x, teacher_left, far_x, teacher_right)
            loss, gradient, counted = loss_of(
                values,
                teacher_values,
                labels_ptr,
                (image * out_h + y) * out_w + x,
                active,
                penalties,
                gamma,
                ignore,
                rows,
                CLASSES,
                PSEUDO,
            )
            loss_sum += loss
            count += counted.to(tl.int32)
            if RECORD:
                top = gradient * near_y.to(tl.float32)[None, :]
                top_left += top * near_x.to(tl.float32)[None, :]
                if RESAMPLE_X:
                    top_right += top * far_x.to(tl.float32)[None, :]
                if RESAMPLE_Y:
                    bottom = gradient * far_y.to(tl.float32)[None, :]
                    bottom_left += bottom * near_x.to(tl.float32)[None, :]
                    if RESAMPLE_X:
                        bottom_right += bottom * far_x.to(tl.float32)[None, :]

    tl.store(losses_ptr + program, tl.sum(loss_sum, axis=0))
    tl.store(counts_ptr + program, tl.sum(count, axis=0))
    if RECORD:
        size = tl.cast(batch, tl.int64) * CLASSES * quads
        target = corners_ptr + (group * (4 * size) + image * CLASSES * quads)
        target += rows * quads + quad[None, :]
        mask = (rows < CLASSES) & inside[None, :]
        tl.store(target, top_left, mask=mask)
        if RESAMPLE_X:
            tl.store(target + size, top_right, mask=mask)
        if RESAMPLE_Y:
            tl.store(target + 2 * size, bottom_left, mask=mask)
            if RESAMPLE_X:
                tl.store(target + 3 * size, bottom_right, mask=mask)


@triton.jit
def corner_gradient_kernel(
    corners_ptr,  # [groups, 4, B, K, h, w] float32
    count_ptr,  # scalar int64
    gradient_ptr,  # [B, K, h, w] float32
    groups,
    batch,
    height,
    width,
    stride_b,
    stride_k,
    stride_y,
    stride_x,
    CLASSES: tl.constexpr,
    RESAMPLE_Y: tl.constexpr,
    RESAMPLE_X: tl.constexpr,
    BLOCK: tl.constexpr,
):
    quads = tl.cast(height, tl.int64) * width
    size = batch * CLASSES * quads
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    column = index // quads
    quad = index - column * quads
    i = quad // width
    j = quad - i * width
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for group in range(0, groups):
        corner = corners_ptr + group * (4 * size)
        total += tl.load(corner + index, mask=inside, other=0.0)
        if RESAMPLE_X:
            total += tl.load(corner + size + index - 1, mask=inside & (j > 0), other=0.0)
        if RESAMPLE_Y:
            above = inside & (i > 0)
            total += tl.load(corner + 2 * size + index - width, mask=above, other=0.0)
            if RESAMPLE_X:
                above = above & (j > 0)
                total += tl.load(corner + 3 * size + index - width - 1, mask=above, other=0.0)
    count = tl.maximum(tl.load(count_ptr), 1).to(tl.float32)
    image = column // CLASSES
    k = column - image * CLASSES
    offset = image * stride_b + k * stride_k + i * stride_y + j * stride_x
    tl.store(gradient_ptr + offset, total / count, mask=inside)
