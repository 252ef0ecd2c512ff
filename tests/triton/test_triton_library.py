"""The operators of the Triton backend as PyTorch sees them, by Triton's interpreter.

Registrations, modes, compilation, refusals; the numbers are in test_triton_operators.py and
test_triton_features.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from interpreter_cases import interpreted
from torch import Tensor

from cscl_fast.backends.triton import class_centroid, class_threshold
from cscl_fast.backends.triton.pseudo_label_loss import pseudo_label_loss
from cscl_fast.backends.triton.soft_pseudo_label import soft_pseudo_labels
from cscl_fast.backends.triton.symmetric_soft_divergence import symmetric_soft_divergence
from cscl_fast.backends.triton.transfer_reward import transfer_reward
from cscl_fast.backends.triton.upsampled_cross_entropy import upsampled_cross_entropy

Call = Callable[[Tensor], Any]
LABELS = torch.arange(2 * 15 * 20).view(2, 15, 20) % 6
SMALL = torch.arange(2 * 6 * 7).view(2, 6, 7) % 6
DELTA = torch.linspace(0.2, 1.0, 5)
# Every operator by logits or features [2, 5, 6, 7], and the registered one with its arguments.
CALLS: dict[str, Call] = {
    "soft_pseudo_labels": lambda x: soft_pseudo_labels(x, DELTA, 0.25, 15, 20, False),
    "pseudo_label_loss": lambda x: pseudo_label_loss(x, DELTA, 0.25, None, (15, 20), False)[0],
    "pseudo_label_loss, own size": lambda x: pseudo_label_loss(x, DELTA, 0.25, x, None, False)[0],
    "upsampled_cross_entropy": lambda x: upsampled_cross_entropy(x, LABELS, 255, True)[0],
    "upsampled_cross_entropy, own size": lambda x: upsampled_cross_entropy(x, SMALL, 255, False)[0],
    "class_thresholds": lambda x: class_threshold.class_thresholds(x, 0.4, (15, 20), False),
    "class_centroids": lambda x: class_centroid.class_centroids(x, SMALL, 5),
    "symmetric_soft_divergence": lambda x: symmetric_soft_divergence(
        x, SMALL, x * 2, x.detach().softmax(1), 5, "softmax", 1e-6
    ),
    "transfer_reward": lambda x: transfer_reward(x, x.flip(2), SMALL),
}


def answers(call: Call, x: Tensor) -> list[Tensor]:
    """What comes out, and the gradient of it if there is one."""
    x = x.detach().clone().requires_grad_()
    found = call(x)
    found = list(found) if isinstance(found, tuple) else [found]
    if found[0].requires_grad:
        found.append(torch.autograd.grad(found[0].sum(), x)[0])
    return [tensor.detach() for tensor in found]


@interpreted
@pytest.mark.parametrize("name", CALLS)
def test_repeats_bitwise_and_leaves_modes_alone(name: str) -> None:
    call, x = CALLS[name], torch.randn(2, 5, 6, 7)
    wanted = answers(call, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_autocast = answers(call, x)
    for other in (answers(call, x), in_autocast):
        for a, b in zip(wanted, other, strict=True):
            assert torch.equal(a, b)
            assert a.dtype == b.dtype
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = call(x)
        for a, b in zip(wanted, found if isinstance(found, tuple) else [found], strict=False):
            assert torch.equal(a, b)


@interpreted
@pytest.mark.parametrize("name", CALLS)
def test_compiles_whole(name: str) -> None:
    torch.compiler.reset()
    call, x = CALLS[name], torch.randn(2, 5, 6, 7)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for a, b in zip(answers(compiled, x), answers(call, x), strict=True):
        torch.testing.assert_close(a, b)


@interpreted
@pytest.mark.parametrize("name", CALLS)
def test_a_second_derivative_is_refused(name: str) -> None:
    x = torch.randn(2, 5, 6, 7, requires_grad=True)
    found = CALLS[name](x)
    found = found[0] if isinstance(found, tuple) else found
    if not found.requires_grad:
        return
    # The gradient of a linear function is a constant; a power makes it depend on the input.
    (gradient,) = torch.autograd.grad(found.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative on the backend 'triton'"):
        torch.autograd.grad(gradient.sum(), x)


@interpreted
def test_opcheck() -> None:
    """The registrations: schema, fake tensors, autograd, and tracing with dynamic shapes."""
    operators = torch.ops.cscl_fast_triton
    for memory_format, size, labels in (
        (torch.contiguous_format, (6, 7), SMALL),
        (torch.channels_last, (9, 8), torch.arange(2 * 9 * 8).view(2, 9, 8) % 6),
    ):
        x = torch.randn(2, 5, 6, 7).contiguous(memory_format=memory_format).requires_grad_()
        torch.library.opcheck(
            operators.soft_pseudo_labels.default, (x.detach(), DELTA, 0.25, *size, False)
        )
        torch.library.opcheck(
            operators.upsampled_cross_entropy.default, (x, labels, 255, False, False)
        )
        torch.library.opcheck(
            operators.pseudo_label_loss.default,
            (x, x.detach() * 2, DELTA, 0.25, *size, False, True),
        )
    x = torch.randn(2, 5, 6, 7, requires_grad=True)
    histogram = class_threshold.new_histogram(5, "cpu")
    torch.library.opcheck(
        operators.class_threshold_update.default, (histogram, x.detach(), 9, 9, False)
    )
    torch.library.opcheck(operators.thresholds_of_histogram.default, (histogram, None, [0.4, 0.5]))
    torch.library.opcheck(operators.class_thresholds.default, (x.detach(), 0.4, 9, 9, False))
    torch.library.opcheck(operators.class_centroids.default, (x, SMALL, 5))
    soft = x.detach().softmax(1)
    torch.library.opcheck(
        operators.symmetric_soft_divergence.default,
        (x, SMALL, (x * 2).detach().requires_grad_(), soft, 5, "softmax", 1e-6),
    )
    torch.library.opcheck(
        operators.transfer_reward.default, (x.detach(), x.detach().flip(1), SMALL)
    )


@interpreted
def test_strided_and_expanded_tensors() -> None:
    wide = torch.randn(4, 10, 12, 14)
    views = (wide[::2, 1::2, ::2, ::2], wide[:1, :5, :6, :7].expand(2, -1, -1, -1))
    for view in (*views, wide[:2, :5, :7, :6].transpose(2, 3)):
        for call in CALLS.values():
            for a, b in zip(answers(call, view), answers(call, view.contiguous()), strict=True):
                assert torch.equal(a, b)
