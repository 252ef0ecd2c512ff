"""What the files of this folder share that run the Triton backend by Triton's interpreter.

The interpreter must be chosen before Triton is imported: with TRITON_INTERPRET=1 in the environment
the tests run as they are; where it was not, test_triton_interpreted.py runs their files again in
processes of their own.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
import oracles
from operator_cases import CASES, DTYPES, LAYOUTS, Case, array

from cscl_fast.backends.triton.launch import INTERPRETED

interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 in advance")
# One layout and dtype for every case, so that all of them occur.
SPREAD = [
    pytest.param(case, DTYPES[i % 3], LAYOUTS[i // 3 % 3], id=case.name)
    for i, case in enumerate(CASES)
]
ALL_KINDS = [
    pytest.param(CASES[1], dtype, layout, id=f"{CASES[1].name}-{dtype}-{layout}")
    for dtype in DTYPES
    for layout in LAYOUTS
]


def upsampled(logits: Tensor, case: Case) -> np.ndarray:
    return oracles.upsample(array(logits), case.size, case.align_corners)


def random_labels(case: Case, area: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed + 7)
    shape = (case.shape[0], *area)
    labels = torch.randint(0, case.shape[1], shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.2] = 255
    return labels
