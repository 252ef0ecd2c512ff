"""Algorithm 1, streaming and exact, by counting.

`count_kernel` goes over the pixels and adds each to a histogram of its class, with integer atomics:
their order changes nothing. Streaming bins are equal parts of [0, 1]. The exact order statistic is
found without sorting and in constant memory: a histogram over the upper bits of the confidences
says which bin holds it, and a second walk counts the lower bits within that bin.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cscl_fast.backends.reference.class_threshold import BINS

from .launch import (
    INTERPRETED,
    blocks_of,
    launch,
    on_device_of,
    operator,
    pixel_block,
    power_of_two,
)
from .numerics import confidence_of
from .upsample import block_of_pixels, load_pixels
from .walk import Walk

# What is counted, and what is selected from the counts.
STREAMING = tl.constexpr(0)
UPPER = tl.constexpr(1)
LOWER = tl.constexpr(2)

# A confidence is at least 1/256, up to rounding: its bits lie above those of 2^-9 and, with these
# taken off, are at most 9 * 2^23, those of 1.
_LOWEST_BITS = tl.constexpr((127 - 9) << 23)
_LOWER_BITS = tl.constexpr(11)
# The confidence 1 alone would have a bin of its own; it shares the one below it.
UPPER_BINS = 9 << 12
LOWER_BINS = (1 << 11) + 1

_BINS = tl.constexpr(BINS)
_LAST_UPPER = tl.constexpr(UPPER_BINS - 1)
CHUNK = 4096


@triton.jit
def bin_of(confidence, selected, MODE: tl.constexpr):
    """Bin [N] int32 of every confidence, and whether it has one."""
    if MODE == STREAMING:
        found = tl.minimum((confidence * _BINS).to(tl.int32), _BINS - 1)
        return found, found >= 0
    else:
        order = confidence.to(tl.int32, bitcast=True) - _LOWEST_BITS
        upper = tl.minimum(order >> _LOWER_BITS, _LAST_UPPER)
        if MODE == UPPER:
            return upper, upper >= 0
        else:
            return order - (upper << _LOWER_BITS), upper == selected


@triton.jit
def count_kernel(
    logits_ptr,  # [B, K, h, w]
    histogram_ptr,  # [K, bins] int64
    selected_ptr,  # [K] int32, the upper bin of each class; read if LOWER
    bins,
    height,
    width,
    out_height,
    out_width,
    stride_b,
    stride_k,
    stride_y,
    stride_x,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    ALIGN: tl.constexpr,
    RESAMPLE_Y: tl.constexpr,
    RESAMPLE_X: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.arange(0, PADDED)[:, None]
    image, pixel, inside, _ = block_of_pixels(out_height, out_width, BLOCK, WIDE)
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
        tl.float32,
    )
    confidence, winner, counted = confidence_of(values, rows, CLASSES)
    counted = counted & inside
    selected = 0
    if MODE == LOWER:
        selected = tl.load(selected_ptr + winner, mask=counted, other=-1)
    found, has_bin = bin_of(confidence, selected, MODE)
    counted = counted & has_bin
    if MODE != LOWER and PADDED <= 32:
        # Of a trained network most confidences share the last bin: one addition for a block.
        last = counted & (found == bins - 1)
        crowd = tl.histogram(tl.where(last, winner, PADDED), 2 * PADDED)
        classes = tl.arange(0, 2 * PADDED)
        target = histogram_ptr + classes.to(tl.int64) * bins + (bins - 1)
        many = (classes < CLASSES) & (crowd > 0)
        tl.atomic_add(target, crowd.to(tl.int64), mask=many, sem="relaxed")
        counted = counted & ~last
    target = histogram_ptr + winner.to(tl.int64) * bins + found
    one = tl.full([BLOCK], 1, dtype=tl.int64)
    tl.atomic_add(target, one, mask=counted, sem="relaxed")


@triton.jit
def load_counts(
    histogram_ptr, other_ptr, row, place, exists, TOTAL: tl.constexpr, OTHER: tl.constexpr
):
    """Counts [N, CHUNK] of the bins `place` of some classes."""
    offset = row * TOTAL + place
    counts = tl.load(histogram_ptr + offset, mask=exists, other=0)
    if OTHER:
        counts += tl.load(other_ptr + offset, mask=exists, other=0)
    return counts


@triton.jit
def select_kernel(
    histogram_ptr,  # [K, bins] int64
    other_ptr,  # the same, added to it if OTHER
    selected_ptr,  # [K] int32, upper bin; written if UPPER, read if LOWER, -1 for an empty class
    rank_ptr,  # [K] int64, rank within the upper bin; likewise
    thresholds_ptr,  # [K] float32; written unless UPPER
    portion_high,  # the portion is the sum of these three, exactly
    portion_middle,
    portion_low,
    classes,
    TOTAL: tl.constexpr,  # bins
    MODE: tl.constexpr,
    OTHER: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,  # classes of a program
):
    """Finds the bin that holds the order statistic of each class, counting from the top."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = k < classes
    row = k[:, None].to(tl.int64)
    if MODE == LOWER:
        rank = tl.load(rank_ptr + k, mask=inside, other=0)
    else:
        counts = tl.zeros([BLOCK, CHUNK], dtype=tl.int64)
        for first in range(0, TOTAL, CHUNK):
            place = (first + tl.arange(0, CHUNK))[None, :]
            exists = (place < TOTAL) & inside[:, None]
            counts += load_counts(histogram_ptr, other_ptr, row, place, exists, TOTAL, OTHER)
        number = tl.sum(counts, axis=1)
        portion = tl.cast(portion_high, tl.float64) + tl.cast(portion_middle, tl.float64)
        portion += tl.cast(portion_low, tl.float64)
        rank = tl.floor(portion * number.to(tl.float64)).to(tl.int64)
        rank = tl.maximum(tl.minimum(rank, number - 1), 0)
    above = tl.zeros([BLOCK], dtype=tl.int64)  # confidences in the bins gone over
    passed = tl.zeros([BLOCK], dtype=tl.int64)  # bins that lie above the order statistic
    before = tl.zeros([BLOCK], dtype=tl.int64)  # confidences in those
    for first in range(0, TOTAL, CHUNK):
        place = TOTAL - 1 - (first + tl.arange(0, CHUNK))[None, :]
        exists = (place >= 0) & inside[:, None]
        here = load_counts(histogram_ptr, other_ptr, row, place, exists, TOTAL, OTHER)
        over = exists & (above[:, None] + tl.cumsum(here, axis=1) <= rank[:, None])
        passed += tl.sum(over.to(tl.int64), axis=1)
        before += tl.sum(tl.where(over, here, 0), axis=1)
        above += tl.sum(here, axis=1)
    found = tl.maximum(TOTAL - 1 - passed, 0).to(tl.int32)
    if MODE == STREAMING:
        # 17 bits: the centre is exact.
        centre = (2 * found + 1).to(tl.float32) * (0.5 / TOTAL)
        tl.store(thresholds_ptr + k, tl.where(number > 0, centre, 1.0), mask=inside)
    elif MODE == UPPER:
        tl.store(selected_ptr + k, tl.where(number > 0, found, -1), mask=inside)
        tl.store(rank_ptr + k, rank - before, mask=inside)
    else:
        upper = tl.load(selected_ptr + k, mask=inside, other=-1)
        bits = (upper << _LOWER_BITS) + found + _LOWEST_BITS
        delta = bits.to(tl.float32, bitcast=True)
        tl.store(thresholds_ptr + k, tl.where(upper >= 0, delta, 1.0), mask=inside)


