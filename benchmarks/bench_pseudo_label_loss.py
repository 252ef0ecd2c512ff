"""pseudo_label_loss, forward and backward, against the second term of Eq. 7 in PyTorch."""

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
    assert_loss,
    compiled,
    contests,
    enlarged,
    forward_backward,
    latest,
    network_logits,
    random_thresholds,
)
from torch import Tensor

from cscl_fast import ops

pytestmark = pytest.mark.timeout(900)

Size = tuple[int, int] | None

QUICK = [
    Case((1, 19, 65, 129), (512, 1024)),
    Case((1, 19, 32, 64)),
]
FULL = [
    Case((1, 19, 512, 1024)),
    Case((1, 16, 65, 129), (512, 1024)),
    Case((1, 13, 65, 129), (512, 1024)),
    Case((4, 19, 65, 129), (512, 1024)),
    Case((1, 19, 65, 129), (512, 1024), dtype=torch.bfloat16),
    Case((1, 19, 65, 129), (512, 1024), channels_last=True),
]


def bytes_to_move(case: Case) -> int:
    """Logits read once, their gradient written once; nothing of the size of the pixels."""
    return 2 * case.logits_bytes


@latest
def data(case: Case) -> tuple[Tensor, Tensor]:
    return network_logits(case).requires_grad_(), random_thresholds(case.shape[1])


# ---- the contenders -----------------------------------------------------------------------------


def literal(z: Tensor, delta: Tensor, gamma: float, size: Size) -> Tensor:
    """Eq. 8-10, then the mean of -Σ ŷ log p, one PyTorch call for each symbol."""
    z = enlarged(z.float(), size)
    p = torch.softmax(z, dim=1)
    with torch.no_grad():
        a = (torch.log(p) - torch.log(delta).view(1, -1, 1, 1)) / gamma
        cost = -gamma * torch.logsumexp(a, dim=1, keepdim=True)
        kept = (cost < 0) & torch.isfinite(z).all(dim=1, keepdim=True)
        soft = torch.where(kept, torch.softmax(a, dim=1), torch.zeros_like(a))
    return -(soft * torch.log(p)).sum() / kept.sum().clamp(min=1)


def eager(z: Tensor, delta: Tensor, gamma: float, size: Size) -> Tensor:
    """As one would write it with care: one log_softmax for the labels and for the loss."""
    log_p = F.log_softmax(enlarged(z.float(), size), dim=1)
    with torch.no_grad():
        a = (log_p - delta.log()[:, None, None]) / gamma
        cost = a.logsumexp(dim=1, keepdim=True)
        kept = cost > 0  # false for a NaN
        soft = torch.where(kept, (a - cost).exp(), 0.0)
    return -(soft * log_p).sum() / kept.sum().clamp(min=1)


def ours(z: Tensor, delta: Tensor, gamma: float, size: Size) -> Tensor:
    return ops.pseudo_label_loss(z, delta, gamma, size=size)


CONTENDERS: dict[str, Callable[..., Tensor]] = {
    LITERAL: literal,
    EAGER: eager,
    COMPILED: lambda *arguments: compiled(eager)(*arguments),
    OURS: ours,
}


# ---- checking and timing ------------------------------------------------------------------------


@latest
def reference(case: Case) -> tuple[tuple[Tensor, ...], float]:
    """Loss and gradient in float64, and what the close calls may change of the gradient.

    A pixel within float32's rounding of its decision may be kept or not; it moves the gradient by
    up to its share of the mean, given here relative to the largest entry.
    """
    logits, delta = data(case)
    z = logits.detach().double().requires_grad_()
    log_p = enlarged(z, case.size).log_softmax(dim=1)
    with torch.no_grad():
        a = (log_p - delta.double().log()[:, None, None]) / case.gamma
        cost = a.logsumexp(dim=1, keepdim=True)
        soft = torch.where(cost > 0, (a - cost).exp(), 0.0)
    loss = -(soft * log_p).sum() / (cost > 0).sum()
    loss.backward()
    assert z.grad is not None
    close = float((cost.abs() < 1e-5).sum() / (cost > 0).sum() / z.grad.abs().max())
    return (loss.detach(), z.grad), close


@contests(QUICK, FULL, CONTENDERS, once=(COMPILED,))
def bench(case: Case, contender: str, contend: Callable[..., None]) -> None:
    logits, delta = data(case)
    rest = (delta, case.gamma, case.size)

    def step() -> tuple[Tensor, ...]:
        return forward_backward(CONTENDERS[contender], logits, rest=rest)

    # F.interpolate computes its coordinates in float32; eager PyTorch is granted that.
    wanted, close = reference(case)
    assert_loss(step(), wanted, 1e-4, 2e-3 + close)
    contend(
        step,
        operator="pseudo_label_loss",
        group=str(case),
        contender=contender,
        bytes=bytes_to_move(case),
        values=case.pixels * case.shape[1],
    )
