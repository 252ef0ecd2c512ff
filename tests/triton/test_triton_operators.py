"""The operators on logits of the Triton backend against float64, by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracles
import pytest
import torch
from interpreter_cases import ALL_KINDS, SPREAD, interpreted, random_labels, upsampled
from operator_cases import (
    CASES,
    Case,
    array,
    assert_gradient,
    assert_within,
    make_logits,
    make_thresholds,
)
from torch import Tensor

from cscl_fast.backends.reference import transfer_reward as reference_reward
from cscl_fast.backends.triton import class_threshold
from cscl_fast.backends.triton.pseudo_label_loss import pseudo_label_loss
from cscl_fast.backends.triton.soft_pseudo_label import soft_pseudo_labels
from cscl_fast.backends.triton.transfer_reward import transfer_reward
from cscl_fast.backends.triton.upsampled_cross_entropy import upsampled_cross_entropy

SCALE = 1024.0  # gradients of a mean are below what float16 can hold
BAD = (float("nan"), float("inf"), -float("inf"))


def check_soft(logits: Tensor, delta: Tensor, gamma: float, case: Case) -> None:
    """Soft labels, classes and selection, but where the decision is within 1e-5 of a tie."""
    soft, hard = soft_pseudo_labels(logits, delta, gamma, *case.area, case.align_corners)
    expected, selected = oracles.soft_labels(upsampled(logits, case), array(delta), gamma)
    assert soft.dtype == logits.dtype
    decided = np.abs(selected) > 1e-5
    kept = array(soft).sum(axis=1) > 0
    np.testing.assert_array_equal(kept[decided], (selected > 0)[decided])
    assert_within(soft, np.where(kept[:, None], expected, 0.0), relative=1e-5 / gamma)
    ordered = np.sort(expected, axis=1)
    clear = kept.copy()
    if soft.shape[1] > 1:
        clear &= ordered[:, -1] - ordered[:, -2] > 1e-5
    np.testing.assert_array_equal(array(hard)[clear], expected.argmax(axis=1)[clear])
    if soft.shape[1] < 256:
        np.testing.assert_array_equal(array(hard) == 255, ~kept)


@interpreted
@pytest.mark.parametrize(("case", "dtype", "layout"), SPREAD + ALL_KINDS)
def test_soft_pseudo_labels(case: Case, dtype: torch.dtype, layout: str) -> None:
    logits = make_logits(case, dtype, layout=layout)
    check_soft(logits, make_thresholds(case.shape[1]), 0.25, case)


@interpreted
@pytest.mark.parametrize("gamma", [0.01, 0.05, 0.19, 0.2, 1.0, 10.0])
@pytest.mark.parametrize("smallest", [0.05, 1e-4, 1e-10, 1e-30])
def test_extreme_thresholds_and_sharpness(gamma: float, smallest: float) -> None:
    for case in (Case("own", (1, 19, 16, 16), spread=8.0), Case("up", (1, 19, 5, 6), (11, 13))):
        delta = make_thresholds(19)
        delta[4] = smallest
        check_soft(make_logits(case, torch.float32), delta, gamma, case)


@interpreted
@pytest.mark.parametrize("gamma", [1e-300, 1e-30, 1e30])
def test_any_gamma_gives_finite_labels(gamma: float) -> None:
    logits = make_logits(CASES[0], torch.float32)
    soft, hard = soft_pseudo_labels(logits, make_thresholds(19), gamma, 7, 9, False)
    assert_within(soft.sum(dim=1), array(hard != 255).astype(float))


def cross_entropy(logits: Tensor, case: Case) -> tuple[Tensor, float, np.ndarray]:
    labels = random_labels(case, case.area)
    loss = upsampled_cross_entropy(logits, labels, 255, case.align_corners)[0]
    return loss, *oracles.cross_entropy(upsampled(logits, case), array(labels), 255)


def own_labels(logits: Tensor, case: Case, gamma: float = 0.25) -> tuple[Tensor, float, np.ndarray]:
    delta = make_thresholds(case.shape[1])
    loss = pseudo_label_loss(logits, delta, gamma, None, case.size, case.align_corners)[0]
    z = upsampled(logits, case)
    return loss, *oracles.pseudo_label_loss(z, z, array(delta), gamma)


def given_labels(
    logits: Tensor, case: Case, gamma: float = 0.25
) -> tuple[Tensor, float, np.ndarray]:
    delta = make_thresholds(case.shape[1])
    teacher = make_logits(case, torch.float32, salt=1)
    loss = pseudo_label_loss(logits, delta, gamma, teacher, case.size, case.align_corners)[0]
    z, t = upsampled(logits, case), upsampled(teacher, case)
    return loss, *oracles.pseudo_label_loss(z, t, array(delta), gamma)


LOSSES = (cross_entropy, own_labels, given_labels)
Found = tuple[Tensor, float, np.ndarray]


def check_loss(found: Found, logits: Tensor, case: Case) -> None:
    loss, value, gradient = found
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert_within(loss, value)
    (loss * SCALE).backward()
    back = oracles.upsample_adjoint(gradient, case.shape[2:], case.align_corners)
    assert_gradient(logits.grad, back * SCALE)
    assert logits.grad is not None
    assert logits.grad.dtype == logits.dtype


@interpreted
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("case", "dtype", "layout"), SPREAD + ALL_KINDS)
def test_losses(loss: Callable[..., Found], case: Case, dtype: torch.dtype, layout: str) -> None:
    logits = make_logits(case, dtype, layout=layout).requires_grad_()
    check_loss(loss(logits, case), logits, case)


@interpreted
@pytest.mark.parametrize("loss", LOSSES[1:])
@pytest.mark.parametrize("gamma", [0.02, 1.0, 10.0])
@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=["own size", "upsampled"])
def test_losses_of_other_sharpness(loss: Callable[..., Found], gamma: float, case: Case) -> None:
    logits = make_logits(case, torch.float32).requires_grad_()
    check_loss(loss(logits, case, gamma), logits, case)


@interpreted
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("size", [None, (11, 13)])
def test_what_is_not_finite(bad: float, size: tuple[int, int] | None) -> None:
    """Rejected as a label, not counted, without a gradient; but the supervised loss shows it."""
    case = Case("not finite", (2, 5, 6, 7), size)
    logits = make_logits(case, torch.float32)
    logits[1, 2, 3, 4] = bad
    z = upsampled(logits, case)
    finite = np.isfinite(z).all(axis=1)
    delta = torch.full((5,), 0.01)  # every other pixel is kept
    _, hard = soft_pseudo_labels(logits, delta, 0.25, *case.area, False)
    np.testing.assert_array_equal(array(hard) != 255, finite)
    histogram = class_threshold.new_histogram(5, "cpu")
    class_threshold.update(histogram, logits, case.area, False)
    assert histogram.sum() == finite.sum()
    for loss in (own_labels, given_labels):
        student = logits.clone().requires_grad_()
        check_loss(loss(student, case), student, case)

    student = logits.clone().requires_grad_()
    labels = torch.full((2, *case.area), 2)
    loss = upsampled_cross_entropy(student, labels, 255, False)[0]
    assert not loss.isfinite()
    loss.backward()
    student.grad = None
    labels[torch.from_numpy(~finite)] = 255
    found, gradient = oracles.cross_entropy(z, array(labels), 255)
    loss = upsampled_cross_entropy(student, labels, 255, False)[0]
    assert_within(loss, found)
    loss.backward()
    assert_gradient(student.grad, oracles.upsample_adjoint(gradient, (6, 7), False))


@interpreted
@pytest.mark.parametrize("size", [(6, 7), (11, 13)])
def test_nothing_to_learn_from_is_zero_with_zero_gradients(size: tuple[int, int]) -> None:
    logits = torch.randn(2, 4, 6, 7, requires_grad=True)
    far = torch.tensor([-1, 4, 300, 2**40, -(2**40), 255])
    labels = far[torch.randint(0, 6, (2, *size))]  # out of range counts as ignored
    for loss in (
        upsampled_cross_entropy(logits, labels, 255, False)[0],
        pseudo_label_loss(logits, torch.ones(4), 0.25, None, size, False)[0],
    ):
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.equal(gradient, torch.zeros_like(logits))


@interpreted
@pytest.mark.parametrize(("case", "dtype", "layout"), SPREAD)
def test_thresholds(case: Case, dtype: torch.dtype, layout: str) -> None:
    logits = make_logits(case, dtype, layout=layout)
    histogram = class_threshold.new_histogram(case.shape[1], "cpu")
    class_threshold.update(histogram, logits, case.area, case.align_corners)
    portions = [0.35, 1.0]
    streamed = class_threshold.thresholds_of_histogram(histogram, portions)
    both = class_threshold.thresholds_of_histogram(histogram, portions[:1], histogram)
    assert both.shape == (1, case.shape[1])
    for i, portion in enumerate(portions):
        delta, counts = oracles.thresholds(upsampled(logits, case), portion)
        np.testing.assert_array_equal(array(histogram.sum(dim=1)), counts)
        assert_within(streamed[i], delta, 0.0, 2.0**-16 + 1e-6)
        exact = class_threshold.class_thresholds(logits, portion, case.area, case.align_corners)
        assert_within(exact, delta)


@interpreted
def test_thresholds_are_order_statistics_of_float32() -> None:
    """Portions whose product with n is a hair below or at an integer, and ties."""
    for count in (1, 2, 20, 40):
        sharpness = torch.linspace(0.1, 5.0, count).round(decimals=1)
        logits = torch.stack([sharpness, torch.zeros(count)])[None, :, None]
        confidences = logits.softmax(1)[0, 0, 0].sort(descending=True).values
        for portion in (0.05, 0.35, 0.55, 1.0):
            found = class_threshold.class_thresholds(logits, portion, (1, count), False)
            wanted = confidences[min(int(portion * count), count - 1)]
            assert_within(found, np.array([float(wanted), 1.0]))
    certain = torch.full((1, 3, 2, 2), -200.0)
    certain[:, 1] = 200.0
    assert class_threshold.class_thresholds(certain, 0.5, (2, 2), False).tolist() == [1.0] * 3


@interpreted
@pytest.mark.parametrize(("case", "dtype", "layout"), SPREAD)
def test_transfer_reward(case: Case, dtype: torch.dtype, layout: str) -> None:
    gated = make_logits(case, dtype, layout=layout)
    plain = make_logits(case, dtype, salt=1)
    labels = random_labels(case, case.shape[2:])
    reward, valid = transfer_reward(gated, plain, labels)
    expected, expected_valid = oracles.rewards(array(gated), array(plain), array(labels))
    np.testing.assert_array_equal(array(valid), expected_valid)
    np.testing.assert_array_equal(array(reward), expected)
    alike, _ = transfer_reward(gated, gated.clone(), labels)  # equal logits are never a gain
    assert torch.equal(alike, (gated.argmax(1) == labels)[:, None].float())


@interpreted
def test_close_calls_are_decided_in_float64() -> None:
    plain = torch.randn(2, 19, 9, 11, generator=torch.Generator().manual_seed(0)) * 3
    gated = torch.nextafter(plain, torch.full_like(plain, 50.0))
    labels = torch.randint(0, 19, (2, 9, 11), generator=torch.Generator().manual_seed(1))
    labels[:, ::4] = torch.tensor([-1, 19, 2**40, 255])[torch.arange(11) % 4]
    gated[0, 3, 1, 1] = torch.nan
    plain[0, 3, 1, 2] = torch.inf
    found = transfer_reward(gated, plain, labels)
    wanted = reference_reward.transfer_reward(gated, plain, labels)
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(found[0], wanted[0])
