"""The kernels' threads: PyTorch's own pool, as many as it says, the same bits for any number."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cscl_fast import ops, use_backend

ROOT = Path(__file__).resolve().parents[2]

# Threads of the process after a kernel that ran in parallel; then after PyTorch's own work.
CHILD = """
import pathlib, re, torch
from cscl_fast import backends, ops

def threads():
    return len(list(pathlib.Path('/proc/self/task').iterdir()))

logits, thresholds = torch.randn(1, 19, 128, 256), torch.full((19,), 0.5)
before = threads()
for count in (1, 3, 6):
    torch.set_num_threads(count)
    ops.soft_pseudo_labels(logits, thresholds)
    print(threads() - before)
logits.exp()
print(threads() - before)
maps = pathlib.Path('/proc/self/maps').read_text()
print(len({m for m in re.findall(r'/\\S*lib(?:gomp|omp|iomp)\\S*', maps)}))
print(backends.library().openmp_runtime() in maps)
"""


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_runtime_whose_number_of_threads_is_obeyed() -> None:
    result = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, check=True
    )
    one, three, six, after_pytorch, runtimes, shared = result.stdout.split()
    assert (one, three, six) == ("0", "2", "5")  # the calling thread is one of them
    assert after_pytorch == "5"  # PyTorch's own work started no further threads: one pool
    assert (runtimes, shared) == ("1", "True")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [None, (131, 200)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_same_bits_for_any_number_of_threads(
    dtype: torch.dtype, size: tuple[int, int] | None, channels_last: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(3, 19, 61, 83, generator=generator)).to(dtype)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    thresholds = 0.2 + 0.8 * torch.rand(19, generator=generator)
    answers = []
    with use_backend("cpu"):
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            answers.append(ops.soft_pseudo_labels(logits, thresholds, size=size))
    for answer in answers[1:]:
        assert torch.equal(answer.soft, answers[0].soft)
        assert torch.equal(answer.hard, answers[0].hard)
