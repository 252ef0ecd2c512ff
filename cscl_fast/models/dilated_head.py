"""The pixel classifier of DeepLab-v2: four dilated 3x3 convolutions as one matrix product.

Every convolution here is a sum over its taps of a K x C matrix times a shifted feature map. Moving
the shift behind the product leaves one product for all of them,

    taps[b, y, x, (tap, k)] = sum_c weight[k, c, tap] features[b, c, y, x],

and a sum of shifted maps of K channels, which is cheap: K is some 20 where C is 2048. The four
centre taps read the same location and are added beforehand: 33 taps, not 36. In channels-last
memory the features are the product's left factor as they lie there.

The gate of the transferability path is one number for each location, so it may be multiplied after
the product as well as before it: C(F) and C(F (1 + P)) share the product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_DILATIONS = (6, 12, 18, 24)

# Where each tap reads, relative to the location it is summed into: the centre, then the eight
# others of each dilation, row by row.
OFFSETS = (
    (0, 0),
    *(
        (y * dilation, x * dilation)
        for dilation in HEAD_DILATIONS
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
        if (y, x) != (0, 0)
    ),
)
CENTRE = 4  # of the nine taps of a 3x3 convolution, row by row


class DilatedHead(nn.Module):
    """The sum of four 3x3 convolutions that differ in reach (dilation 6, 12, 18, 24).

    The weights are those of four `nn.Conv2d`, under their names; what is computed is described at
    the top of this file. It is the same on every device: a library's dilated convolution with some
    20 outputs fills a matrix unit no better than this product does, and takes four passes over the
    features, or eight with the gate.

    Half-precision products (under autocast) are summed over the taps in float32, and returned so.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=dilation, dilation=dilation)
            for dilation in HEAD_DILATIONS
        )
        for branch in self.branches:
            assert isinstance(branch, nn.Conv2d) and branch.bias is not None
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(
        self,
        features: Tensor,  # [B, C, h, w]
        gate: Tensor | None = None,  # [B, 1, h, w]
    ) -> Tensor | tuple[Tensor, Tensor]:  # [B, K, h, w], channels-last
        """The logits of `features`; with a gate also those of `features * (1 + gate)`."""
        taps = F.linear(features.permute(0, 2, 3, 1), self._stacked_weights())
        taps = taps.unflatten(3, (len(OFFSETS), -1))  # [B, h, w, taps, K]
        bias = torch.stack([branch.bias for branch in self._convolutions()]).sum(0)
        plain = (ShiftedSum.apply(taps) + bias).permute(0, 3, 1, 2)
        if gate is None:
            return plain
        factor = (1 + gate).to(taps.dtype).permute(0, 2, 3, 1)[..., None]  # [B, h, w, 1, 1]
        gated = (ShiftedSum.apply(taps * factor) + bias).permute(0, 3, 1, 2)
        return plain, gated

    def _convolutions(self) -> list[Any]:
        return list(self.branches)

    def _stacked_weights(self) -> Tensor:  # [taps K, C]
        """The taps' K x C matrices below each other, in the order of `OFFSETS`."""
        centres, others = [], []
        for branch in self._convolutions():
            # In this order of the dimensions no copy is needed, neither here nor for the gradient.
            taps = branch.weight.permute(0, 2, 3, 1).flatten(1, 2).unbind(1)  # 9 x [K, C]
            centres.append(taps[CENTRE])
            others += [*taps[:CENTRE], *taps[CENTRE + 1 :]]
        return torch.cat([torch.stack(centres).sum(0), *others])


def _overlap(offset: int, length: int) -> tuple[slice, slice]:
    """Where an output location lies on the grid with its input, and that input."""
    return (
        slice(max(0, -offset), max(0, min(length, length - offset))),
        slice(max(0, offset), max(0, min(length, length + offset))),
    )


class ShiftedSum(torch.autograd.Function):
    """sums[b, y, x] = sum over t of taps[b, y + OFFSETS[t].y, x + OFFSETS[t].x, t], 0 outside.

    taps [B, h, w, taps, K] to [B, h, w, K], float32 for half-precision inputs. Linear, and so
    differentiable any number of times: the gradient is `ShiftedCopies`, whose gradient this is.
    """

    @staticmethod
    def forward(taps: Tensor) -> Tensor:
        height, width = taps.shape[1], taps.shape[2]
        half = taps.dtype in (torch.float16, torch.bfloat16)
        sums = taps[..., 0, :].to(torch.float32 if half else taps.dtype, copy=True)
        sums = sums.contiguous()
        for tap, (dy, dx) in enumerate(OFFSETS[1:], start=1):
            (to_y, from_y), (to_x, from_x) = _overlap(dy, height), _overlap(dx, width)
            sums[:, to_y, to_x] += taps[:, from_y, from_x, tap]
        return sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        copies: Tensor = ShiftedCopies.apply(gradient, ctx.dtype)
        return copies


class ShiftedCopies(torch.autograd.Function):
    """copies[b, y, x, t] = sums[b, y - OFFSETS[t].y, x - OFFSETS[t].x], 0 outside.

    sums [B, h, w, K] to [B, h, w, taps, K] of the given dtype: the transpose of `ShiftedSum`.
    """

    @staticmethod
    def forward(sums: Tensor, dtype: torch.dtype) -> Tensor:
        batch, height, width, classes = sums.shape
        copies = sums.new_zeros((batch, height, width, len(OFFSETS), classes), dtype=dtype)
        for tap, (dy, dx) in enumerate(OFFSETS):
            (to_y, from_y), (to_x, from_x) = _overlap(dy, height), _overlap(dx, width)
            copies[:, from_y, from_x, tap] = sums[:, to_y, to_x].to(dtype)
        return copies

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, torch.dtype], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ShiftedSum.apply(gradient).to(ctx.dtype), None
