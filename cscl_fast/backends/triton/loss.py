"""What both losses share: their kernels' launches, when the gradient is found, and autograd.

A loss is `torch.ops.cscl_fast_triton.<name>(logits, ..., bool record) -> (loss, count, gradient)`.
On upsampled logits the forward walk finds the gradient, float32 [B, K, h, w], of the mean; at the
logits' own size `<name>_backward(scale, ...)` walks again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cscl_fast.backends.cpu.second_derivative import refuse_second_derivative
from cscl_fast.backends.reference.soft_pseudo_label import result_memory_format

from .launch import (
    INTERPRETED,
    QUAD_ELEMENTS_OF_THREAD,
    blocks_of,
    kernel_result,
    launch,
    padded_classes,
    pixel_block,
    pixel_stride,
    spread,
    tuned_block,
)
from .pixel_loss import mean_kernel, pixel_gradient_kernel, pixel_loss_kernel
from .quad_loss import corner_gradient_kernel, quad_loss_kernel
from .soft_pseudo_label import SMALLEST_GAMMA, precise
from .walk import Walk

_MEAN_BLOCK = 1024
_GRADIENT_BLOCK = 1024


class Terms:
    """What a loss is made of beside the logits: labels, or a teacher and thresholds."""

    def __init__(
        self,
        logits: Tensor,
        *,
        labels: Tensor | None = None,  # [B, H, W] int64
        ignore_index: int = -1,
        thresholds: Tensor | None = None,  # [K] float32
        gamma: float = 1.0,
        label_logits: Tensor | None = None,  # [B, K, h, w]
    ) -> None:
        # What is not read is the logits: a kernel's argument must be something.
        self.labels = logits if labels is None else labels.contiguous()
        self.thresholds = logits if thresholds is None else thresholds.contiguous()
        self.teacher = logits if label_logits is None else label_logits
        self.gamma = max(gamma, SMALLEST_GAMMA)
        self.ignore_index = ignore_index
        self.options = {
            "PSEUDO": labels is None,
            "TEACHER": label_logits is not None,
            "PRECISE": labels is None and precise(gamma),
        }


def _options(walk: Walk, terms: Terms, *names: str) -> dict[str, Any]:
    found = walk.options(terms.teacher)
    return {name: found[name] for name in names} | terms.options


def empty_gradient(logits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Room for the gradient by the logits; it lies as they do."""
    return torch.empty(
        logits.shape,
        dtype=dtype,
        device=logits.device,
        memory_format=result_memory_format(logits),
    )


def upsamples(logits: Tensor, size: tuple[int, int]) -> bool:
    """Whether an evaluation at `size` is not at the logits' own one."""
    return bool(size[0] != logits.shape[2] or size[1] != logits.shape[3])


