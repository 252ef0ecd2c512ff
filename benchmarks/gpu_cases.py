"""The cases of `gpu_kernels.py`: the CPU benchmarks' sizes and batches of 8, in two number types.

The contenders are those of the bench_*.py; what is right is the reference in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from contests import Case
from feature_contests import Features

FLOAT, BFLOAT = torch.float32, torch.bfloat16


class Planned(NamedTuple):
    """A case, and its rank: 0 is measured first, and compiled by torch.compile too."""

    operator: str
    case: Case | Features
    rank: int = 1
    images: int = 1  # ClassThresholds: batches that come one after the other


FULL_SIZE = (512, 1024)
COARSE = (65, 129)  # an eighth of it, and what a dilated ResNet makes of it


def logits(
    batch: int,
    dtype: torch.dtype = FLOAT,
    *,
    upsampled: bool = False,
    channels_last: bool = False,
    classes: int = 19,
    grid: tuple[int, int] | None = None,
    gamma: float = 0.25,
) -> Case:
    grid = grid or (COARSE if upsampled else FULL_SIZE)
    size = FULL_SIZE if upsampled else None
    return Case((batch, classes, *grid), size, dtype, channels_last, gamma)


def features(
    batch: int, dtype: torch.dtype = FLOAT, *, channels_last: bool = True, classes: int = 19
) -> Features:
    return Features((batch, 2048, *COARSE), classes, False, dtype, channels_last)


SMALL = logits(1, grid=(32, 64))  # a launch or two, whatever is computed


def _soft_pseudo_labels() -> list[Planned]:
    name = "soft_pseudo_labels"
    plan = [Planned(name, SMALL, 0)]
    for upsampled in (False, True):
        plan.append(Planned(name, logits(1, upsampled=upsampled), 0))
        plan.append(Planned(name, logits(8, upsampled=upsampled), 0))
        plan.append(Planned(name, logits(1, BFLOAT, upsampled=upsampled), 0))
        plan.append(Planned(name, logits(8, BFLOAT, upsampled=upsampled)))
        for dtype in (FLOAT, BFLOAT):
            case = logits(1, dtype, upsampled=upsampled, channels_last=True)
            plan.append(Planned(name, case))
        plan.append(Planned(name, logits(8, upsampled=upsampled, channels_last=True)))
    plan.append(Planned(name, logits(1, classes=16)))
    plan.append(Planned(name, logits(1, classes=13)))
    plan.append(Planned(name, logits(4, grid=(256, 512))))
    plan.append(Planned(name, logits(1, gamma=0.3)))
    plan.append(Planned(name, logits(1, classes=64, grid=(256, 512))))
    return plan


def _losses(name: str) -> list[Planned]:
    plan = [
        Planned(name, SMALL, 0),
        Planned(name, logits(1, upsampled=True), 0),
        Planned(name, logits(8, upsampled=True), 0),
        Planned(name, logits(1, BFLOAT, upsampled=True), 0),
        Planned(name, logits(8, BFLOAT, upsampled=True)),
        Planned(name, logits(1)),
        Planned(name, logits(8)),
        Planned(name, logits(1, BFLOAT)),
        Planned(name, logits(1, upsampled=True, channels_last=True)),
        Planned(name, logits(1, BFLOAT, upsampled=True, channels_last=True)),
        Planned(name, logits(1, channels_last=True)),
        Planned(name, logits(4, upsampled=True)),
        Planned(name, logits(1, upsampled=True, classes=16)),
        Planned(name, logits(1, upsampled=True, classes=13)),
    ]
    return plan


def _thresholds() -> list[Planned]:
    stream, once = "ClassThresholds", "class_thresholds"
    return [
        Planned(stream, logits(1), 0, images=4),
        Planned(stream, logits(1, upsampled=True), 0, images=4),
        Planned(once, logits(1), 0),
        Planned(once, SMALL, 0),
        Planned(stream, SMALL),
        Planned(stream, logits(8), images=1),
        Planned(stream, logits(8, upsampled=True), images=1),
        Planned(stream, logits(1, BFLOAT), images=4),
        Planned(stream, logits(1, BFLOAT, upsampled=True), images=4),
        Planned(stream, logits(1, channels_last=True), images=4),
        Planned(stream, logits(4, grid=(256, 512)), images=1),
        Planned(once, logits(8)),
        Planned(once, logits(1, upsampled=True)),
        Planned(once, logits(1, BFLOAT)),
    ]


def _features(name: str) -> list[Planned]:
    small = Features((1, 19, 32, 64))
    return [
        Planned(name, features(1), 0),
        Planned(name, features(8), 0),
        Planned(name, features(1, BFLOAT), 0),
        Planned(name, small, 0),
        Planned(name, features(8, BFLOAT)),
        Planned(name, features(1, channels_last=False)),
        Planned(name, features(8, channels_last=False)),
        Planned(name, features(1, BFLOAT, channels_last=False)),
        Planned(name, features(1, classes=16)),
        Planned(name, features(1, classes=13)),
        Planned(name, Features((4, 2048, 33, 65))),
        *([Planned(name, features(1)._replace(soft=True))] if name == "class_centroids" else []),
    ]


def _transfer_reward() -> list[Planned]:
    name = "transfer_reward"
    return [
        Planned(name, logits(4, grid=COARSE), 0),
        Planned(name, SMALL, 0),
        Planned(name, logits(8, grid=COARSE), 0),
        Planned(name, logits(8, BFLOAT, grid=COARSE)),
        Planned(name, logits(4, BFLOAT, grid=COARSE)),
        Planned(name, logits(4, grid=COARSE, channels_last=True)),
        Planned(name, logits(1)),
        Planned(name, logits(4, grid=COARSE, classes=16)),
    ]


def plan() -> list[Planned]:
    """Every case, those of rank 0 first."""
    everything = [
        *_soft_pseudo_labels(),
        *_losses("pseudo_label_loss"),
        *_losses("upsampled_cross_entropy"),
        *_thresholds(),
        *_features("class_centroids"),
        *_features("symmetric_soft_divergence"),
        *_transfer_reward(),
    ]
    return sorted(everything, key=lambda planned: planned.rank)


def tiny_plan() -> list[Planned]:
    """Of each operator and kind of case one, so small that a CPU takes no time: a rehearsal."""
    found: dict[object, Planned] = {}
    for planned in plan():
        case = planned.case
        kind = (planned.operator, case.dtype, case.channels_last, getattr(case, "size", None))
        if kind in found or planned.rank > 0:
            continue
        batch, channels, height, width = case.shape
        if isinstance(case, Features):
            case = case._replace(shape=(batch, min(channels, 64), 9, 17))
        else:
            size = None if case.size is None else (64, 128)
            grid = (9, 17) if size else (max(8, height // 16), max(16, width // 16))
            case = case._replace(shape=(batch, channels, *grid), size=size)
        found[kind] = planned._replace(case=case)
    return list(found.values())
