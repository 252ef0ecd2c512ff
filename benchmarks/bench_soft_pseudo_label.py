"""soft_pseudo_labels against the equations in PyTorch: literal, well written, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cscl_fast import ops

pytestmark = pytest.mark.timeout(900)

GAMMA = 0.25
Answer = tuple[Tensor, Tensor]  # soft [B, K, H, W], hard [B, H, W]


class Case(NamedTuple):
    """Logits, and the size at which the labels are wanted."""

    shape: tuple[int, int, int, int]  # [B, K, h, w]
    size: tuple[int, int] | None = None  # (H, W)
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    gamma: float = GAMMA

    def __str__(self) -> str:
        parts = [f"{list(self.shape)}"]
        if self.size is not None:
            parts.append(f"to {self.size[0]}x{self.size[1]}")
        parts.append(str(self.dtype).removeprefix("torch."))
        if self.channels_last:
            parts.append("channels-last")
        if self.gamma != GAMMA:
            parts.append(f"gamma {self.gamma}")
        return " ".join(parts)

    def bytes(self) -> int:
        """Logits read once, soft and hard labels written once."""
        batch, classes, height, width = self.shape
        pixels = batch * (height * width if self.size is None else self.size[0] * self.size[1])
        element = self.dtype.itemsize
        return element * batch * classes * height * width + pixels * (element * classes + 8)


QUICK = [
    Case((1, 19, 512, 1024)),
    Case((1, 19, 65, 129), (512, 1024)),
    Case((1, 19, 32, 64)),
]
FULL = [
    Case((1, 16, 512, 1024)),
    Case((1, 13, 512, 1024)),
    Case((4, 19, 256, 512)),
    Case((1, 19, 512, 1024), dtype=torch.bfloat16),
    Case((1, 19, 512, 1024), channels_last=True),
    Case((1, 19, 512, 1024), gamma=0.3),
    Case((1, 64, 256, 512)),
]
CASES = [*QUICK, *(pytest.param(case, marks=pytest.mark.full) for case in FULL)]


@cache
def data(case: Case) -> tuple[Tensor, Tensor]:
    """Logits of a network in training: neighbouring pixels alike, some sure and some not."""
    generator = torch.Generator().manual_seed(0)
    batch, classes, height, width = case.shape
    coarse = torch.randn(batch, classes, 9, 17, generator=generator) * 3
    logits = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    logits = (logits + 0.3 * torch.randn(case.shape, generator=generator)).to(case.dtype)
    if case.channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    return logits, 0.4 + 0.5 * torch.rand(classes, generator=generator)


# ---- the contenders -----------------------------------------------------------------------------


def enlarged(logits: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is None:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def literal(z: Tensor, delta: Tensor, gamma: float, size: tuple[int, int] | None) -> Answer:
    """Eq. 8-10 as they stand in the contract, one PyTorch call for each symbol."""
    z = enlarged(z, size).float()
    p = torch.softmax(z, dim=1)
    a = (torch.log(p) - torch.log(delta).view(1, -1, 1, 1)) / gamma
    cost = -gamma * torch.logsumexp(a, dim=1, keepdim=True)
    kept = (cost < 0) & torch.isfinite(z).all(dim=1, keepdim=True)
    soft = torch.where(kept, torch.softmax(a, dim=1), torch.zeros_like(a))
    hard = torch.where(kept[:, 0], torch.argmax(soft, dim=1), 255)
    return soft, hard


def eager(z: Tensor, delta: Tensor, gamma: float, size: tuple[int, int] | None) -> Answer:
    """As one would write it with care: log_softmax, one logsumexp for decision and label."""
    z = enlarged(z, size)
    a = (F.log_softmax(z, dim=1, dtype=torch.float32) - delta.log()[:, None, None]) / gamma
    cost = a.logsumexp(dim=1, keepdim=True)
    kept = cost > 0  # false for a NaN, which every non-finite logit leads to but one: -inf
    kept = kept & z.isfinite().all(dim=1, keepdim=True)
    soft = torch.where(kept, (a - cost).exp(), 0.0).to(z.dtype)
    hard = torch.where(kept[:, 0], a.argmax(dim=1), 255)
    return soft, hard


@cache
def compiled() -> Callable[..., Answer]:
    torch._dynamo.reset()
    return torch.compile(eager, dynamic=False)


def ours(z: Tensor, delta: Tensor, gamma: float, size: tuple[int, int] | None) -> Answer:
    return ops.soft_pseudo_labels(z, delta, gamma, size=size)


CONTENDERS: dict[str, Callable[..., Answer]] = {
    "literal eager": literal,
    "good eager": eager,
    "torch.compile": lambda *arguments: compiled()(*arguments),
    "cscl_fast": ours,
}


# ---- checking and timing ------------------------------------------------------------------------


@cache
def reference(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """In float64: soft, hard, and the pixels whose decisions are not within rounding."""
    logits, thresholds = data(case)
    z = enlarged(logits.double(), case.size)
    a = (z.log_softmax(dim=1) - thresholds.double().log()[:, None, None]) / case.gamma
    cost = a.logsumexp(dim=1, keepdim=True)
    kept = cost > 0
    first, second = a.topk(2, dim=1).values.unbind(dim=1)
    # F.interpolate computes its coordinates in the logits' type; eager PyTorch is granted that.
    slack = 1e-3 if case.size is not None or case.dtype != torch.float32 else 1e-5
    sure = (cost[:, 0].abs() > slack) & (first - second > slack)
    soft = torch.where(kept, (a - cost).exp(), 0.0)
    return soft, torch.where(kept[:, 0], a.argmax(dim=1), 255), sure


def check(case: Case, answer: Answer) -> None:
    """Fails on a wrong answer; a fast wrong answer is no contender."""
    soft, hard, sure = reference(case)
    assert torch.equal(answer[1][sure], hard[sure])
    error = (answer[0].double() - soft).abs()
    rounding = torch.finfo(case.dtype).eps
    relative = max(1e-5 / case.gamma, 2e-4 if case.size is not None else 0.0) + rounding
    assert bool(((error <= relative * soft + 1e-6 + 0.1 * rounding) | ~sure[:, None]).all())


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def bench(case: Case, contender: str, contend: Callable[..., None]) -> None:
    logits, thresholds = data(case)
    function = CONTENDERS[contender]
    with torch.no_grad():
        check(case, function(logits, thresholds, case.gamma, case.size))
        contend(
            lambda: function(logits, thresholds, case.gamma, case.size),
            operator="soft_pseudo_labels",
            group=str(case),
            contender=contender,
            bytes=case.bytes(),
        )