def fake(logits: Tensor, size: tuple[int, int], record: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes of loss, count and gradient; the latter [0] if it is not found now."""
    if record and upsamples(logits, size):
        gradient = empty_gradient(logits)
    else:
        gradient = logits.new_empty((0,), dtype=torch.float32)
    return (
        logits.new_empty((), dtype=torch.float32),
        logits.new_empty((), dtype=torch.int64),
        gradient,
    )


def _groups(quads: Any, rows: Any) -> int:
    """Over how many programs the pixel rows of a quad are dealt out, to keep a GPU busy."""
    if INTERPRETED:
        return 1
    for groups, most in ((8, 1 << 14), (4, 1 << 16), (2, 1 << 18)):
        if quads <= most and rows >= groups:
            return groups
    return 1


def quad_block(
    classes: int, teacher: bool, precise_arithmetic: bool, wide_offsets: bool = False
) -> dict[str, int]:
    """How many quads a program takes, BLOCK, and its warps.

    A thread holds up to ten tiles, two edges of either network, four sums and what is made of a
    pixel, so that each must be small.
    """
    if INTERPRETED:
        return pixel_block(classes)
    padded = padded_classes(classes)
    elements = QUAD_ELEMENTS_OF_THREAD // (1 if padded <= 32 else 2)
    if teacher:
        elements //= 2 if padded <= 128 else 4
    if precise_arithmetic:
        elements //= 4
    if wide_offsets:
        elements //= 2
    return spread(padded, max(min(elements, padded), 1))


def forward(
    logits: Tensor, size: tuple[int, int], align_corners: bool, terms: Terms, record: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, number of pixels that count, and the gradient if it is found on the way."""
    loss, count, gradient = fake(logits, size, record)
    batch, classes, height, width = logits.shape
    if batch * size[0] * size[1] == 0:
        return torch.zeros_like(loss), torch.zeros_like(count), torch.zeros_like(gradient)
    walk = Walk(logits, size, align_corners)
    classes = int(classes)
    if upsamples(logits, size):
        _walk_quads(walk, terms, loss, count, gradient, record)
        return loss, count, gradient
    block = pixel_block(classes, terms.options["PRECISE"])
    parts = batch * blocks_of(height * width, block["BLOCK"])
    losses = torch.empty((parts,), dtype=torch.float32, device=logits.device)
    counts = torch.empty((parts,), dtype=torch.int32, device=logits.device)
    launch(
        pixel_loss_kernel,
        (parts,),
        logits,
        terms.teacher,
        terms.thresholds,
        terms.labels,
        losses,
        counts,
        terms.gamma,
        terms.ignore_index,
        height,
        width,
        *logits.stride(),
        *terms.teacher.stride(),
        **_options(walk, terms, "CLASSES", "PADDED", "FLAT", "WIDE"),
        **block,
    )
    _mean(losses, counts, loss, count)
    return loss, count, gradient


def _mean(losses: Tensor, counts: Tensor, loss: Tensor, count: Tensor) -> None:
    parts = losses.shape[0]
    launch(mean_kernel, (1,), losses, counts, loss, count, parts, BLOCK=_MEAN_BLOCK, num_warps=8)


def _walk_quads(
    walk: Walk, terms: Terms, loss: Tensor, count: Tensor, gradient: Tensor, record: bool
) -> None:
    logits = walk.logits
    batch, classes, height, width = logits.shape
    quads = height * width
    groups = _groups(batch * quads, blocks_of(walk.size[0], height))
    names = ("CLASSES", "PADDED", "ALIGN", "RESAMPLE_Y", "RESAMPLE_X", "WIDE")
    options = _options(walk, terms, *names)
    block = quad_block(
        int(classes), options["TEACHER"], options["PRECISE"], wide_offsets=options["WIDE"]
    )
    parts = batch * groups * blocks_of(quads, block["BLOCK"])
    losses = torch.empty((parts,), dtype=torch.float32, device=logits.device)
    counts = torch.empty((parts,), dtype=torch.int32, device=logits.device)
    corners = losses
    if record:
        shape = (groups, 4, *logits.shape)
        corners = torch.empty(shape, dtype=torch.float32, device=logits.device)
    launch(
        quad_loss_kernel,
        (parts,),
        logits,
        terms.teacher,
        terms.thresholds,
        terms.labels,
        corners,
        losses,
        counts,
        terms.gamma,
        terms.ignore_index,
        groups,
        batch,
        height,
        width,
        *walk.size,
        *logits.stride(),
        *terms.teacher.stride(),
        **options,
        RECORD=record,
        **block,
    )
    _mean(losses, counts, loss, count)
    if record:
        launch(
            corner_gradient_kernel,
            (blocks_of(logits.numel(), _GRADIENT_BLOCK),),
            corners,
            count,
            gradient,
            groups,
            batch,
            height,
            width,
            *gradient.stride(),
            **{name: options[name] for name in ("CLASSES", "RESAMPLE_Y", "RESAMPLE_X")},
            BLOCK=_GRADIENT_BLOCK,
        )


def backward(scale: Tensor, logits: Tensor, terms: Terms) -> Tensor:
    """Gradient of the sum over the pixels at the logits' own size, times `scale`."""
    gradient = empty_gradient(logits, logits.dtype)
    if logits.numel() == 0:
        return gradient
    batch, classes, height, width = logits.shape
    target = kernel_result(gradient)
    walk = Walk(logits, (height, width), False)
    launch(
        pixel_gradient_kernel,
        lambda meta: (batch * blocks_of(height * width, meta["BLOCK"]),),
        logits,
        terms.teacher,
        terms.thresholds,
        terms.labels,
        scale,
        target,
        terms.gamma,
        terms.ignore_index,
        height,
        width,
        *logits.stride(),
        *terms.teacher.stride(),
        target.stride(0),
        target.stride(1),
        pixel_stride(target),
        **_options(walk, terms, "CLASSES", "PADDED", "FLAT", "WIDE"),
        **tuned_block(classes),
    )
    return target.to(logits.dtype)


def register_gradient(
    name: str,
    loss: Any,  # the registered operator
    walk_again: Callable[..., Tensor],  # (scale, *inputs), the operator's inputs
    size: Callable[..., tuple[int, int]],  # (H, W) of the evaluation, by the operator's inputs
) -> None:
    """Gives the operator its gradient by the logits, its first input."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.own_size = not upsamples(inputs[0], size(*inputs))
        ctx.recorded = bool(inputs[-1])
        ctx.numbers = [None if isinstance(value, Tensor) else value for value in inputs]
        tensors = [value if isinstance(value, Tensor) else None for value in inputs]
        ctx.save_for_backward(*output[1:], *tensors)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        count, gradient, *tensors = ctx.saved_tensors
        nothing = (None,) * (len(tensors) - 1)
        if upstream is None:
            return (None, *nothing)
        logits = tensors[0]
        with torch.no_grad():
            inputs = [n if t is None else t for n, t in zip(ctx.numbers, tensors, strict=True)]
            if ctx.own_size:
                result = walk_again(upstream / count.clamp(min=1), *inputs)
            else:
                if not ctx.recorded:
                    gradient = loss(*inputs[:-1], True)[2]
                result = (gradient * upstream).to(logits.dtype)
        return (refuse_second_derivative(result, logits, name, "triton"), *nothing)

    loss.register_autograd(differentiate, setup_context=setup_context)
