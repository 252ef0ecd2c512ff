"""What every operator of the CPU backend shares."""

from __future__ import annotations

import torch

# All operators of the package live in this namespace: torch.ops.cscl_fast.<operator>.
LIBRARY = torch.library.Library("cscl_fast", "FRAGMENT")

# As in csrc/cpu/kernels.h, enum DataType.
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def plain(tensor: torch.Tensor) -> bool:
    """Whether nothing but this tensor's own values is at stake: no tracing, no mode, no subclass.

    A registered operator can then be computed without the dispatcher, which for a small input
    takes longer than the kernel.
    """
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )
