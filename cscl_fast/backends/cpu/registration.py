"""What every operator of the compiled backends shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cscl_fast import backends

# All operators of the package live in this namespace: torch.ops.cscl_fast.<operator>.
LIBRARY = torch.library.Library("cscl_fast", "FRAGMENT")

# As in csrc/core/logits_view.h, enum DataType.
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def plain(tensor: Tensor) -> bool:
    """Whether nothing but this tensor's own values is at stake: no tracing, no mode, no subclass.

    A registered operator can then be computed without the dispatcher, which for a small input
    takes longer than the kernel.
    """
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


# By operator and by where it runs: "cpu" or "cuda".
_kernels: dict[tuple[str, str], Callable[..., Any]] = {}


def place_of(tensor: Tensor) -> str:
    """Whose kernels compute with this tensor: "cpu" or "cuda"."""
    if tensor.device.type == "cpu" and not (
        backends.EMULATES_CUDA and backends.current_backend() == "cuda_on_cpu"
    ):
        return "cpu"
    return "cuda"


def kernel_for(operator: str, tensor: Tensor) -> Callable[..., Any]:
    """What computes an operator with this tensor, without the dispatcher."""
    return _kernels[operator, place_of(tensor)]


def implement(operator: str, place: str, compute: Callable[..., Any]) -> None:
    """Registers a kernel of an operator that has been defined, for tensors on "cpu" or "cuda"."""
    _kernels[operator, place] = compute
    if place == "cuda":
        LIBRARY.impl(operator, compute, "CUDA")
    elif backends.EMULATES_CUDA:
        LIBRARY.impl(operator, _by_choice(operator), "CPU")
    else:
        LIBRARY.impl(operator, compute, "CPU")


def _by_choice(operator: str) -> Callable[..., Any]:
    """In a test build tensors on the CPU go to either kernel."""

    def compute(*arguments: Any) -> Any:
        tensor = next(argument for argument in arguments if isinstance(argument, Tensor))
        return kernel_for(operator, tensor)(*arguments)

    return compute
