"""Running out of memory: which errors say so, and what needs less."""

from __future__ import annotations

import torch

TRAINING = (
    "smaller batches (--warmup.batch-size, --adaptation.batch-size, --evaluation-batch; "
    "--accumulate 4 adds up the gradients of four batches for one step), smaller images "
    "(--source.size, --target.size), --precision bfloat16, --model.activation-checkpointing"
)
EVALUATION = "smaller batches (--batch-size 1), smaller images (--data.size)"
PREDICTION = "smaller images in the folder, or --device cpu where the GPU is too small"

CPU = "DefaultCPUAllocator: "


def in_words(error: Exception, less: str) -> str | None:
    """The message for an error of PyTorch's allocators, or of Python's; None for any other error.

    Args:
        less: what needs less memory.
    """
    text = str(error)
    # The CPU's allocator raises a plain RuntimeError.
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and CPU not in text:
        return None
    lines = [line for line in text.splitlines() if "allocate" in line.lower()]
    reason = lines[-1].rpartition(CPU)[2].partition(" Of the allocated memory")[0] if lines else ""
    return f"out of memory{': ' + reason.strip() if reason else ''}\nWhat needs less: {less}"