def _in_three(portion: float) -> tuple[float, float, float]:
    """A double as the sum of three float32 numbers, which is what a kernel takes."""
    parts = []
    for _ in range(3):
        (part,) = struct.unpack("f", struct.pack("f", portion))
        parts.append(part)
        portion -= part
    return parts[0], parts[1], parts[2]


def _count(
    histogram: Tensor,
    selected: Tensor,
    logits: Tensor,
    area: tuple[int, int],
    align_corners: bool,
    mode: int,
) -> None:
    batch, classes = logits.shape[:2]
    if batch * area[0] * area[1] == 0:
        return
    walk = Walk(logits, area, align_corners)
    block = pixel_block(int(classes))
    launch(
        count_kernel,
        (batch * blocks_of(area[0] * area[1], block["BLOCK"]),),
        logits,
        histogram,
        selected,
        histogram.shape[1],
        *walk.sizes(),
        **walk.options(),
        MODE=mode,
        **block,
    )


def _select(
    histogram: Tensor,
    other: Tensor | None,
    selected: Tensor,
    rank: Tensor,
    thresholds: Tensor,
    portion: float,
    mode: int,
) -> None:
    classes, bins = histogram.shape
    chunk = power_of_two(bins) if INTERPRETED else CHUNK
    block = 16 if INTERPRETED else 1
    launch(
        select_kernel,
        (blocks_of(classes, block),),
        histogram,
        histogram if other is None else other,
        selected,
        rank,
        thresholds,
        *_in_three(portion),
        classes,
        TOTAL=int(bins),
        MODE=mode,
        OTHER=other is not None,
        CHUNK=chunk,
        BLOCK=block,
        num_warps=8,
    )


