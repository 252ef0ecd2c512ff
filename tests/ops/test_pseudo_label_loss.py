"""pseudo_label_loss: value and gradient against float64."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from operator_cases import (
    CASES,
    Case,
    Place,
    array,
    assert_gradient,
    assert_within,
    make_logits,
    make_thresholds,
)

from cscl_fast.ops import pseudo_label_loss, soft_pseudo_labels

OPERATOR = "pseudo_label_loss"
# Gradients of a mean over many pixels are below what float16 can hold; training scales them.
SCALE = 1024.0


def expected_loss(
    logits: torch.Tensor, teacher: torch.Tensor, delta: torch.Tensor, gamma: float, case: Case
) -> tuple[float, np.ndarray]:
    """Value, and gradient by the logits."""
    z = oracles.upsample(array(logits), case.size, case.align_corners)
    t = oracles.upsample(array(teacher), case.size, case.align_corners)
    value, gradient = oracles.pseudo_label_loss(z, t, array(delta), gamma)
    return value, oracles.upsample_adjoint(gradient, case.shape[2:], case.align_corners)


@pytest.mark.parametrize("teacher", ["itself", "another"])
def test_agrees_with_float64(
    place: Place, case: Case, dtype: torch.dtype, layout: str, teacher: str
) -> None:
    logits = make_logits(case, dtype, place.device, layout).requires_grad_()
    delta = make_thresholds(case.shape[1], place.device)
    other = None
    if teacher == "another":
        other = make_logits(case, dtype, place.device, layout, salt=1)
    loss = pseudo_label_loss(logits, delta, label_logits=other, **case.upsampling)
    value, gradient = expected_loss(logits, logits if other is None else other, delta, 0.25, case)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert_within(loss, value)
    (loss * SCALE).backward()
    assert_gradient(logits.grad, gradient * SCALE)


@pytest.mark.parametrize("gamma", [0.05, 1.0, 4.0])
def test_other_sharpness(place: Place, gamma: float) -> None:
    case = CASES[3]
    logits = make_logits(case, torch.float32, place.device).requires_grad_()
    delta = make_thresholds(19, place.device)
    loss = pseudo_label_loss(logits, delta, gamma, **case.upsampling)
    value, gradient = expected_loss(logits, logits, delta, gamma, case)
    assert_within(loss, value)
    loss.backward()
    assert_gradient(logits.grad, gradient)


def test_is_the_cross_entropy_with_the_soft_labels(place: Place) -> None:
    case = CASES[0]
    logits = make_logits(case, torch.float32, place.device)
    delta = make_thresholds(19, place.device)
    soft, hard = soft_pseudo_labels(logits, delta)
    kept = hard != 255
    by_hand = -(soft * logits.log_softmax(1)).sum(1)[kept].double().mean()
    assert_within(pseudo_label_loss(logits, delta), by_hand.item())


def test_nothing_kept_is_zero_with_zero_gradients(place: Place) -> None:
    logits = torch.randn(2, 4, 3, 5, device=place.device, requires_grad=True)
    loss = pseudo_label_loss(logits, torch.ones(4, device=place.device), size=(7, 9))
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("where", ["logits", "label_logits"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("size", [None, (11, 13)])
def test_pixels_that_are_not_finite_take_no_part(
    place: Place, bad: float, where: str, size: tuple[int, int] | None
) -> None:
    case = Case("not finite", (2, 5, 6, 7), size)
    student = make_logits(case, torch.float32, place.device)
    teacher = make_logits(case, torch.float32, place.device, salt=1)
    (student if where == "logits" else teacher)[1, 2, 3, 4] = bad
    student.requires_grad_()
    delta = make_thresholds(5, place.device)
    loss = pseudo_label_loss(student, delta, label_logits=teacher, **case.upsampling)
    z = oracles.upsample(array(student), size, False)
    value, gradient = oracles.pseudo_label_loss(
        z, oracles.upsample(array(teacher), size, False), array(delta), 0.25
    )
    assert_within(loss, value)
    loss.backward()
    assert_gradient(student.grad, oracles.upsample_adjoint(gradient, (6, 7), False))


def test_only_pixels_that_are_not_finite(place: Place) -> None:
    logits = torch.full((1, 3, 4, 4), float("nan"), device=place.device, requires_grad=True)
    loss = pseudo_label_loss(logits, make_thresholds(3, place.device), size=(9, 9))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_labels_are_constants(place: Place) -> None:
    """The gradient is that of labels from a detached copy, and the label network gets none."""
    logits = make_logits(CASES[0], torch.float32, place.device)
    delta = make_thresholds(19, place.device)
    gradients = []
    for teacher in (None, logits.detach(), logits.clone().requires_grad_()):
        student = logits.clone().requires_grad_()
        pseudo_label_loss(student, delta, label_logits=teacher).backward()
        gradients.append(student.grad)
        assert teacher is None or teacher.grad is None
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [None, (5, 7), (2, 2)])
def test_gradcheck(size: tuple[int, int] | None, align_corners: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, teacher = torch.randn(2, 2, 4, 3, 4, dtype=torch.float64, generator=generator).unbind()
    delta = make_thresholds(4).double()

    def loss(z: torch.Tensor) -> torch.Tensor:
        return pseudo_label_loss(
            z, delta, label_logits=teacher * 2, size=size, align_corners=align_corners
        )

    assert loss(logits) > 0
    logits.requires_grad_()
    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


def test_mean_over_two_million_pixels(place: Place) -> None:
    """Sums of that many float32 values must still hold five digits."""
    case = Case("city", (1, 3, 33, 65), (1024, 2048))
    logits = make_logits(case, torch.float32, place.device)
    delta = torch.full((3,), 0.5, device=place.device)
    value, _ = expected_loss(logits, logits, delta, 0.25, case)
    assert_within(pseudo_label_loss(logits, delta, **case.upsampling), value)


def test_splitting_a_batch_is_a_weighted_mean(place: Place) -> None:
    case = CASES[1]
    logits = make_logits(case, torch.float32, place.device)
    delta = make_thresholds(5, place.device)
    total, count = 0.0, 0
    for one in logits.split(1):
        hard = soft_pseudo_labels(one, delta, **case.upsampling).hard
        mean, kept = pseudo_label_loss(one, delta, **case.upsampling, return_count=True)
        assert kept.dtype == torch.int64
        assert int(kept) == int((hard != 255).sum())
        total += int(kept) * float(mean)
        count += int(kept)
    assert count > 0
    assert_within(pseudo_label_loss(logits, delta, **case.upsampling), total / count)


def test_permuting_classes_changes_nothing(place: Place) -> None:
    case = CASES[3]
    logits = make_logits(case, torch.float32, place.device)
    delta = make_thresholds(19, place.device)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(1)).to(place.device)
    permuted = pseudo_label_loss(logits[:, order], delta[order], **case.upsampling)
    assert_within(permuted, float(pseudo_label_loss(logits, delta, **case.upsampling)))


def test_repeats_bitwise(place: Place) -> None:
    case = Case("threads", (2, 19, 9, 17), (64, 128))
    delta = make_thresholds(19, place.device)
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 3, 3):
            torch.set_num_threads(count)
            logits = make_logits(case, torch.float32, place.device).requires_grad_()
            loss = pseudo_label_loss(logits, delta, **case.upsampling)
            loss.backward()
            answers.append((loss.detach(), logits.grad))
    finally:
        torch.set_num_threads(threads)
    for loss, gradient in answers[1:]:
        assert torch.equal(loss, answers[0][0])
        assert torch.equal(gradient, answers[0][1])
