"""The table of cases that every operator answers on every backend, and how close it must come."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cscl_fast import backends


@dataclass(frozen=True)
class Case:
    """Logits of one shape, and how they are evaluated."""

    name: str
    shape: tuple[int, int, int, int]  # B, K, h, w
    size: tuple[int, int] | None = None  # H, W
    align_corners: bool = False
    spread: float = 2.0  # standard deviation of the logits
    offset: float = 0.0

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode())

    @property
    def area(self) -> tuple[int, int]:
        """(H, W) of the answer."""
        return self.shape[2:] if self.size is None else self.size

    @property
    def upsampling(self) -> dict[str, object]:
        return {"size": self.size, "align_corners": self.align_corners}


CASES = (
    Case("plain", (2, 19, 7, 9)),
    Case("odd sizes", (2, 5, 5, 7), (11, 13)),
    Case("odd sizes, aligned corners", (2, 5, 5, 7), (11, 13), True),
    Case("eight times", (1, 19, 5, 9), (40, 72)),
    Case("eight times and one, aligned corners", (1, 19, 5, 9), (33, 65), True),
    Case("size of the logits", (1, 4, 6, 5), (6, 5)),
    Case("only wider", (2, 3, 6, 4), (6, 11)),
    Case("smaller", (1, 4, 9, 8), (4, 3)),
    Case("smaller, aligned corners", (1, 4, 9, 8), (4, 3), True),
    Case("one pixel", (1, 19, 1, 1)),
    Case("one pixel upsampled", (1, 4, 1, 1), (3, 5)),
    Case("one pixel of many, aligned corners", (1, 4, 5, 6), (1, 1), True),
    Case("one row", (2, 3, 1, 9), (4, 20)),
    Case("one class", (2, 1, 4, 5), (7, 6)),
    Case("two classes", (3, 2, 4, 5)),
    Case("256 classes", (1, 256, 4, 5), (9, 11)),
    Case("no image", (0, 4, 5, 6), (10, 12)),
    Case("sharp", (1, 19, 6, 7), (15, 20), spread=20.0),
    Case("offset", (1, 19, 6, 7), (15, 20), offset=1000.0),
    Case("flat", (1, 6, 6, 7), (15, 20), spread=0.01),
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels-last", "strided")


@dataclass(frozen=True)
class Place:
    """A backend, and the device that it is tried on."""

    backend: str
    device: str


def places_of(operator: str) -> list[Place]:
    """Every backend that has a kernel of this operator, on every device that it can run on here.

    With CSCL_FAST_BACKEND in the environment, that backend only.
    """
    chosen = os.environ.get("CSCL_FAST_BACKEND", "auto")
    found = []
    for name in backends.available():
        if operator in backends.kernels(name) and chosen in ("auto", name):
            interpreted = name == "triton" and backends.INTERPRETS_TRITON
            if name in ("reference", "cpu", "cuda_on_cpu") or interpreted:
                found.append(Place(name, "cpu"))
            if name in ("reference", "cuda", "triton") and torch.cuda.is_available():
                found.append(Place(name, "cuda"))
    return found


def arrange(values: Tensor, layout: str) -> Tensor:
    """The same values in another layout."""
    if layout == "channels-last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        wider = values.new_full((*values.shape[:3], 2 * values.shape[3] + 1), torch.nan)
        wider[..., 1::2] = values
        return wider[..., 1::2]
    return values.contiguous()


def make_logits(
    case: Case, dtype: torch.dtype, device: str = "cpu", layout: str = "contiguous", salt: int = 0
) -> Tensor:
    """The case's logits, the same on every device."""
    generator = torch.Generator().manual_seed(case.seed + salt)
    values = torch.randn(case.shape, generator=generator) * case.spread + case.offset
    return arrange(values.to(device, dtype), layout)


def make_thresholds(classes: int, device: str = "cpu", seed: int = 0) -> Tensor:
    """Thresholds around the confidences that random logits have, some at the upper end."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.rand(classes, generator=generator) * 0.9 + 0.05
    delta[::7] = 1.0
    return delta.to(device)


def array(tensor: Tensor) -> np.ndarray:
    """Values as float64 (integers stay integers), in NumPy."""
    tensor = tensor.detach().cpu()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def assert_within(
    actual: Tensor, expected: np.ndarray | float, relative: float = 1e-5, absolute: float = 1e-6
) -> None:
    """The contract's bound, and half a unit in the last place of a half type's own rounding."""
    expected = np.asarray(expected)
    if actual.dtype in (torch.float16, torch.bfloat16):
        relative = relative + 0.5 * torch.finfo(actual.dtype).eps
        absolute = absolute + torch.finfo(actual.dtype).smallest_normal * 2.0**-11
    np.testing.assert_allclose(array(actual), expected, rtol=relative, atol=absolute)


def assert_gradient(actual: Tensor | None, expected: np.ndarray) -> None:
    """Gradients: within 1e-4 of their largest entry (and a half type's own rounding)."""
    assert actual is not None
    largest = float(np.abs(expected).max()) if expected.size else 0.0
    absolute = 1e-4 * largest + 1e-12
    assert_within(actual, expected, relative=0.0, absolute=absolute)
