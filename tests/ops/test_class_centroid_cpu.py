"""The compiled kernels of `class_centroids` and `symmetric_soft_divergence` by themselves.

What is particular to them: parts that are summed in a fixed order, gradients that outgrow the
caches, mixed types, bad labels, and second derivatives. The tables that every backend passes are in
test_class_centroid.py and test_symmetric_soft_divergence.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from operator_cases import arrange
from torch import Tensor

from cscl_fast import ops, use_backend
from cscl_fast.backends import why_unavailable

pytestmark = pytest.mark.skipif(why_unavailable("cpu") is not None, reason="no compiled kernels")
LAYOUTS = ("contiguous", "channels-last", "strided")
TYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _compiled(_reference: None) -> Iterator[None]:
    with use_backend("cpu"):
        yield


def make_side(
    shape: tuple[int, int, int, int], classes: int, layout: str, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, hard labels in runs, and soft labels."""
    generator = torch.Generator().manual_seed(seed)
    features = arrange(torch.randn(shape, generator=generator), layout)
    batch, _, height, width = shape
    hard = torch.randint(0, classes, (batch, height, width // 4 + 1), generator=generator)
    hard = hard.repeat_interleave(4, 2)[..., :width].contiguous()
    hard[torch.rand(hard.shape, generator=generator) < 0.1] = 255
    soft = torch.randn(batch, classes, height, width, generator=generator).mul(3).softmax(1)
    return features, hard, soft


def step(features: Tensor, hard: Tensor, other: Tensor, soft: Tensor) -> tuple[Tensor, ...]:
    """The loss, its gradients, and the centroids."""
    features, other = features.detach().requires_grad_(), other.detach().requires_grad_()
    loss = ops.symmetric_soft_divergence(features, hard, other, soft)
    loss.backward()
    centroids, mass = ops.class_centroids(features, hard, soft.shape[1])
    assert features.grad is not None
    assert other.grad is not None
    return loss.detach(), features.grad, other.grad, centroids.detach(), mass


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "classes"), [(256, 19), (37, 40), (6, 256)])
def test_any_number_of_threads_gives_the_same_bits(
    layout: str, channels: int, classes: int
) -> None:
    features, hard, _ = make_side((2, channels, 65, 129), classes, layout)
    other, _, soft = make_side((1, channels, 70, 83), classes, layout, 1)
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            answers.append(step(features, hard, other, soft))
    finally:
        torch.set_num_threads(before)
    for answer in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answer, answers[0], strict=True))
    with use_backend("reference"):
        wanted = step(features, hard, other, soft)
    for found, exact in zip(answers[0], wanted, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
    grad, like = answers[0][1], features
    if layout != "strided":
        assert grad.stride() == like.stride()


@pytest.mark.parametrize("source_type", TYPES)
@pytest.mark.parametrize("target_type", TYPES)
def test_types_of_the_sides_may_differ(source_type: torch.dtype, target_type: torch.dtype) -> None:
    features, hard, _ = make_side((1, 33, 7, 9), 5, "contiguous")
    other, _, soft = make_side((2, 33, 5, 4), 5, "channels-last", 1)
    arguments = (features.to(source_type), hard, other.to(target_type), soft.to(source_type))
    found = step(*arguments)
    with use_backend("reference"):
        wanted = step(*arguments)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-2 if a.dtype != torch.float32 else 1e-4, atol=1e-5)


def test_float64_labels_are_taken() -> None:
    features, _, soft = make_side((1, 8, 5, 6), 4, "contiguous")
    found = ops.class_centroids(features, soft.double(), 4)
    torch.testing.assert_close(found, ops.class_centroids(features, soft, 4))


@pytest.mark.parametrize("bad", [-1, 5, 254, 256, 2**40, -(2**40)])
def test_a_bad_hard_label_is_named(bad: int) -> None:
    features, hard, soft = make_side((2, 8, 6, 7), 5, "contiguous")
    hard[1, 2, 3] = bad
    with pytest.raises(ValueError, match=rf"labels\[1, 2, 3\] is {bad}; .* 0\.\.4, or 255"):
        ops.class_centroids(features, hard, 5)
    with pytest.raises(ValueError, match=rf"^target_soft_labels\[1, 2, 3\] is {bad};"):
        ops.symmetric_soft_divergence(features, soft, features, hard)
    with pytest.raises(ValueError, match=rf"^source_labels\[1, 2, 3\] is {bad};"):
        ops.symmetric_soft_divergence(features, hard, features, soft)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.25, 1.25])
def test_a_bad_soft_label_is_named(bad: float, layout: str, dtype: torch.dtype) -> None:
    features, _, soft = make_side((2, 8, 6, 7), 5, "contiguous")
    soft[1, 4, 2, 3] = bad
    soft = arrange(soft.to(dtype), layout)
    with pytest.raises(ValueError, match=r"labels\[1, 4, 2, 3\] is .* in \[0, 1\]"):
        ops.class_centroids(features, soft, 5)


def test_second_derivatives_are_refused() -> None:
    features, hard, soft = make_side((1, 8, 5, 6), 4, "contiguous")
    features.requires_grad_()
    loss = ops.symmetric_soft_divergence(features, hard, features.detach() * 2, soft)
    (gradient,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(RuntimeError, match=r"symmetric_soft_divergence has no second derivative"):
        gradient.square().sum().backward()
    centroids, _ = ops.class_centroids(features, hard, 4)
    (gradient,) = torch.autograd.grad(centroids.square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match=r"class_centroids has no second derivative"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(layout: str, requires_grad: bool) -> None:
    """The registrations themselves: schema, fake tensor, autograd, and dynamic shapes."""
    features, hard, soft = make_side((2, 8, 5, 6), 4, layout)
    features.requires_grad_(requires_grad)
    operators = torch.ops.cscl_fast
    for labels in (hard, soft):
        torch.library.opcheck(operators.class_centroids.default, (features, labels, 4))
    arguments = (features, hard, features.detach() * 2, soft, 4, "softmax", 1e-6)
    torch.library.opcheck(operators.symmetric_soft_divergence.default, arguments)
    centroids, mass, row, weight = operators.class_centroids(features.detach(), hard, 4)
    kind = (torch.float32, layout == "channels-last")
    torch.library.opcheck(
        operators.class_centroids_backward.default, (centroids, mass, row, weight, *kind)
    )
    torch.library.opcheck(
        operators.symmetric_soft_divergence_backward.default,
        (torch.tensor(2.0), centroids, row, weight, *kind),
    )
