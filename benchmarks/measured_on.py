"""Where a measurement was taken, as its result file keeps it."""

from __future__ import annotations

import platform

import torch

from cscl_fast import backends, info


def environment() -> dict[str, str | int | None]:
    """Processor, threads, instruction set of the kernels, versions."""
    module = backends.library_module()
    return {
        "processor": info.processor_name(),
        "threads": torch.get_num_threads(),
        "instruction_set": module.active_isa() if module is not None else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
