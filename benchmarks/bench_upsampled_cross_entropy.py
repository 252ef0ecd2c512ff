"""upsampled_cross_entropy, forward and backward, against interpolation and cross-entropy."""

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
    network_labels,
    network_logits,
)
from torch import Tensor

from cscl_fast import ops

pytestmark = pytest.mark.timeout(900)

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
    """Logits and labels read once, the gradient written once."""
    return 2 * case.logits_bytes + 8 * case.pixels


@latest
def data(case: Case) -> tuple[Tensor, Tensor]:
    labels = network_labels((case.shape[0], *case.area), case.shape[1])
    return network_logits(case).requires_grad_(), labels


# ---- the contenders -----------------------------------------------------------------------------


def literal(z: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log p_label over the labelled pixels, one PyTorch call for each symbol."""
    p = torch.softmax(enlarged(z.float(), labels.shape[-2:]), dim=1)
    labelled = labels != 255
    chosen = p.gather(1, torch.where(labelled, labels, 0)[:, None])[:, 0]
    return -(torch.log(chosen) * labelled).sum() / labelled.sum()


def eager(z: Tensor, labels: Tensor) -> Tensor:
    """What training code does."""
    return F.cross_entropy(enlarged(z.float(), labels.shape[-2:]), labels, ignore_index=255)


def ours(z: Tensor, labels: Tensor) -> Tensor:
    return ops.upsampled_cross_entropy(z, labels)


CONTENDERS: dict[str, Callable[..., Tensor]] = {
    LITERAL: literal,
    EAGER: eager,
    COMPILED: lambda *arguments: compiled(eager)(*arguments),
    OURS: ours,
}


# ---- checking and timing ------------------------------------------------------------------------


@latest
def reference(case: Case) -> tuple[Tensor, ...]:
    """Loss and gradient in float64."""
    logits, labels = data(case)
    z = logits.detach().double().requires_grad_()
    loss = F.cross_entropy(enlarged(z, case.area), labels, ignore_index=255)
    loss.backward()
    assert z.grad is not None
    return loss.detach(), z.grad


@contests(QUICK, FULL, CONTENDERS, once=(COMPILED,))
def bench(case: Case, contender: str, contend: Callable[..., None]) -> None:
    logits, labels = data(case)

    def step() -> tuple[Tensor, ...]:
        return forward_backward(CONTENDERS[contender], logits, rest=(labels,))

    # F.interpolate computes its coordinates in float32; eager PyTorch is granted that.
    assert_loss(step(), reference(case), 1e-4, 2e-3)
    contend(
        step,
        operator="upsampled_cross_entropy",
        group=str(case),
        contender=contender,
        bytes=bytes_to_move(case),
        values=case.pixels * case.shape[1],
    )
