"""Sums over the locations of each class, and the gradient that goes back to them.

Locations are numbered through the whole batch. `assign_kernel` finds the class (K: none) and the
weight of each. `class_sum_kernel` cuts the locations into as many parts as the shape demands, and
the channels into blocks: a program goes through its part tile by tile and, class by class of those
that a tile shows, adds up what belongs to it. In an image a tile shows few classes. Every feature
is read once, and a class's sum sees its own features only, whatever the others are. The parts are
added in float64 and in a fixed order by `centroid_kernel`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import INFINITY, lowest_of_largest
from .upsample import block_of_pixels, load_pixels

_IGNORED = tl.constexpr(255)


@triton.jit
def assign_kernel(
    labels_ptr,  # [B, h, w] int64 if HARD, else soft labels [B, K, h, w]
    row_ptr,  # [B, h, w] int32
    weight_ptr,  # [B, h, w] float32
    height,
    width,
    stride_b,
    stride_k,
    stride_y,
    stride_x,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    HARD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Eq. 12: the label, with weight 1. Eq. 13: the largest soft label (ties: the lowest class)."""
    image, pixel, inside, pixels = block_of_pixels(height, width, BLOCK, WIDE)
    if HARD:
        y = pixel // width
        x = pixel - y * width
        offset = image * stride_b + y * stride_y + x * stride_x
        label = tl.load(labels_ptr + offset, mask=inside, other=-1)
        counted = (label >= 0) & (label < CLASSES) & (label != _IGNORED)
        row = tl.where(counted, label, CLASSES).to(tl.int32)
        weight = counted.to(tl.float32)
    else:
        rows = tl.arange(0, PADDED)[:, None]
        shares = load_pixels(
            labels_ptr + image * stride_b,
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
        largest = tl.max(shares, axis=0)
        unclear = tl.max((shares != shares).to(tl.int32), axis=0) > 0  # NaN
        counted = (largest > 0) & (largest < INFINITY) & ~unclear
        row = tl.where(counted, lowest_of_largest(shares, largest, rows, CLASSES), CLASSES)
        weight = tl.where(counted, largest, 0.0)
    place = image * pixels + pixel
    tl.store(row_ptr + place, row, mask=inside)
    tl.store(weight_ptr + place, weight, mask=inside)


@triton.jit
def feature_offset(location, channel, height, width, stride_b, stride_c, stride_y, stride_x):
    """Where the features [N, C] of some locations and channels lie; 64 bits."""
    pixels = height * width
    image = location // pixels
    pixel = location - image * pixels
    y = pixel // width
    x = pixel - y * width
    offset = image.to(tl.int64) * stride_b + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
    return offset[:, None] + channel[None, :].to(tl.int64) * stride_c


@triton.jit
def class_sum_kernel(
    features_ptr,  # [B, C, h, w]
    row_ptr,  # [B, h, w] int32
    weight_ptr,  # [B, h, w] float32
    sums_ptr,  # [parts, K, C] float32
    masses_ptr,  # [parts, K] float32
    locations,
    part_size,
    channels,
    height,
    width,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    LOCATIONS: tl.constexpr,  # of a tile
    CHANNELS: tl.constexpr,
):
    part = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    has_channel = channel < channels
    classes = tl.arange(0, PADDED)
    sums = tl.zeros([PADDED, CHANNELS], dtype=tl.float32)
    masses = tl.zeros([PADDED], dtype=tl.float32)
    start = part.to(tl.int64) * part_size
    for first in range(0, part_size, LOCATIONS):
        location = start + first + tl.arange(0, LOCATIONS)
        inside = (location < locations) & (first + tl.arange(0, LOCATIONS) < part_size)
        row = tl.load(row_ptr + location, mask=inside, other=CLASSES)
        weight = tl.load(weight_ptr + location, mask=inside, other=0.0)
        offset = feature_offset(
            location, channel, height, width, stride_b, stride_c, stride_y, stride_x
        )
        mask = inside[:, None] & has_channel[None, :]
        values = tl.load(features_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        values = values * weight[:, None]
        k = tl.min(row, axis=0)
        while k < CLASSES:
            mine = row == k
            # Chosen, not multiplied by 0: a NaN of another class stays out.
            found = tl.sum(tl.where(mine[:, None], values, 0.0), axis=0)
            mass = tl.sum(tl.where(mine, weight, 0.0), axis=0)
            here = classes == k
            sums = tl.where(here[:, None], sums + found[None, :], sums)
            masses = tl.where(here, masses + mass, masses)
            k = tl.min(tl.where(row > k, row, CLASSES), axis=0)
    exists = classes < CLASSES
    target = (part.to(tl.int64) * CLASSES + classes.to(tl.int64))[:, None] * channels
    mask = exists[:, None] & has_channel[None, :]
    tl.store(sums_ptr + target + channel[None, :], sums, mask=mask)
    if tl.program_id(1) == 0:
        tl.store(masses_ptr + part * CLASSES + classes, masses, mask=exists)


@triton.jit
def centroid_kernel(
    sums_ptr,  # [parts, K, C] float32
    masses_ptr,  # [parts, K] float32
    centroids_ptr,  # [K, C] float32 or float64
    mass_ptr,  # [K] in the same type
    parts,
    channels,
    CLASSES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Adds the parts of class k and divides by its mass; 0 where there is none."""
    k = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    has_channel = channel < channels
    total = tl.zeros([CHANNELS], dtype=tl.float64)
    mass = tl.full([], 0.0, dtype=tl.float64)
    for part in range(0, parts):
        place = tl.cast(part, tl.int64) * CLASSES + k
        mass += tl.load(masses_ptr + place).to(tl.float64)
        found = tl.load(sums_ptr + place * channels + channel, mask=has_channel, other=0.0)
        total += found.to(tl.float64)
    centroid = total / tl.where(mass > 0, mass, 1.0)
    target = centroids_ptr + k * channels + channel
    tl.store(target, centroid.to(centroids_ptr.dtype.element_ty), mask=has_channel)
    if tl.program_id(1) == 0:
        tl.store(mass_ptr + k, mass.to(mass_ptr.dtype.element_ty))


@triton.jit
def centroid_gradient_kernel(
    slope_ptr,  # [K, C] float32, contiguous
    mass_ptr,  # [K] float32, divided by if MASS
    scale_ptr,  # scalar float32, multiplied by if SCALE
    row_ptr,  # [B, h, w] int32
    weight_ptr,  # [B, h, w] float32
    gradient_ptr,  # [B, C, h, w] in the features' dtype
    locations,
    channels,
    height,
    width,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    CLASSES: tl.constexpr,
    MASS: tl.constexpr,
    SCALE: tl.constexpr,
    LOCATIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """weight * slope[row] * scale / mass for every location; zeros where there is no class."""
    location = tl.program_id(0).to(tl.int64) * LOCATIONS + tl.arange(0, LOCATIONS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = location < locations
    has_channel = channel < channels
    row = tl.load(row_ptr + location, mask=inside, other=CLASSES)
    factor = tl.load(weight_ptr + location, mask=inside, other=0.0)
    counted = row < CLASSES
    if SCALE:
        factor = factor * tl.load(scale_ptr)
    if MASS:
        factor = tl.div_rn(factor, tl.load(mass_ptr + row, mask=counted, other=1.0))
    place = row[:, None] * channels + channel[None, :]
    slope = tl.load(slope_ptr + place, mask=counted[:, None] & has_channel[None, :], other=0.0)
    values = tl.where(counted[:, None], slope * factor[:, None], 0.0)
    offset = feature_offset(
        location, channel, height, width, stride_b, stride_c, stride_y, stride_x
    )
    mask = inside[:, None] & has_channel[None, :]
    tl.store(gradient_ptr + offset, values.to(gradient_ptr.dtype.element_ty), mask=mask)
