"""What every operator of the CPU backend shares."""

from __future__ import annotations

import torch

# All operators of the package live in this namespace: torch.ops.cscl_fast.<operator>.
LIBRARY = torch.library.Library("cscl_fast", "FRAGMENT")

# As in csrc/cpu/kernels.h, enum DataType.
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
