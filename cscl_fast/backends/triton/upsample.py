"""Bilinear resampling in PyTorch's convention, inside a kernel.

Source coordinates are exact integer fractions, so that each weight is rounded once. The largest
logit of every source location is taken off before it is weighed: no softmax sees it, and float32
then rounds differences between classes, not a common offset. An axis whose size does not change is
left alone; on one that does, the neighbour is read at weight 0, too, as in PyTorch.

Offsets within an image are 64-bit where `WIDE`; the image's own is part of the pointer.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import mask_classes


@triton.jit
def index_of(value, WIDE: tl.constexpr):
    """A size or a number of a pixel as the integer that offsets are computed in."""
    return tl.cast(value, tl.int64 if WIDE else tl.int32)


@triton.jit
def line_position(line, source, output, ALIGN: tl.constexpr, REAL: tl.constexpr):
    """The source lines that an output line reads, and the weight of each: two lines, two weights.

    The last source line stands for the one after it.
    """
    if ALIGN:
        numerator = line * (source - 1)
        denominator = tl.maximum(output - 1, 1)
    else:
        numerator = tl.maximum((2 * line + 1) * source - output, 0)
        denominator = 2 * output
    first = numerator // denominator
    rest = numerator - first * denominator
    last = first >= source - 1
    rest = tl.where(last, 0, rest)
    second = tl.where(last, first, first + 1)
    if REAL == tl.float64:  # noqa: SIM300
        far = rest.to(REAL) / denominator.to(REAL)
        near = (denominator - rest).to(REAL) / denominator.to(REAL)
    else:
        far = tl.div_rn(rest.to(REAL), denominator.to(REAL))
        near = 1.0 - far
    return first, second, near, far


@triton.jit
def first_reader(line, source, output, ALIGN: tl.constexpr, RESAMPLE: tl.constexpr):
    """The first output line whose nearer source line, going up, is `line` or a later one."""
    if RESAMPLE:
        if ALIGN:
            divisor = tl.maximum(source - 1, 1)
            reader = (line * tl.maximum(output - 1, 1) + divisor - 1) // divisor
        else:
            reader = ((2 * line + 1) * output + source - 1) // (2 * source)
        reader = tl.where(line <= 0, 0, tl.minimum(reader, output))
        return tl.where(line >= source, output, reader)
    else:
        return line


@triton.jit
def load_classes(
    image_ptr, offset, stride_k, rows, inside, CLASSES: tl.constexpr, REAL: tl.constexpr
):
    """The logits [K, N] of the locations at `offset` [N]; 0 where not `inside`."""
    mask = (rows < CLASSES) & inside[None, :]
    values = tl.load(image_ptr + (rows * stride_k + offset[None, :]), mask=mask, other=0.0)
    return mask_classes(values.to(REAL), rows, CLASSES)


@triton.jit
def load_location(
    image_ptr, offset, stride_k, rows, inside, CLASSES: tl.constexpr, REAL: tl.constexpr
):
    """The same with the largest logit of each location taken off."""
    values = load_classes(image_ptr, offset, stride_k, rows, inside, CLASSES, REAL)
    return values - tl.max(values, axis=0)[None, :]


@triton.jit
def interpolate(near, near_values, far, far_values):
    """Written literally, so that what is not finite is seen at weight 0 as well."""
    return near[None, :] * near_values + far[None, :] * far_values


@triton.jit
def load_pixels(
    image_ptr,
    pixel,  # [N], number of the pixel in the image
    inside,  # [N] bool
    height,
    width,
    out_height,
    out_width,
    stride_k,
    stride_y,
    stride_x,
    rows,
    CLASSES: tl.constexpr,
    ALIGN: tl.constexpr,
    RESAMPLE_Y: tl.constexpr,
    RESAMPLE_X: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    REAL: tl.constexpr,
):
    """Logits [K, N] of pixels at the size of evaluation, up to a constant for each pixel."""
    rows = index_of(rows, WIDE)
    if FLAT:
        values = load_classes(image_ptr, pixel * stride_x, stride_k, rows, inside, CLASSES, REAL)
    else:
        out_width = index_of(out_width, WIDE)
        y = pixel // out_width
        x = pixel - y * out_width
        if RESAMPLE_X:
            left, right, near_x, far_x = line_position(
                x, index_of(width, WIDE), out_width, ALIGN, REAL
            )
        else:
            left = x
        if RESAMPLE_Y:
            top, bottom, near_y, far_y = line_position(
                y, index_of(height, WIDE), index_of(out_height, WIDE), ALIGN, REAL
            )
        else:
            top = y
        if RESAMPLE_X or RESAMPLE_Y:
            offset = top * stride_y + left * stride_x
            values = load_location(image_ptr, offset, stride_k, rows, inside, CLASSES, REAL)
            if RESAMPLE_X:
                offset = top * stride_y + right * stride_x
                far = load_location(image_ptr, offset, stride_k, rows, inside, CLASSES, REAL)
                values = interpolate(near_x, values, far_x, far)
            if RESAMPLE_Y:
                offset = bottom * stride_y + left * stride_x
                below = load_location(image_ptr, offset, stride_k, rows, inside, CLASSES, REAL)
                if RESAMPLE_X:
                    offset = bottom * stride_y + right * stride_x
                    far = load_location(image_ptr, offset, stride_k, rows, inside, CLASSES, REAL)
                    below = interpolate(near_x, below, far_x, far)
                values = interpolate(near_y, values, far_y, below)
            values = mask_classes(values, rows, CLASSES)
        else:
            offset = y * stride_y + x * stride_x
            values = load_classes(image_ptr, offset, stride_k, rows, inside, CLASSES, REAL)
    return values


@triton.jit
def block_of_pixels(out_height, out_width, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """What a program works on: its image, its pixels [N], which of them exist, and how many do."""
    pixels = index_of(out_height, WIDE) * out_width
    blocks = (pixels + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    image = program // blocks
    first = index_of(program - image * blocks, WIDE) * BLOCK
    pixel = first + tl.arange(0, BLOCK)
    return image.to(tl.int64), pixel, pixel < pixels, pixels
