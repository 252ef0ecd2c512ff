"""How cost grows with pixels, classes and threads: every operator against good eager PyTorch.

Only without --quick. Eager PyTorch is left out where it would hold more than a few gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import bench_class_threshold as threshold
import bench_pseudo_label_loss as loss
import bench_soft_pseudo_label as soft
import bench_symmetric_soft_divergence as divergence
import bench_transfer_reward as reward
import bench_upsampled_cross_entropy as entropy
import pytest
import torch
from contests import (
    EAGER,
    OURS,
    Case,
    assert_loss,
    forward_backward,
    latest,
    network_labels,
    network_logits,
    random_thresholds,
)
from feature_contests import Features, centroids_by_matmul, features_of, hard_labels_of
from torch import Tensor

from cscl_fast import ops

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

SIZES = {
    "64 K": (256, 256),
    "256 K": (512, 512),
    "1 M": (1024, 1024),
    "4 M": (2048, 2048),
    "16 M": (4096, 4096),
}
CLASSES = (2, 4, 8, 13, 16, 19, 32, 64, 128, 256)
# Logits that eager PyTorch may be given: it holds about ten tensors of their size.
EAGER_ELEMENTS = 100_000_000
# Features have as many channels as fit; what grows is the number of locations.
CHANNELS = 64


class Point(NamedTuple):
    """One axis of the sweep, and where on it."""

    axis: str
    shape: tuple[int, int, int]  # K, H, W
    threads: int | None = None  # None: as many as elsewhere

    def __str__(self) -> str:
        classes, height, width = self.shape
        where = f"{self.threads} threads " if self.threads is not None else ""
        return f"{self.axis}: {where}{classes} classes {height}x{width}"


POINTS = [
    *(Point("pixels", (19, *size)) for size in SIZES.values()),
    *(Point("classes", (classes, 256, 512)) for classes in CLASSES),
    *(Point("threads", (19, 512, 1024), threads) for threads in (1, 2)),
]


class Work(NamedTuple):
    """Both ways to compute the same thing, and the bytes that must move."""

    ours: Callable[[], Any]
    eager: Callable[[], Any]
    bytes: int


@latest
def logits_of(point: Point) -> Tensor:
    return network_logits(Case((1, *point.shape)))


@latest
def features_at(point: Point) -> Features:
    classes, height, width = point.shape
    return Features((1, CHANNELS, height, width), classes)


def work_of(operator: str, point: Point) -> Work:
    classes, height, width = point.shape
    case = Case((1, classes, height, width))
    delta = random_thresholds(classes)
    if operator in ("class_centroids", "symmetric_soft_divergence"):
        return _feature_work(operator, point)
    z = logits_of(point).requires_grad_(
        operator in ("pseudo_label_loss", "upsampled_cross_entropy")
    )
    if operator == "soft_pseudo_labels":
        return Work(
            lambda: soft.ours(z, delta, 0.25, None),
            lambda: soft.eager(z, delta, 0.25, None),
            soft.bytes_to_move(case),
        )
    if operator == "pseudo_label_loss":
        rest = (delta, 0.25, None)
        return Work(
            lambda: forward_backward(loss.ours, z, rest=rest),
            lambda: forward_backward(loss.eager, z, rest=rest),
            loss.bytes_to_move(case),
        )
    if operator == "upsampled_cross_entropy":
        labels = (network_labels((1, height, width), classes),)
        return Work(
            lambda: forward_backward(entropy.ours, z, rest=labels),
            lambda: forward_backward(entropy.eager, z, rest=labels),
            entropy.bytes_to_move(case),
        )
    if operator == "ClassThresholds":
        return Work(
            lambda: threshold.ours_streaming([z], 0.35, None),
            lambda: threshold.eager([z], 0.35, None),
            case.logits_bytes,
        )
    if operator == "class_thresholds":
        return Work(
            lambda: threshold.ours([z], 0.35, None),
            lambda: threshold.eager([z], 0.35, None),
            case.logits_bytes,
        )
    labels = network_labels((1, height, width), classes)
    gated = z * 1.1 + 0.25
    return Work(
        lambda: reward.ours(gated, z, labels),
        lambda: reward.eager(gated, z, labels),
        reward.bytes_to_move(case),
    )


def _feature_work(operator: str, point: Point) -> Work:
    case = features_at(point)
    source, labels = features_of(case, 0), hard_labels_of(case)
    if operator == "class_centroids":

        def total(centroids: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
            return forward_backward(
                lambda features: centroids(features, labels, case.classes)[0].square().sum(), source
            )

        return Work(
            lambda: total(ops.class_centroids),
            lambda: total(centroids_by_matmul),
            2 * case.features_bytes + case.labels_bytes,
        )
    target = features_of(case, 1)
    rest = (labels, labels, case.classes)
    return Work(
        lambda: forward_backward(divergence.ours, source, target, rest=rest),
        lambda: forward_backward(divergence.eager, source, target, rest=rest),
        4 * case.features_bytes + 2 * case.labels_bytes,
    )


OPERATORS = (
    "soft_pseudo_labels",
    "pseudo_label_loss",
    "upsampled_cross_entropy",
    "ClassThresholds",
    "class_thresholds",
    "class_centroids",
    "symmetric_soft_divergence",
    "transfer_reward",
)
LOSSES = ("pseudo_label_loss", "upsampled_cross_entropy", "symmetric_soft_divergence")


@pytest.fixture
def at_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    threads = request.node.callspec.params["point"].threads
    if threads is not None:
        torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


def agree(operator: str, ours: Any, eager: Any) -> None:
    """The operators' own benchmarks compare with float64; here both ways have to agree."""
    if operator in (*LOSSES, "class_centroids"):
        wanted = tuple(tensor.double() for tensor in eager)
        assert_loss(ours, wanted, 1e-4, 2e-3)
    elif operator in ("ClassThresholds", "class_thresholds"):
        assert (ours - eager).abs().max() <= 1e-4
    elif operator == "soft_pseudo_labels":
        assert (ours[1] != eager[1]).float().mean() <= 1e-4  # decisions within rounding
    else:
        assert (ours[0] != eager[0]).float().mean() <= 1e-3
        assert torch.equal(ours[1], eager[1])


def contests() -> list[Any]:
    """(point, operator, contender), without eager PyTorch where it would not fit."""
    found = []
    for point in POINTS:
        classes, height, width = point.shape
        fits = max(classes, CHANNELS) * height * width <= EAGER_ELEMENTS
        for operator in OPERATORS:
            for contender in (EAGER, OURS) if fits else (OURS,):
                name = f"{operator} {point}-{contender}"
                found.append(pytest.param(point, operator, contender, fits, id=name))
    return found


@pytest.mark.parametrize(("point", "operator", "contender", "fits"), contests())
def bench(
    point: Point,
    operator: str,
    contender: str,
    fits: bool,
    contend: Callable[..., None],
    at_threads: None,
) -> None:
    work = work_of(operator, point)
    with torch.set_grad_enabled(operator in (*LOSSES, "class_centroids")):
        if fits:
            agree(operator, work.ours(), work.eager())
        else:
            work.ours()
        contend(
            work.ours if contender == OURS else work.eager,
            operator="sweep",
            group=f"{operator} {point}",
            contender=contender,
            bytes=work.bytes,
            budget=1.0,
        )
