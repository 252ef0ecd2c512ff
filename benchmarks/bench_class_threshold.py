"""ClassThresholds and class_thresholds against what self-training codes do, and against sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
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
)
from torch import Tensor

from cscl_fast import ops

pytestmark = pytest.mark.timeout(1800)

PORTION = 0.35
LISTS, SORT = "lists and sort", "torch sort"
Size = tuple[int, int] | None


class Stream(NamedTuple):
    """Images that come one after the other, or one tensor (`one_shot`)."""

    case: Case  # of one image
    images: int
    one_shot: bool = False

    def __str__(self) -> str:
        return str(self.case) if self.one_shot else f"{self.images} x {self.case}"


QUICK = [
    Stream(Case((1, 19, 512, 1024)), 4),
    Stream(Case((1, 19, 32, 64)), 1),
    Stream(Case((1, 19, 512, 1024)), 1, one_shot=True),
    Stream(Case((1, 19, 32, 64)), 1, one_shot=True),
]
FULL = [
    Stream(Case((1, 19, 65, 129), (512, 1024)), 4),
    Stream(Case((1, 16, 512, 1024)), 4),
    Stream(Case((1, 13, 512, 1024)), 4),
    Stream(Case((4, 19, 256, 512)), 1),
    Stream(Case((1, 19, 512, 1024), dtype=torch.bfloat16), 4),
    Stream(Case((1, 19, 512, 1024), channels_last=True), 4),
    Stream(Case((1, 19, 65, 129), (512, 1024)), 1, one_shot=True),
    Stream(Case((1, 19, 512, 1024), dtype=torch.bfloat16), 1, one_shot=True),
]


def bytes_to_move(stream: Stream) -> int:
    """Logits read once. (The counts of the stream stay in the caches.)"""
    return stream.images * stream.case.logits_bytes


@latest
def data(stream: Stream) -> list[Tensor]:
    return [network_logits(stream.case, seed) for seed in range(stream.images)]


# ---- the contenders -----------------------------------------------------------------------------


def place_in_order(portion: float, count: int) -> int:
    return min(int(portion * count), count - 1)


def lists(images: list[Tensor], portion: float, size: Size) -> Tensor:
    """The procedure of class-balanced self-training codes: Python lists of every pixel."""
    classes = images[0].shape[1]
    collected: list[list[float]] = [[] for _ in range(classes)]
    for z in images:
        probabilities = torch.softmax(enlarged(z.float(), size), dim=1).numpy()
        for probability in probabilities:
            prediction = np.argmax(probability, axis=0)
            confidence = np.amax(probability, axis=0)
            for k in range(classes):
                collected[k].extend(confidence[prediction == k])
    thresholds = np.ones(classes, dtype=np.float32)
    for k in range(classes):
        if collected[k]:
            collected[k].sort(reverse=True)
            thresholds[k] = collected[k][place_in_order(portion, len(collected[k]))]
    return torch.from_numpy(thresholds)


def literal(images: list[Tensor], portion: float, size: Size) -> Tensor:
    """Algorithm 1 line by line: collect the confidences of each class, sort, read one place."""
    classes = images[0].shape[1]
    collected: list[list[Tensor]] = [[] for _ in range(classes)]
    for z in images:
        confidence, prediction = torch.softmax(enlarged(z.float(), size), dim=1).max(dim=1)
        for k in range(classes):
            collected[k].append(confidence[prediction == k])
    thresholds = torch.ones(classes)
    for k in range(classes):
        ordered = torch.cat(collected[k]).sort(descending=True).values
        if ordered.numel() > 0:
            thresholds[k] = ordered[place_in_order(portion, ordered.numel())]
    return thresholds


def confidences(z: Tensor, size: Size) -> tuple[Tensor, Tensor]:  # both [N], float32 and int64
    """Largest probability and its class; no probability of another class is computed."""
    z = enlarged(z.float(), size)
    largest, prediction = z.max(dim=1)
    return (largest - z.logsumexp(dim=1)).exp().flatten(), prediction.flatten()


def select(found: list[tuple[Tensor, Tensor]], classes: int, portion: float) -> Tensor:
    """One selection for each class, which needs no sorted order."""
    confidence = torch.cat([pair[0] for pair in found])
    prediction = torch.cat([pair[1] for pair in found])
    # Pixels of a class side by side: one stable sort of small integers.
    order = prediction.to(torch.uint8).argsort(stable=True)
    counts = torch.bincount(prediction, minlength=classes).tolist()
    thresholds = torch.ones(classes)
    for k, members in enumerate(confidence[order].split(counts)):
        count = members.numel()
        if count > 0:
            thresholds[k] = members.kthvalue(count - place_in_order(portion, count)).values
    return thresholds


def eager(images: list[Tensor], portion: float, size: Size) -> Tensor:
    """As one would write it with care: log-sum-exp for the confidence, selection by kthvalue."""
    found = [confidences(z, size) for z in images]
    return select(found, images[0].shape[1], portion)


def compiled_eager(images: list[Tensor], portion: float, size: Size) -> Tensor:
    """The confidences compiled; the selection depends on counts and stays as it is."""
    found = [compiled(confidences)(z, size) for z in images]
    return select(found, images[0].shape[1], portion)


def torch_sort(images: list[Tensor], portion: float, size: Size) -> Tensor:
    """One sort of all pixels, by class and then by confidence."""
    classes = images[0].shape[1]
    found = [confidences(z, size) for z in images]
    confidence = torch.cat([pair[0] for pair in found])
    prediction = torch.cat([pair[1] for pair in found])
    # The confidence is in (0, 1]: its complement orders the pixels of a class.
    ordered = (prediction + (1 - confidence.double())).sort().values
    counts = torch.bincount(prediction, minlength=classes)
    start = counts.cumsum(0) - counts
    rank = torch.minimum((counts * portion).long(), counts - 1).clamp(min=0)
    place = (start + rank).clamp(max=ordered.numel() - 1)
    found_at = 1 - (ordered[place] - torch.arange(classes))
    return torch.where(counts > 0, found_at, 1.0).float()


def ours_streaming(images: list[Tensor], portion: float, size: Size) -> Tensor:
    collected = ops.ClassThresholds(images[0].shape[1])
    for z in images:
        collected.update(z, size=size)
    return collected.compute(portion)


def ours(images: list[Tensor], portion: float, size: Size) -> Tensor:
    return ops.class_thresholds(images[0], portion, size=size)


CONTENDERS: dict[str, Callable[..., Tensor]] = {
    LISTS: lists,
    LITERAL: literal,
    SORT: torch_sort,
    EAGER: eager,
    COMPILED: compiled_eager,
    OURS: ours_streaming,
}


# ---- checking and timing ------------------------------------------------------------------------


@latest
def reference(stream: Stream) -> Tensor:
    """Order statistics of the confidences in float64."""
    pairs = [
        torch.softmax(enlarged(z.double(), stream.case.size), dim=1).max(dim=1)
        for z in data(stream)
    ]
    confidence = torch.cat([pair.values.flatten() for pair in pairs])
    prediction = torch.cat([pair.indices.flatten() for pair in pairs])
    wanted = torch.ones(stream.case.shape[1], dtype=torch.float64)
    for k in range(wanted.numel()):
        members = confidence[prediction == k].sort(descending=True).values
        if members.numel() > 0:
            wanted[k] = members[place_in_order(PORTION, members.numel())]
    return wanted


@contests(QUICK, FULL, CONTENDERS, once=(COMPILED, LISTS))
def bench(case: Stream, contender: str, contend: Callable[..., None]) -> None:
    images, size = data(case), case.case.size
    function = ours if case.one_shot and contender == OURS else CONTENDERS[contender]
    with torch.no_grad():
        error = (function(images, PORTION, size).double() - reference(case)).abs().max()
        # A stream answers with the centre of a bin. F.interpolate computes its coordinates in
        # float32, and a class of few pixels feels it when one of them changes sides.
        allowed = (2.0**-16 if contender == OURS else 0.0) + (1e-3 if size else 1e-5)
        assert error <= allowed, f"a threshold is off by {error:.2e}"
        contend(
            lambda: function(images, PORTION, size),
            operator="class_thresholds" if case.one_shot else "ClassThresholds",
            group=str(case),
            contender=contender,
            bytes=bytes_to_move(case),
            values=case.images * case.case.pixels * case.case.shape[1],
        )
