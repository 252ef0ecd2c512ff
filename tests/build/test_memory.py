"""Memory of large results: used again when it is free, never while it is in use, and bounded."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from cscl_fast import backends, ops, use_backend
from cscl_fast.backends.cpu import memory

SHAPE = (1, 19, 256, 512)  # 10 MB of float32


def test_memory_of_a_freed_result_is_used_again() -> None:
    first = memory.empty(SHAPE, torch.float32)
    place = first.data_ptr()
    view = first[:, 3]
    del first
    other = memory.empty(SHAPE, torch.float32)
    assert other.data_ptr() != place  # the view still needs it
    del view
    assert memory.empty(SHAPE, torch.float32).data_ptr() == place


def test_results_in_use_do_not_share_memory() -> None:
    logits, delta = torch.randn(SHAPE), torch.full((19,), 0.5)
    with use_backend("cpu"):
        one = ops.soft_pseudo_labels(logits, delta)
        kept = one.soft.clone()
        two = ops.soft_pseudo_labels(-logits, delta)
    assert not torch.equal(one.soft, two.soft)
    assert torch.equal(one.soft, kept)


def test_layouts_and_types() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        for format_ in (torch.contiguous_format, torch.channels_last):
            result = memory.empty((2, 64, 128, 256), dtype, format_)
            assert result.dtype == dtype
            assert result.shape == (2, 64, 128, 256)
            assert result.is_contiguous(memory_format=format_)


def test_memory_is_given_back() -> None:
    del_me = memory.empty(SHAPE, torch.float32)
    del del_me
    assert backends.library().cached_bytes() > 0
    backends.release_memory()
    assert backends.library().cached_bytes() == 0


def test_a_limit_of_zero_keeps_nothing() -> None:
    script = (
        "import torch\n"
        "from cscl_fast import backends\n"
        "from cscl_fast.backends.cpu import memory\n"
        f"x = memory.empty({SHAPE}, torch.float32); del x\n"
        "print(backends.library().cached_bytes())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CSCL_FAST_CACHE_MB": "0"},
    )
    assert result.stdout.split() == ["0"]
