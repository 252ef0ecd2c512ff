"""What both losses share: when and where their gradient is found, and how autograd gets it.

A loss is `torch.ops.cscl_fast.<name>(logits, ..., bool record) -> (loss, count, gradient)` and, for
gradients too large to be found before the pixels are counted, `<name>_backward(scale, ...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cscl_fast.backends.reference.soft_pseudo_label import result_memory_format

from . import memory
from .registration import LIBRARY, kernel_for, place_of, plain
from .second_derivative import refuse_second_derivative

# The gradient lies as the logits do.
gradient_format = result_memory_format

# At the logits' own size a gradient of up to this many elements (4 MiB) is found in the forward
# walk. A larger one is written in a walk of its own: before the pixels are counted it would have
# to be gone over twice.
_SMALL = 1 << 20


def recorded_forward(logits: Tensor, size: tuple[int, int]) -> bool:
    """Whether the forward walk finds the gradient, for an evaluation at `size` (H, W)."""
    if size != (logits.shape[2], logits.shape[3]):
        return True
    # A GPU's second walk is as cheap as keeping a gradient is.
    return place_of(logits) == "cpu" and logits.numel() <= _SMALL


def second_walk_dtype(logits: Tensor) -> torch.dtype:
    """What the second walk writes: on a GPU at once what the caller wants."""
    return torch.float32 if place_of(logits) == "cpu" else logits.dtype


def fake_gradient(logits: Tensor, wanted: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """What `empty_gradient` makes, for tracing."""
    if not wanted:
        return logits.new_empty((0,), dtype=dtype)
    return torch.empty(
        logits.shape,
        dtype=dtype,
        device=logits.device,
        memory_format=gradient_format(logits),
    )


def empty_gradient(logits: Tensor, wanted: bool) -> Tensor:
    """Room for the gradient by the logits [B, K, h, w] float32; [0] if it is not wanted.

    float32 for half types, too: a mean's gradient is below what float16 holds until the caller's
    scale has multiplied it.
    """
    if not wanted:
        return torch.empty((0,), dtype=torch.float32)
    return memory.empty(tuple(logits.shape), torch.float32, gradient_format(logits))


@dataclass(frozen=True)
class LossOperator:
    """A loss as autograd sees it. `inputs` are those of the operator, the logits first."""

    name: str
    walk_again: Callable[..., Tensor]  # (scale, *inputs) → gradient of the sum, times the scale
    size: Callable[..., tuple[int, int]]  # (H, W) of the evaluation, by the operator's inputs

    def below_autograd(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        if plain(inputs[0]):
            found: tuple[Tensor, Tensor, Tensor] = kernel_for(self.name, inputs[0])(*inputs)
            return found
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.cscl_fast, self.name)(*inputs)

    def with_autograd(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        logits, record = inputs[0], inputs[-1]
        if record and logits.requires_grad and torch.is_grad_enabled():
            return _Differentiable.apply(self, *inputs)
        return self.below_autograd(*inputs)

    def __call__(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """The loss and what it is the mean over, by the operator's inputs but `record`."""
        logits = inputs[0]
        inputs = (*inputs, torch.is_grad_enabled() and logits.requires_grad)
        if plain(logits):
            return self.with_autograd(*inputs)[:2]
        loss, count, _ = getattr(torch.ops.cscl_fast, self.name)(*inputs)
        return loss, count


def register(operator: LossOperator) -> None:
    """The gradient, for an operator that has been defined."""
    LIBRARY.impl(operator.name, operator.with_autograd, "Autograd")


class _Differentiable(torch.autograd.Function):
    """What `torch.library.register_autograd` would make of it, at half the cost."""

    @staticmethod
    def forward(ctx: Any, operator: LossOperator, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        loss, count, gradient = operator.below_autograd(*inputs)
        ctx.operator = operator
        ctx.recorded = recorded_forward(inputs[0], operator.size(*inputs))
        ctx.numbers = [None if isinstance(value, Tensor) else value for value in inputs]
        tensors = [value if isinstance(value, Tensor) else None for value in inputs]
        ctx.save_for_backward(count, gradient, *tensors)
        ctx.mark_non_differentiable(count, gradient)
        ctx.set_materialize_grads(False)
        return loss, count, gradient

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        count, gradient, *tensors = ctx.saved_tensors
        nothing = (None,) * (len(tensors) - 1)
        if upstream is None:
            return (None, None, *nothing)
        logits = tensors[0]
        with torch.no_grad():
            if ctx.recorded:
                result = gradient * upstream
            else:
                inputs = [n if t is None else t for n, t in zip(ctx.numbers, tensors, strict=True)]
                result = ctx.operator.walk_again(upstream / count.clamp(min=1), *inputs)
            if result.dtype != logits.dtype:
                result = result.to(logits.dtype)
        return None, refuse_second_derivative(result, logits, ctx.operator.name), *nothing
