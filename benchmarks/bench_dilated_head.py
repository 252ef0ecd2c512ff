"""DeepLab's head, both paths forward and backward, against four convolutions for each path."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cscl_fast.models.dilated_head import HEAD_DILATIONS, DilatedHead

pytestmark = pytest.mark.timeout(900)

CLASSES = 19
SHAPES = [
    (1, 2048, 32, 64),  # features of ResNet-101 at 256x512
    pytest.param((1, 2048, 64, 128), marks=pytest.mark.full),  # ... at 512x1024
    pytest.param((1, 512, 32, 64), marks=pytest.mark.full),  # of ResNet-18 at 256x512
]

Answer = tuple[Tensor, Tensor]  # logits of the plain and of the gated path


def convolutions(head: DilatedHead, features: Tensor, gate: Tensor) -> Answer:
    """As DeepLab is written everywhere, on both features."""

    def logits(inputs: Tensor) -> Tensor:
        branches = zip(head.branches, HEAD_DILATIONS, strict=True)
        maps = [
            F.conv2d(inputs, branch.weight, branch.bias, padding=reach, dilation=reach)
            for branch, reach in branches
        ]
        return maps[0] + maps[1] + maps[2] + maps[3]

    return logits(features), logits(features * (1 + gate))


def ours(head: DilatedHead, features: Tensor, gate: Tensor) -> Answer:
    plain, gated = head(features, gate)
    return plain, gated


CONTENDERS: dict[str, Callable[..., Answer]] = {
    "four convolutions": convolutions,
    "cscl_fast": ours,
}


def group(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=group)
def bench(shape: tuple[int, ...], contender: str, contend: Callable[..., None]) -> None:
    torch.manual_seed(0)
    batch, channels, height, width = shape
    head = DilatedHead(channels, CLASSES).to(memory_format=torch.channels_last)
    features = torch.rand(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    gate = torch.rand(batch, 1, height, width).requires_grad_()
    leaves = [features, gate, *head.parameters()]
    weights = torch.randn(2, batch, CLASSES, height, width)

    def step(function: Callable[..., Answer]) -> tuple[Answer, tuple[Tensor, ...]]:
        logits = function(head, features, gate)
        objective = (torch.stack(logits) * weights).sum()
        return logits, torch.autograd.grad(objective, leaves)

    function = CONTENDERS[contender]
    for expected, found in zip(step(convolutions), step(function), strict=True):
        for a, b in zip(expected, found, strict=True):
            # float32 sums over all locations in another order
            assert (a - b).abs().max() <= 1e-4 * a.abs().max() + 1e-5
    contend(
        lambda: step(function),
        operator="dilated_head",
        group=group(shape),
        contender=contender,
        # Features read, their gradient written; weights and maps of K channels are small beside.
        bytes=2 * features.numel() * 4,
        values=None,
    )
