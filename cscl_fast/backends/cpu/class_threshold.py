"""Algorithm 1, streaming and exact, by the compiled kernels (csrc/cpu/class_threshold.cpp).

Three operators, so that torch.compile sees them as they are: `class_threshold_update` counts into
a histogram, `thresholds_of_histogram` reads it, `class_thresholds` is the exact order statistic.
Few pixels are better kept as keys, and that is eager only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.reference.class_threshold import BINS

from . import memory
from .registration import DTYPE_CODES, LIBRARY, implement

LIBRARY.define(
    "class_threshold_update(Tensor(a!) histogram, Tensor logits, SymInt height, SymInt width,"
    " bool align_corners) -> ()"
)
LIBRARY.define(
    "thresholds_of_histogram(Tensor histogram, Tensor? other, float[] portions) -> Tensor"
)
LIBRARY.define(
    "class_thresholds(Tensor logits, float portion, SymInt height, SymInt width,"
    " bool align_corners) -> Tensor"
)


@torch.library.register_fake("cscl_fast::class_threshold_update", lib=LIBRARY)
def _fake_update(
    histogram: Tensor, logits: Tensor, height: int, width: int, align_corners: bool
) -> None:
    """Nothing: the histogram keeps its shape."""


@torch.library.register_fake("cscl_fast::thresholds_of_histogram", lib=LIBRARY)
def _fake_of_histogram(
    histogram: Tensor, other: Tensor | None, portions: Sequence[float]
) -> Tensor:
    """[P, K]."""
    return histogram.new_empty((len(portions), histogram.shape[0]), dtype=torch.float32)


@torch.library.register_fake("cscl_fast::class_thresholds", lib=LIBRARY)
def _fake_exact(
    logits: Tensor, portion: float, height: int, width: int, align_corners: bool
) -> Tensor:
    """[K]."""
    return logits.new_empty((logits.shape[1],), dtype=torch.float32)


def _update(
    histogram: Tensor, logits: Tensor, height: int, width: int, align_corners: bool
) -> None:
    torch.autograd.graph.increment_version(histogram)
    backends.library().class_threshold_update(
        logits.data_ptr(),
        DTYPE_CODES[logits.dtype],
        tuple(logits.shape),
        logits.stride(),
        height,
        width,
        align_corners,
        histogram.data_ptr(),
        torch.get_num_threads(),
    )


def _of_histogram(histogram: Tensor, other: Tensor | None, portions: Sequence[float]) -> Tensor:
    classes = histogram.shape[0]
    thresholds = torch.empty((len(portions), classes), dtype=torch.float32)
    backends.library().thresholds_of_histogram(
        histogram.data_ptr(),
        0 if other is None else other.data_ptr(),
        classes,
        list(portions),
        thresholds.data_ptr(),
        torch.get_num_threads(),
    )
    return thresholds


def _exact(logits: Tensor, portion: float, height: int, width: int, align_corners: bool) -> Tensor:
    shape = tuple(logits.shape)
    thresholds = torch.empty((shape[1],), dtype=torch.float32)
    backends.library().class_thresholds(
        logits.data_ptr(),
        DTYPE_CODES[logits.dtype],
        shape,
        logits.stride(),
        height,
        width,
        align_corners,
        portion,
        thresholds.data_ptr(),
        torch.get_num_threads(),
    )
    return thresholds


for _name, _compute in (
    ("class_threshold_update", _update),
    ("thresholds_of_histogram", _of_histogram),
    ("class_thresholds", _exact),
):
    implement(_name, "cpu", _compute)
    # Thresholds are constants: no gradient flows, so there is nothing for autograd to record.
    LIBRARY.impl(_name, torch.library.fallthrough_kernel, "Autograd")


_CPU = torch.device("cpu")


def new_histogram(classes: int, device: torch.device = _CPU) -> Tensor:  # [K, BINS] int64, zeros
    """On the CPU in memory that an earlier histogram may have left."""
    if device.type != "cpu":
        return torch.zeros((classes, BINS), dtype=torch.int64, device=device)
    return memory.empty((classes, BINS), torch.int64).zero_()


def update(
    histogram: Tensor,  # [K, BINS] int64, contiguous, changed in place
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16
    area: tuple[int, int],  # (H, W)
    align_corners: bool,
) -> None:
    """Count every pixel in the bin of its confidence, in its class's row."""
    torch.ops.cscl_fast.class_threshold_update(histogram, logits, *area, align_corners)


def keys(
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16
    area: tuple[int, int],  # (H, W)
    align_corners: bool,
) -> Tensor:  # [B * H * W] int32
    """Class · BINS + bin of every pixel; K · BINS for one that does not count."""
    shape = tuple(logits.shape)
    height, width = area
    found = torch.empty((shape[0] * height * width,), dtype=torch.int32)
    backends.library().class_threshold_keys(
        logits.data_ptr(),
        DTYPE_CODES[logits.dtype],
        shape,
        logits.stride(),
        height,
        width,
        align_corners,
        found.data_ptr(),
        torch.get_num_threads(),
    )
    return found


def thresholds_of_histogram(
    histogram: Tensor,  # [K, BINS] int64, contiguous
    portions: Sequence[float],
    other: Tensor | None = None,  # the same, added to the first
) -> Tensor:  # [P, K] float32, in (0, 1]
    """The centre of the bin that holds each class's order statistic; 1 for an empty class."""
    thresholds: Tensor = torch.ops.cscl_fast.thresholds_of_histogram(
        histogram, other, list(portions)
    )
    return thresholds


def thresholds_of_keys(
    found: Tensor,  # [n] int32, contiguous
    classes: int,
    portions: Sequence[float],
) -> Tensor:  # [P, K] float32, in (0, 1]
    """What `thresholds_of_histogram` says of the histogram of these keys."""
    thresholds = torch.empty((len(portions), classes), dtype=torch.float32)
    for i, portion in enumerate(portions):
        backends.library().thresholds_of_keys(
            found.data_ptr(), len(found), classes, portion, thresholds.data_ptr() + i * classes * 4
        )
    return thresholds


def class_thresholds(
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16
    portion: float,
    area: tuple[int, int],  # (H, W)
    align_corners: bool,
) -> Tensor:  # [K] float32, in (0, 1]
    """The exact order statistic of each class's float32 confidences."""
    thresholds: Tensor = torch.ops.cscl_fast.class_thresholds(logits, portion, *area, align_corners)
    return thresholds
