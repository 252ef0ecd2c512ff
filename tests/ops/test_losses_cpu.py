"""What is particular to the compiled losses: registration, second walks, refusals, memory order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from operator_cases import make_thresholds
from torch import Tensor

from cscl_fast import backends, ops, use_backend

pytestmark = pytest.mark.skipif(
    backends.why_unavailable("cpu") is not None, reason="the compiled library is not installed"
)
Loss = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _cpu() -> Iterator[None]:
    with use_backend("cpu"):
        yield


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def labels_of(shape: tuple[int, int, int], classes: int) -> Tensor:
    labels = torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(1))
    labels[:, ::5] = 255
    return labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(6, 7), (15, 20)])
def test_opcheck(dtype: torch.dtype, size: tuple[int, int]) -> None:
    registered = torch.ops.cscl_fast
    for record in (False, True):
        logits = make((2, 5, 6, 7), dtype).requires_grad_(record)
        labels = labels_of((2, *size), 5)
        torch.library.opcheck(
            registered.upsampled_cross_entropy.default, (logits, labels, 255, False, record)
        )
        for teacher in (None, make((2, 5, 6, 7), dtype, seed=2)):
            arguments = (logits, teacher, make_thresholds(5), 0.25, *size, False, record)
            torch.library.opcheck(registered.pseudo_label_loss.default, arguments)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_gradients_are_found_in_a_second_walk(
    memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    """Above 2²⁰ logits at their own size; the reference's answer, and the logits' layout."""
    logits = make((1, 19, 240, 256), dtype).contiguous(memory_format=memory_format)
    labels, delta = labels_of((1, 240, 256), 19), make_thresholds(19)
    losses: tuple[Loss, ...] = (
        lambda z: ops.upsampled_cross_entropy(z, labels),
        lambda z: ops.pseudo_label_loss(z, delta),
        lambda z: ops.pseudo_label_loss(z, delta, label_logits=z.detach().flip(3)),
    )
    for loss in losses:
        answers = []
        for backend in ("cpu", "reference"):
            with use_backend(backend):
                z = logits.clone(memory_format=torch.preserve_format).requires_grad_()
                value = loss(z)
                (value * 1024).backward()
                answers.append((value.detach(), z.grad))
        (value, gradient), (expected, wanted) = answers
        assert gradient.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(value, expected, rtol=2e-5, atol=2e-6)
        error = (gradient.float() - wanted.float()).abs().max()
        assert error <= (2e-4 + torch.finfo(dtype).eps) * wanted.abs().max()


@pytest.mark.parametrize("size", [(6, 7), (15, 20), None])
def test_a_second_derivative_is_refused(size: tuple[int, int] | None) -> None:
    shape = (1, 19, 240, 256) if size is None else (2, 5, 6, 7)  # None: the second walk
    z = make(shape).requires_grad_()
    area = shape[2:] if size is None else size
    labels = labels_of((shape[0], *area), shape[1])
    for loss in (
        ops.upsampled_cross_entropy(z, labels),
        ops.pseudo_label_loss(z, make_thresholds(shape[1]), size=area),
    ):
        (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative on the backend 'cpu'"):
            gradient.square().sum().backward()


def test_a_graph_that_is_kept_gives_the_gradient_again() -> None:
    z = make((1, 5, 6, 7)).requires_grad_()
    loss = ops.upsampled_cross_entropy(z, labels_of((1, 15, 20), 5))
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    (second,) = torch.autograd.grad(2 * loss, z)
    assert torch.equal(2 * first, second)


@pytest.mark.parametrize("bad", [-1, 5, 2**32 + 1])
@pytest.mark.parametrize("size", [(6, 7), (15, 20)])
def test_a_label_out_of_range_is_named(bad: int, size: tuple[int, int]) -> None:
    labels = labels_of((2, *size), 5)
    labels[1, 3, 4] = bad
    with pytest.raises(ValueError, match=rf"labels\[1, 3, 4\] is {bad}; a label must be in 0\.\.4"):
        ops.upsampled_cross_entropy(make((2, 5, 6, 7)), labels)


def test_labels_of_another_dtype() -> None:
    z, teacher = make((2, 5, 6, 7), torch.bfloat16), make((2, 5, 6, 7), seed=2)
    z.requires_grad_()
    loss = ops.pseudo_label_loss(z, make_thresholds(5), label_logits=teacher, size=(9, 9))
    loss.backward()
    wide = z.detach().float()
    expected = ops.pseudo_label_loss(wide, make_thresholds(5), label_logits=teacher, size=(9, 9))
    assert torch.equal(loss.detach(), expected)
    assert z.grad is not None and z.grad.dtype == torch.bfloat16
