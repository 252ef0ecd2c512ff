"""What the benchmark files share: cases, their data, contenders, and what counts as a right answer.

Every file has its contenders as plain functions, so that they can be read side by side, and one
`bench` that checks each against float64 before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

LITERAL, EAGER, COMPILED, OURS = "literal eager", "good eager", "torch.compile", "cscl_fast"

# The data and the reference of one case at a time: its contenders follow each other.
latest = lru_cache(maxsize=1)


class Case(NamedTuple):
    """Logits, and the size at which an operator is evaluated."""

    shape: tuple[int, int, int, int]  # [B, K, h, w]
    size: tuple[int, int] | None = None  # (H, W)
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    gamma: float = 0.25

    def __str__(self) -> str:
        parts = [f"{list(self.shape)}"]
        if self.size is not None:
            parts.append(f"to {self.size[0]}x{self.size[1]}")
        parts.append(str(self.dtype).removeprefix("torch."))
        if self.channels_last:
            parts.append("channels-last")
        if self.gamma != 0.25:
            parts.append(f"gamma {self.gamma}")
        return " ".join(parts)

    @property
    def pixels(self) -> int:
        """B H W, where the operator is evaluated."""
        height, width = self.area
        return self.shape[0] * height * width

    @property
    def area(self) -> tuple[int, int]:
        """(H, W)."""
        return self.shape[2:] if self.size is None else self.size

    @property
    def logits_bytes(self) -> int:
        batch, classes, height, width = self.shape
        return self.dtype.itemsize * batch * classes * height * width


def contests(
    quick: Iterable[Any], full: Iterable[Any], contenders: dict[str, Any], once: tuple[str, ...]
) -> pytest.MarkDecorator:
    """All contenders of a case, then those of the next.

    Args:
        quick, full: cases; --quick leaves out `full`.
        once: contenders that --quick runs in the first case only: compiling takes seconds.
    """
    quick = list(quick)
    parameters = []
    for i, case in enumerate([*quick, *full]):
        for contender in contenders:
            left_out = i >= len(quick) or (i > 0 and contender in once)
            marks = [pytest.mark.full] if left_out else []
            parameters.append(pytest.param(case, contender, marks=marks, id=f"{case}-{contender}"))
    return pytest.mark.parametrize(("case", "contender"), parameters)


# ---- data ---------------------------------------------------------------------------------------


def network_logits(case: Case, seed: int = 0, device: str = "cpu") -> Tensor:
    """Logits of a network in training: neighbouring pixels alike, some sure and some not."""
    generator = torch.Generator(device).manual_seed(seed)
    batch, classes, height, width = case.shape
    coarse = torch.randn(batch, classes, 9, 17, generator=generator, device=device) * 3
    logits = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    noise = torch.randn(case.shape, generator=generator, device=device)
    logits = (logits + 0.3 * noise).to(case.dtype)
    return logits.contiguous(memory_format=torch.channels_last) if case.channels_last else logits


def random_thresholds(classes: int) -> Tensor:  # [K]
    generator = torch.Generator().manual_seed(1)
    return 0.4 + 0.5 * torch.rand(classes, generator=generator)


def network_labels(
    shape: tuple[int, int, int],  # [B, H, W]
    classes: int,
    ignored: float = 0.1,
) -> Tensor:  # [B, H, W] int64
    """Patches of one class, as segmentations have them, and one pixel in ten ignored."""
    generator = torch.Generator().manual_seed(2)
    batch, height, width = shape
    coarse = torch.randint(0, classes, (batch, 1, 12, 24), generator=generator)
    labels = F.interpolate(coarse.float(), (height, width), mode="nearest")[:, 0].long()
    labels[torch.rand(shape, generator=generator) < ignored] = 255
    return labels


# ---- contenders ---------------------------------------------------------------------------------


def enlarged(logits: Tensor, size: tuple[int, int] | None) -> Tensor:
    """What every contender but this package starts from."""
    if size is None:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile, once for each function; it compiles again for each shape."""
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function, dynamic=False)


def forward_backward(
    function: Callable[..., Tensor], *leaves: Tensor, rest: tuple[Any, ...] = ()
) -> tuple[Tensor, ...]:
    """function(*leaves, *rest), a scalar, and its gradient by each leaf."""
    for leaf in leaves:
        leaf.grad = None
    loss = function(*leaves, *rest)
    loss.backward()
    gradients = [leaf.grad for leaf in leaves]
    assert all(gradient is not None for gradient in gradients)
    return (loss.detach(), *(gradient for gradient in gradients if gradient is not None))


# ---- right answers ------------------------------------------------------------------------------


def assert_loss(
    answer: tuple[Tensor, ...],
    wanted: tuple[Tensor, ...],
    loss_tolerance: float = 1e-5,
    gradient_tolerance: float = 1e-4,
) -> None:
    """The loss relative to itself, each gradient relative to its largest entry."""
    loss, exact = answer[0].double(), wanted[0]
    assert abs(loss - exact) <= loss_tolerance * abs(exact) + 1e-6, f"{loss} for {exact}"
    for gradient, reference in zip(answer[1:], wanted[1:], strict=True):
        rounding = torch.finfo(gradient.dtype).eps
        error = (gradient.double() - reference).abs().max() / reference.abs().max()
        assert error <= gradient_tolerance + rounding, f"gradient is off by {error:.2e}"
