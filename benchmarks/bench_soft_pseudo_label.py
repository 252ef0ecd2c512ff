"""soft_pseudo_labels against the equations in PyTorch: literal, well written, and compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from contests import (
    COMPILED,
    EAGER,
    LITERAL,
    OURS,
    Case,
    compiled,
    contests,
    enlarged,
    latest,
    network_logits,
    random_thresholds,
)
from torch import Tensor

from cscl_fast import ops

pytestmark = pytest.mark.timeout(900)

Answer = tuple[Tensor, Tensor]  # soft [B, K, H, W], hard [B, H, W]

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


def bytes_to_move(case: Case) -> int:
    """Logits read once, soft and hard labels written once."""
    return case.logits_bytes + case.pixels * (case.dtype.itemsize * case.shape[1] + 8)


@latest
def data(case: Case) -> tuple[Tensor, Tensor]:
    return network_logits(case), random_thresholds(case.shape[1])


# ---- the contenders -----------------------------------------------------------------------------


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


def ours(z: Tensor, delta: Tensor, gamma: float, size: tuple[int, int] | None) -> Answer:
    return ops.soft_pseudo_labels(z, delta, gamma, size=size)


CONTENDERS: dict[str, Callable[..., Answer]] = {
    LITERAL: literal,
    EAGER: eager,
    COMPILED: lambda *arguments: compiled(eager)(*arguments),
    OURS: ours,
}


# ---- checking and timing ------------------------------------------------------------------------


@latest
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


@contests(QUICK, FULL, CONTENDERS, once=())
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
            bytes=bytes_to_move(case),
            values=case.pixels * case.shape[1],
        )
