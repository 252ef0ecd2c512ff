"""The Triton kernels as `torch.library` operators, one file for each operator.

They run on a GPU without a CUDA compiler at install time. With TRITON_INTERPRET=1 in the
environment they are interpreted on CPU tensors, slowly, which is how they are tested without a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .catalogue import KernelCase


def all_kernels() -> list[KernelCase]:
    """Every kernel: its name, function, signature for each dtype, and compile-time arguments."""
    from .catalogue import all_kernels as collect  # imports every operator's module

    return collect()
