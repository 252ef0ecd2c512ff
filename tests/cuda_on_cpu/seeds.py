"""One answer, whatever the order of the threads: for tests of kernels that run on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

VARIABLE = "CSCL_FAST_CUDA_ON_CPU_SEED"


def bytes_of(answer: Any) -> bytes:
    """The bytes of a tensor, of an array, or of a tuple of them."""
    if isinstance(answer, (tuple, list)):
        return b"".join(bytes_of(part) for part in answer)
    if hasattr(answer, "detach"):  # a tensor; as bytes, because NumPy lacks bfloat16
        import torch

        answer = answer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return answer if isinstance(answer, bytes) else answer.tobytes()


def assert_seed_independent(run: Callable[[], Any], seeds: Iterable[int] = range(8)) -> Any:
    """Call `run` once per seed; the answers must agree bit for bit. Returns the first one."""
    before = os.environ.get(VARIABLE)
    first: Any = None
    first_seed: int | None = None
    try:
        for seed in seeds:
            os.environ[VARIABLE] = str(seed)
            answer = run()
            if first_seed is None:
                first, first_seed = answer, seed
            elif bytes_of(answer) != bytes_of(first):
                raise AssertionError(
                    "the answer depends on the order of the threads: "
                    f"seeds {first_seed} and {seed} differ"
                )
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
    return first
