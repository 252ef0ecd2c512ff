"""torch.compile sees through every Triton operator to its kernels, forward and backward.

Nothing is run, so that no GPU is needed: what a compiled graph would start is looked at. A kernel
that PyTorch cannot analyse would be taken to change all its arguments, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
from torch._dynamo.backends.common import aot_autograd
from triton.backends.compiler import GPUTarget

from cscl_fast.backends.triton import class_centroid, class_threshold
from cscl_fast.backends.triton.launch import INTERPRETED
from cscl_fast.backends.triton.pseudo_label_loss import pseudo_label_loss
from cscl_fast.backends.triton.soft_pseudo_label import soft_pseudo_labels
from cscl_fast.backends.triton.symmetric_soft_divergence import symmetric_soft_divergence
from cscl_fast.backends.triton.transfer_reward import transfer_reward
from cscl_fast.backends.triton.upsampled_cross_entropy import upsampled_cross_entropy

pytestmark = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not traced")

LARGE = torch.arange(2 * 15 * 20).view(2, 15, 20) % 6
SMALL = torch.arange(2 * 6 * 7).view(2, 6, 7) % 6
DELTA = torch.linspace(0.2, 1.0, 5)


def count(x: Tensor) -> Tensor:
    histogram = class_threshold.new_histogram(5, x.device)
    class_threshold.update(histogram, x, (15, 20), False)
    return class_threshold.thresholds_of_histogram(histogram, [0.4, 0.5])


# An operator of logits or features [2, 5, 6, 7], and how many kernels it starts there and back.
CALLS: dict[str, tuple[Callable[[Tensor], Any], int, int]] = {
    "soft_pseudo_labels": (lambda x: soft_pseudo_labels(x, DELTA, 0.25, 15, 20, False), 1, 0),
    "pseudo_label_loss": (
        lambda x: pseudo_label_loss(x, DELTA, 0.25, None, (15, 20), False)[0],
        3,
        0,
    ),
    "pseudo_label_loss, own size": (
        lambda x: pseudo_label_loss(x, DELTA, 0.25, x, None, False)[0],
        2,
        1,
    ),
    "upsampled_cross_entropy": (lambda x: upsampled_cross_entropy(x, LARGE, 255, True)[0], 3, 0),
    "upsampled_cross_entropy, own size": (
        lambda x: upsampled_cross_entropy(x, SMALL, 255, False)[0],
        2,
        1,
    ),
    "class_thresholds": (
        lambda x: class_threshold.class_thresholds(x, 0.4, (15, 20), False),
        4,
        0,
    ),
    "streamed thresholds": (count, 3, 0),
    "class_centroids": (lambda x: class_centroid.class_centroids(x, SMALL, 5), 3, 1),
    "symmetric_soft_divergence": (
        lambda x: symmetric_soft_divergence(
            x, SMALL, x * 2, x.detach().softmax(1), 5, "softmax", 1e-6
        ),
        8,
        2,
    ),
    "transfer_reward": (lambda x: transfer_reward(x, x.flip(2), SMALL), 1, 0),
}


class _Driver:
    """Answers for a GPU that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


@pytest.fixture
def _driver(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setattr(triton.runtime.driver, "_active", _Driver())


@pytest.mark.usefixtures("_driver")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_compiled_graphs_hold_the_kernels(name: str, dynamic: bool) -> None:
    call, forward, backward = CALLS[name]
    found: list[int] = []

    def look(graph: torch.fx.GraphModule, _: list[Any]) -> Callable[[list[Any]], list[Any]]:
        nodes = list(graph.graph.nodes)
        found.append(sum("triton_kernel_wrapper" in str(node.target) for node in nodes))
        assert not any("cscl_fast_triton" in str(node.target) for node in nodes)
        answers = [None if node is None else node.meta["val"] for node in nodes[-1].args[0]]

        def run(_: list[Any]) -> list[Any]:
            return [
                torch.zeros([int(n) for n in answer.shape], dtype=answer.dtype)
                if isinstance(answer, Tensor)
                else answer and int(answer)
                for answer in answers
            ]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    torch.compiler.reset()
    compiler = aot_autograd(fw_compiler=look, bw_compiler=look)
    x = torch.randn(2, 5, 6, 7, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        answer = torch.compile(call, fullgraph=True, dynamic=dynamic, backend=compiler)(x)
    answer = answer[0] if isinstance(answer, tuple) else answer
    assert found[0] == forward
    if answer.requires_grad:
        answer.sum().backward()
        assert found[1] == backward
