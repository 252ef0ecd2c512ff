"""upsampled_cross_entropy: value and gradient against float64 and against PyTorch's own."""

from __future__ import annotations

import oracles
import pytest
import torch
import torch.nn.functional as F
from operator_cases import CASES, Case, Place, array, assert_gradient, assert_within, make_logits

from cscl_fast.ops import upsampled_cross_entropy

OPERATOR = "upsampled_cross_entropy"
SCALE = 1024.0  # as in test_pseudo_label_loss.py


def make_labels(case: Case, device: str, ignored: int = 255) -> torch.Tensor:
    """A class for about four pixels in five."""
    generator = torch.Generator().manual_seed(case.seed + 7)
    shape = (case.shape[0], *case.area)
    labels = torch.randint(0, case.shape[1], shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.2] = ignored
    return labels.to(device)


def check(logits: torch.Tensor, labels: torch.Tensor, case: Case, ignored: int = 255) -> None:
    """Value and gradient against float64."""
    loss = upsampled_cross_entropy(
        logits, labels, ignore_index=ignored, align_corners=case.align_corners
    )
    z = oracles.upsample(array(logits), case.size, case.align_corners)
    value, gradient = oracles.cross_entropy(z, array(labels), ignored)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert_within(loss, value)
    (loss * SCALE).backward()
    gradient = oracles.upsample_adjoint(gradient, case.shape[2:], case.align_corners)
    assert_gradient(logits.grad, gradient * SCALE)


def test_agrees_with_float64(place: Place, case: Case, dtype: torch.dtype, layout: str) -> None:
    logits = make_logits(case, dtype, place.device, layout).requires_grad_()
    check(logits, make_labels(case, place.device), case)


@pytest.mark.parametrize("ignored", [-100, 0, 3, 1000])
def test_any_ignore_index(place: Place, ignored: int) -> None:
    case = CASES[1]
    logits = make_logits(case, torch.float32, place.device).requires_grad_()
    check(logits, make_labels(case, place.device, ignored), case, ignored)


@pytest.mark.parametrize("align_corners", [False, True])
def test_equals_pytorch_in_float64(align_corners: bool) -> None:
    case = Case("pytorch", (2, 6, 5, 7), (13, 12), align_corners)
    labels = make_labels(case, "cpu")
    ours, theirs = (make_logits(case, torch.float64).requires_grad_() for _ in range(2))
    loss = upsampled_cross_entropy(ours, labels, align_corners=align_corners)
    large = F.interpolate(theirs, size=case.size, mode="bilinear", align_corners=align_corners)
    expected = F.cross_entropy(large, labels, ignore_index=255)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-15)


def test_all_ignored_is_zero_with_zero_gradients(place: Place) -> None:
    logits = torch.randn(2, 4, 3, 5, device=place.device, requires_grad=True)
    loss = upsampled_cross_entropy(logits, torch.full((2, 6, 7), 255, device=place.device))
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_propagates(place: Place, bad: float) -> None:
    logits = torch.randn(1, 4, 5, 6, device=place.device)
    logits[0, 2, 2, 3] = bad
    logits.requires_grad_()
    loss = upsampled_cross_entropy(logits, torch.ones(1, 9, 9, dtype=torch.int64).to(place.device))
    assert not loss.isfinite()
    loss.backward()
    assert not logits.grad.isfinite().all()


def test_an_impossible_label_costs_infinitely_much(place: Place) -> None:
    logits = torch.randn(1, 4, 5, 6, device=place.device)
    logits[0, 1, 2, 3] = -float("inf")
    labels = torch.ones(1, 5, 6, dtype=torch.int64, device=place.device)
    assert upsampled_cross_entropy(logits, labels).item() == float("inf")
    assert upsampled_cross_entropy(logits, labels * 2).isfinite()


def test_ignored_pixels_take_no_part_whatever_their_logits(place: Place) -> None:
    logits = torch.randn(1, 4, 5, 6, device=place.device)
    logits[0, 2, 2, 3] = float("nan")
    logits.requires_grad_()
    labels = torch.ones(1, 5, 6, dtype=torch.int64, device=place.device)
    labels[0, 2, 3] = 255
    loss = upsampled_cross_entropy(logits, labels)
    value, gradient = oracles.cross_entropy(array(logits), array(labels), 255)
    assert_within(loss, value)
    loss.backward()
    assert_gradient(logits.grad, gradient)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(3, 4), (5, 7), (2, 2)])
def test_gradcheck(size: tuple[int, int], align_corners: bool) -> None:
    case = Case("gradcheck", (2, 4, 3, 4), size)
    labels = make_labels(case, "cpu")
    logits = make_logits(case, torch.float64).requires_grad_()

    def loss(z: torch.Tensor) -> torch.Tensor:
        return upsampled_cross_entropy(z, labels, align_corners=align_corners)

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


def test_mean_over_two_million_pixels(place: Place) -> None:
    case = Case("city", (1, 3, 33, 65), (1024, 2048))
    logits = make_logits(case, torch.float32, place.device)
    labels = make_labels(case, place.device)
    value, _ = oracles.cross_entropy(
        oracles.upsample(array(logits), case.size, False), array(labels), 255
    )
    assert_within(upsampled_cross_entropy(logits, labels), value)


def test_confident_and_right_keeps_its_digits(place: Place) -> None:
    """Losses near 1e-4, behind logits near 40: the large parts must not swallow the small."""
    case = Case("confident", (1, 4, 6, 7), (15, 20))
    logits = make_logits(case, torch.float32, place.device)
    logits[:, 2] += 10
    labels = torch.full((1, 15, 20), 2, device=place.device)
    z = oracles.upsample(array(logits + 30), case.size, False)
    value, _ = oracles.cross_entropy(z, array(labels), 255)
    assert 1e-5 < value < 1e-2
    assert_within(upsampled_cross_entropy(logits + 30, labels), value)


def test_splitting_a_batch_is_a_weighted_mean(place: Place) -> None:
    case = CASES[1]
    logits, labels = make_logits(case, torch.float32, place.device), make_labels(case, place.device)
    total, pixels = 0.0, 0
    for z, y in zip(logits.split(1), labels.split(1), strict=True):
        mean, count = upsampled_cross_entropy(z, y, return_count=True)
        assert count.dtype == torch.int64
        assert int(count) == int((y != 255).sum())
        total += int(count) * float(mean)
        pixels += int(count)
    assert_within(upsampled_cross_entropy(logits, labels), total / pixels)


def test_permuting_classes_changes_nothing(place: Place) -> None:
    case = CASES[3]
    logits, labels = make_logits(case, torch.float32, place.device), make_labels(case, place.device)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(1)).to(place.device)
    renamed = torch.where(labels == 255, 255, order.argsort()[labels.clamp(max=18)])
    expected = float(upsampled_cross_entropy(logits, labels))
    assert_within(upsampled_cross_entropy(logits[:, order], renamed), expected)


def test_repeats_bitwise(place: Place) -> None:
    case = Case("threads", (2, 19, 9, 17), (64, 128))
    labels = make_labels(case, place.device)
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 3, 3):
            torch.set_num_threads(count)
            logits = make_logits(case, torch.float32, place.device).requires_grad_()
            loss = upsampled_cross_entropy(logits, labels)
            loss.backward()
            answers.append((loss.detach(), logits.grad))
    finally:
        torch.set_num_threads(threads)
    for loss, gradient in answers[1:]:
        assert torch.equal(loss, answers[0][0])
        assert torch.equal(gradient, answers[0][1])
