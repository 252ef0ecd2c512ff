"""symmetric_soft_divergence, forward and backward, against Eq. 11-13 in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from contests import (
    COMPILED,
    EAGER,
    LITERAL,
    OURS,
    assert_loss,
    compiled,
    contests,
    forward_backward,
    latest,
)
from feature_contests import (
    FULL,
    QUICK,
    Features,
    centroids_by_loop,
    centroids_by_matmul,
    features_of,
    hard_labels_of,
    one_hot_weights,
    soft_labels_of,
    split,
)
from torch import Tensor

from cscl_fast import ops

pytestmark = pytest.mark.timeout(900)


def bytes_to_move(case: Features) -> int:
    """Both features and labels read once, both gradients written once."""
    soft = case._replace(soft=True)
    return 4 * case.features_bytes + case.labels_bytes + soft.labels_bytes


@latest
def data(case: Features) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source features, target features, source labels, target soft labels."""
    return features_of(case, 0), features_of(case, 1), hard_labels_of(case), soft_labels_of(case)


# ---- the contenders -----------------------------------------------------------------------------


def divergence_of(source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
    """Eq. 11 from the centroids and masses of the two sides."""
    present = (source[1] > 0) & (target[1] > 0)
    s, t = source[0].log_softmax(dim=1), target[0].log_softmax(dim=1)
    classwise = 0.5 * ((s.exp() - t.exp()) * (s - t)).sum(dim=1)
    return torch.where(present, classwise, 0.0).sum() / present.sum().clamp(min=1)


def by(
    centroids: Callable[..., tuple[Tensor, Tensor]],
    source: Tensor,
    target: Tensor,
    labels: Tensor,
    soft_labels: Tensor,
    classes: int,
) -> Tensor:
    return divergence_of(
        centroids(source, labels, classes), centroids(target, soft_labels, classes)
    )


literal = partial(by, centroids_by_loop)
eager = partial(by, centroids_by_matmul)


def good(source: Tensor, target: Tensor, labels: Tensor, soft: Tensor, classes: int) -> Tensor:
    """`eager` as torch.compile takes it."""
    return by(centroids_by_matmul, source, target, labels, soft, classes)


def ours(source: Tensor, target: Tensor, labels: Tensor, soft: Tensor, classes: int) -> Tensor:
    return ops.symmetric_soft_divergence(source, labels, target, soft, num_classes=classes)


CONTENDERS: dict[str, Callable[..., Tensor]] = {
    LITERAL: literal,
    EAGER: eager,
    COMPILED: lambda *arguments: compiled(good)(*arguments),
    OURS: ours,
}


# ---- checking and timing ------------------------------------------------------------------------


@latest
def reference(case: Features) -> tuple[Tensor, ...]:
    """Loss and both gradients in float64."""
    sides, leaves = [], []
    source, target, labels, soft_labels = data(case)
    for features, given in ((source, labels), (target, soft_labels)):
        weights = one_hot_weights(*split(given), case.classes).double()
        mass = weights.sum(dim=0)
        leaf = features.detach().double().requires_grad_()
        rows = leaf.permute(0, 2, 3, 1).reshape(-1, case.shape[1])
        sides.append((weights.T @ rows / torch.where(mass > 0, mass, 1.0)[:, None], mass))
        leaves.append(leaf)
    loss = divergence_of(*sides)
    loss.backward()
    assert leaves[0].grad is not None and leaves[1].grad is not None
    return loss.detach(), leaves[0].grad, leaves[1].grad


@contests(QUICK, FULL, CONTENDERS, once=(LITERAL, COMPILED))
def bench(case: Features, contender: str, contend: Callable[..., None]) -> None:
    source, target, labels, soft_labels = data(case)

    def step() -> tuple[Tensor, ...]:
        rest = (labels, soft_labels, case.classes)
        return forward_backward(CONTENDERS[contender], source, target, rest=rest)

    assert_loss(step(), reference(case), 1e-4, 1e-3)
    contend(
        step,
        operator="symmetric_soft_divergence",
        group=str(case),
        contender=contender,
        bytes=bytes_to_move(case),
    )
