"""class_centroids, forward and backward, against one-hot products and loops over the classes."""

from __future__ import annotations

from collections.abc import Callable

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
    """Features and labels read once, the gradient written once."""
    return 2 * case.features_bytes + case.labels_bytes


@latest
def data(case: Features) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels, and what the centroids are multiplied with: [K, C], a given gradient."""
    labels = soft_labels_of(case) if case.soft else hard_labels_of(case)
    generator = torch.Generator().manual_seed(5)
    return (
        features_of(case, 0),
        labels,
        torch.randn(case.classes, case.shape[1], generator=generator),
    )


CONTENDERS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    LITERAL: centroids_by_loop,
    EAGER: centroids_by_matmul,
    COMPILED: lambda *arguments: compiled(centroids_by_matmul)(*arguments),
    OURS: ops.class_centroids,
}


@latest
def reference(case: Features) -> tuple[Tensor, Tensor, Tensor]:
    """Centroids, masses and the gradient by the features, in float64."""
    features, labels, given = data(case)
    weights = one_hot_weights(*split(labels), case.classes).double()
    mass = weights.sum(dim=0)
    share = weights / torch.where(mass > 0, mass, 1.0)
    batch, channels, height, width = case.shape
    rows = features.detach().double().permute(0, 2, 3, 1).reshape(-1, channels)
    gradient = (share @ given.double()).view(batch, height, width, channels)
    return share.T @ rows, mass, gradient.permute(0, 3, 1, 2)


@contests(
    QUICK, [*FULL, Features((1, 2048, 65, 129), soft=True)], CONTENDERS, once=(LITERAL, COMPILED)
)
def bench(case: Features, contender: str, contend: Callable[..., None]) -> None:
    features, labels, given = data(case)
    centroids, mass, gradient = reference(case)
    function = CONTENDERS[contender]
    with torch.no_grad():
        answer = function(features, labels, case.classes)
    torch.testing.assert_close(answer[0].double(), centroids, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer[1].double(), mass, rtol=1e-5, atol=1e-6)

    def scalar(features: Tensor) -> Tensor:
        return (function(features, labels, case.classes)[0] * given).sum()

    def step() -> tuple[Tensor, ...]:
        return forward_backward(scalar, features)

    total = (centroids * given.double()).sum()
    assert_loss(step(), (total, gradient), 1e-3)  # a sum whose terms cancel
    contend(
        step,
        operator="class_centroids",
        group=str(case),
        contender=contender,
        bytes=bytes_to_move(case),
    )
