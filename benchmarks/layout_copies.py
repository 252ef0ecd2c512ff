"""Which operators of a computation copy a feature map into another memory format.

    with layout_copies() as found:
        training_step()
    for copy in found:
        print(copy)

The networks are channels-last throughout. One tensor that is not makes PyTorch copy: the kernels
ask for their inputs in one format and call `contiguous` themselves. This looks at every `copy_`
that the profiler sees, also inside of other operators, and keeps those of 4-d tensors whose two
sides lie in memory in a different order of the dimensions.

`of_features` leaves out the copies of weights: oneDNN, which computes the convolutions on a CPU,
writes every weight gradient in an order of its own, and PyTorch puts it into that of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

# Kernels in which cuDNN changes the format by itself.
GPU_KERNELS = ("nchwToNhwc", "nhwcToNchw")


@dataclass(frozen=True)
class LayoutCopy:
    """One copy between memory formats."""

    operators: tuple[str, ...]  # the operator that copies, the one that called it, ...
    shape: tuple[int, ...]
    source: tuple[int, ...]  # strides in elements
    target: tuple[int, ...]

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{shape} from {self.source} to {self.target}: {' < '.join(self.operators)}"


@contextmanager
def layout_copies() -> Iterator[list[LayoutCopy]]:
    """The copies made inside, in a list that is filled at the end."""
    found: list[LayoutCopy] = []
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True) as profiler:
        yield found
    found += copies_of(profiler)


def copies_of(profiler: profile) -> list[LayoutCopy]:
    """The layout copies in what was profiled with `record_shapes=True`."""
    found = []
    events = list(profiler.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if event.name == "aten::copy_":
            target, source = (_tensor(value) for value in event.extra_fields.inputs[:2])
            if target and source and target[0] == source[0] and _differ(*target, source[1]):
                found.append(LayoutCopy(_callers(event), *target[:1], source[1], target[1]))
        elif any(name in event.name for name in GPU_KERNELS):
            found.append(LayoutCopy(_callers(event), (), (), ()))
    return found


def of_features(copies: Iterable[LayoutCopy], weights: Iterable[Tensor]) -> list[LayoutCopy]:
    """The copies that are not of the shape of one of the weights."""
    shapes = {tuple(weight.shape) for weight in weights}
    return [copy for copy in copies if copy.shape not in shapes]


def _tensor(value: Any) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Sizes and strides of an operator's input; None if it is no tensor."""
    if not hasattr(value, "strides"):
        return None
    return tuple(value.sizes), tuple(value.strides)


def _differ(shape: Sequence[int], first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two 4-d tensors lie in a different order of the dimensions that they have."""
    if len(shape) != 4 or math.prod(shape) <= 1:
        return False
    dimensions = [i for i in range(4) if shape[i] > 1]
    if any(strides[i] == 0 for i in dimensions for strides in (first, second)):
        return False  # one number for many places: to write it out is no change of format
    orders = [sorted(dimensions, key=lambda i: -strides[i]) for strides in (first, second)]
    return orders[0] != orders[1]


def _callers(event: Any) -> tuple[str, ...]:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.parent
    return tuple(names)
