"""What the kernels that go over pixels are told about logits and the size of evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import launch


@dataclass(frozen=True)
class Walk:
    """Logits [B, K, h, w] evaluated at (H, W), cut into blocks of pixels of one image."""

    logits: Tensor
    size: tuple[int, int]  # H, W
    align_corners: bool
    precise: bool = False  # float64 arithmetic

    @property
    def pixels(self) -> int:
        """Of one image."""
        return self.size[0] * self.size[1]

    @property
    def resamples(self) -> tuple[bool, bool]:
        """Whether the rows and whether the columns change in number."""
        height, width = self.logits.shape[2:]
        return bool(self.size[0] != height), bool(self.size[1] != width)

    def sizes(self) -> tuple[Any, ...]:
        """height, width, out_height, out_width, stride_b, stride_k, stride_y, stride_x."""
        return (*self.logits.shape[2:], *self.size, *self.logits.stride())

    def options(self, *others: Tensor) -> dict[str, Any]:
        """The compile-time arguments of a kernel; `others`: tensors that it has offsets into."""
        height, width = self.logits.shape[2:]
        resample_y, resample_x = self.resamples
        return {
            "CLASSES": int(self.logits.shape[1]),
            "PADDED": launch.padded_classes(int(self.logits.shape[1])),
            "ALIGN": self.align_corners,
            "RESAMPLE_Y": resample_y,
            "RESAMPLE_X": resample_x,
            "FLAT": not (resample_y or resample_x)
            and all(launch.flat(tensor) for tensor in (self.logits, *others)),
            "WIDE": launch.wide(self.logits, *others)
            or launch.wide_positions((height, width), self.size),
        }