def _fake_update(
    histogram: Tensor, logits: Tensor, height: int, width: int, align_corners: bool
) -> None:
    """Nothing: the histogram keeps its shape."""


def _update(
    histogram: Tensor, logits: Tensor, height: int, width: int, align_corners: bool
) -> None:
    _count(histogram, histogram, logits, (height, width), align_corners, STREAMING.value)


def _fake_of_histogram(
    histogram: Tensor, other: Tensor | None, portions: Sequence[float]
) -> Tensor:
    """[P, K]."""
    return histogram.new_empty((len(portions), histogram.shape[0]), dtype=torch.float32)


def _of_histogram(histogram: Tensor, other: Tensor | None, portions: Sequence[float]) -> Tensor:
    thresholds = _fake_of_histogram(histogram, other, portions)
    for row, portion in enumerate(portions):
        _select(histogram, other, histogram, histogram, thresholds[row], portion, STREAMING.value)
    return thresholds


def _fake_exact(
    logits: Tensor, portion: float, height: int, width: int, align_corners: bool
) -> Tensor:
    """[K]."""
    return logits.new_empty((logits.shape[1],), dtype=torch.float32)


def _exact(logits: Tensor, portion: float, height: int, width: int, align_corners: bool) -> Tensor:
    classes = logits.shape[1]
    options: dict[str, Any] = {"device": logits.device}
    thresholds = torch.empty((classes,), dtype=torch.float32, **options)
    selected = torch.empty((classes,), dtype=torch.int32, **options)
    rank = torch.empty((classes,), dtype=torch.int64, **options)
    for bins, mode in ((UPPER_BINS, UPPER.value), (LOWER_BINS, LOWER.value)):
        histogram = torch.zeros((classes, bins), dtype=torch.int64, **options)
        _count(histogram, selected, logits, (height, width), align_corners, mode)
        _select(histogram, None, selected, rank, thresholds, portion, mode)
    return thresholds


_update_operator = operator("class_threshold_update", _fake_update, ["histogram"])(_update)
_of_histogram_operator = operator("thresholds_of_histogram", _fake_of_histogram)(_of_histogram)
_exact_operator = operator("class_thresholds", _fake_exact)(_exact)


def new_histogram(classes: int, device: torch.device | str) -> Tensor:  # [K, BINS] int64, zeros
    """Where `update` counts."""
    return torch.zeros((classes, BINS), dtype=torch.int64, device=device)


def update(
    histogram: Tensor,  # [K, BINS] int64, contiguous, changed in place
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16
    area: tuple[int, int],  # (H, W)
    align_corners: bool,
) -> None:
    """Count every pixel in the bin of its confidence, in its class's row."""
    with on_device_of(logits):
        _update_operator(histogram, logits.detach(), *area, align_corners)


def thresholds_of_histogram(
    histogram: Tensor,  # [K, BINS] int64, contiguous
    portions: Sequence[float],
    other: Tensor | None = None,  # the same, added to the first
) -> Tensor:  # [P, K] float32, in (0, 1]
    """The centre of the bin that holds each class's order statistic; 1 for an empty class."""
    with on_device_of(histogram):
        thresholds: Tensor = _of_histogram_operator(histogram, other, list(portions))
    return thresholds


def class_thresholds(
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16
    portion: float,
    area: tuple[int, int],  # (H, W)
    align_corners: bool,
) -> Tensor:  # [K] float32, in (0, 1]
    """The exact order statistic of each class's float32 confidences."""
    with on_device_of(logits):
        thresholds: Tensor = _exact_operator(logits.detach(), portion, *area, align_corners)
    return thresholds
