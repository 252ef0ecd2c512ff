"""Bilinear resampling in two steps, along the columns and then along the rows.

Why not `F.interpolate(mode="bilinear")`, whose convention this follows: it computes the source
coordinates in float32, and at a width of 1024 that error alone uses up the tolerance of the
operators. Here the coordinates are exact integer fractions, so each weight is correctly rounded.

The adjoint is written as a gather, too: every source line collects the output lines that read it,
in order. Autograd's own adjoint of an indexed read is a scatter with atomic additions, whose
result changes from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .numerics import arithmetic_dtype


def _positions(source: int, output: int, align_corners: bool, like: Tensor) -> tuple[Tensor, int]:
    """Where every output line lies among the source lines: numerators [output], denominator."""
    line = torch.arange(output, device=like.device)
    if align_corners:
        return line * (source - 1), max(output - 1, 1)
    return ((2 * line + 1) * source - output).clamp(min=0), 2 * output


def _coordinates(
    source: int, output: int, align_corners: bool, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For every output line: the two source lines [output] int64 and the weight of the second."""
    numerator, denominator = _positions(source, output, align_corners, like)
    first = numerator // denominator
    second = (first + 1).clamp(max=source - 1)
    weight = (numerator - first * denominator).to(like.dtype) / denominator
    return first, second, weight


def _taps(source: int, output: int, align_corners: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """For every source line: the output lines that read it and their weights, [source, taps].

    They are the neighbours whose position is less than one source line away.
    """
    first, second, weight = _coordinates(source, output, align_corners, like)
    numerator, denominator = _positions(source, output, align_corners, like)
    lines, source_lines = (output - 1, source - 1) if align_corners else (output, source)
    taps = output if source == 1 else min(2 * lines // source_lines + 1, output)
    line = torch.arange(source, device=like.device)
    start = torch.searchsorted(numerator, (line - 1) * denominator, right=True)
    reader = start[:, None] + torch.arange(taps, device=like.device)
    inside = reader < output
    reader = reader.clamp(max=output - 1)
    shares = (first[reader] == line[:, None]) * (1 - weight[reader])
    shares = shares + (second[reader] == line[:, None]) * weight[reader]
    return reader, shares * inside


def _along(weights: Tensor, axis: int) -> Tensor:
    """Shape weights so that they run along `axis` (2 or 3) of [B, K, h, w]."""
    return weights[:, None] if axis == 2 else weights


class _Resample(torch.autograd.Function):
    """Linear interpolation of [B, K, h, w] along one axis."""

    @staticmethod
    def forward(values: Tensor, axis: int, output: int, align_corners: bool) -> Tensor:
        first, second, weight = _coordinates(values.shape[axis], output, align_corners, values)
        near = values.index_select(axis, first).mul_(_along(1 - weight, axis))
        return near.addcmul_(values.index_select(axis, second), _along(weight, axis))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, ctx.axis, _, ctx.align_corners = inputs
        ctx.source = values.shape[ctx.axis]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        spread = _ResampleAdjoint.apply(gradient, ctx.axis, ctx.source, ctx.align_corners)
        return spread, None, None, None


class _ResampleAdjoint(torch.autograd.Function):
    """The transpose of `_Resample`; its own gradient is `_Resample` again."""

    @staticmethod
    def forward(gradient: Tensor, axis: int, source: int, align_corners: bool) -> Tensor:
        reader, shares = _taps(source, gradient.shape[axis], align_corners, gradient)
        if torch.compiler.is_compiling():  # one fused sum, for any number of taps
            gathered = gradient.index_select(axis, reader.flatten()).unflatten(axis, reader.shape)
            return (gathered * (shares[:, :, None] if axis == 2 else shares)).sum(axis + 1)
        total = gradient.new_zeros([*gradient.shape[:axis], source, *gradient.shape[axis + 1 :]])
        for tap, share in zip(reader.unbind(1), shares.unbind(1), strict=True):
            total.addcmul_(gradient.index_select(axis, tap), _along(share, axis))
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        gradient, ctx.axis, _, ctx.align_corners = inputs
        ctx.output = gradient.shape[ctx.axis]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        spread = _Resample.apply(gradient, ctx.axis, ctx.output, ctx.align_corners)
        return spread, None, None, None


def upsample(
    values: Tensor,  # [B, K, h, w] float32 | float64
    size: tuple[int, int],  # (H, W)
    align_corners: bool,
) -> Tensor:  # [B, K, H, W], in the values' dtype
    """Bilinear resampling in PyTorch's convention; a size that does not change is left alone."""
    height, width = size
    # Columns first: they are the dearer ones to gather, and there are fewer rows to do it for.
    if values.shape[3] != width:
        values = _Resample.apply(values, 3, width, align_corners)
    if values.shape[2] != height:
        values = _Resample.apply(values, 2, height, align_corners)
    return values


def evaluation_size(logits: Tensor, size: tuple[int, int] | None) -> tuple[int, int]:
    """(H, W) that an operator is evaluated at."""
    return (logits.shape[2], logits.shape[3]) if size is None else size


def upsampled_logits(
    logits: Tensor,  # [B, K, h, w] any float dtype
    size: tuple[int, int],  # (H, W)
    align_corners: bool,
) -> Tensor:  # [B, K, H, W] in the arithmetic dtype, up to a constant for each pixel
    """Logits at the size of evaluation, up to a constant per pixel that no softmax sees.

    The largest logit of each location is taken off before resampling: softmax does not change,
    and float32 then rounds differences between classes, not a common offset.
    """
    values = logits.to(arithmetic_dtype(logits.dtype))
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return upsample(values - values.detach().amax(dim=1, keepdim=True), size, align_corners)
