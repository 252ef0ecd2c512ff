"""Refuses second derivatives, which none of the kernels has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .registration import place_of


class _Refuse(torch.autograd.Function):
    """The gradient unchanged; an error for whoever differentiates it."""

    @staticmethod
    def forward(gradient: Tensor, depends_on: Tensor, operator: str, backend: str) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operator, ctx.backend = inputs[2:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(
            f"{ctx.operator} has no second derivative on the backend {ctx.backend!r}; "
            "use_backend('reference') has one"
        )


def refuse_second_derivative(
    gradient: Tensor, depends_on: Tensor, operator: str, backend: str | None = None
) -> Tensor:
    """`gradient`, such that differentiating it by `depends_on` is an error and not a zero.

    Costs nothing unless the backward pass is itself recorded (`create_graph=True`). `backend` is
    who cannot do it; None: the compiled one of the tensor's device.
    """
    if torch.is_grad_enabled() and depends_on.requires_grad:
        return _Refuse.apply(gradient, depends_on, operator, backend or place_of(depends_on))
    return gradient
