"""symmetric_soft_divergence: Eq. 11 against float64."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from operator_cases import Place, array, assert_gradient, assert_within
from test_class_centroid import FEATURE_CASES, FeatureCase, make_features, make_labels

from cscl_fast.ops import symmetric_soft_divergence

OPERATOR = "symmetric_soft_divergence"
NORMALISE = ("softmax", "l1")
SCALE = 1024.0


def oracle(
    source: np.ndarray,
    source_labels: np.ndarray,
    target: np.ndarray,
    target_labels: np.ndarray,
    classes: int,
    normalise: str,
    eps: float = 1e-6,
) -> float:
    return oracles.divergence(
        oracles.centroids(source, source_labels, classes),
        oracles.centroids(target, target_labels, classes),
        normalise,
        eps,
    )


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("feature_case", FEATURE_CASES, ids=lambda case: case.name)
def test_agrees_with_float64(
    place: Place, feature_case: FeatureCase, dtype: torch.dtype, layout: str, normalise: str
) -> None:
    source = make_features(feature_case, dtype, place.device, layout)
    target = make_features(feature_case, dtype, place.device, layout, salt=1)
    hard = make_labels(feature_case, "hard", place.device)
    soft = make_labels(feature_case, "soft", place.device, dtype, salt=1)
    loss = symmetric_soft_divergence(source, hard, target, soft, normalise=normalise)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    expected = oracle(
        array(source), array(hard), array(target), array(soft), feature_case.classes, normalise
    )
    assert_within(loss, expected)


@pytest.mark.parametrize("normalise", NORMALISE)
def test_gradients_agree_with_differences_in_float64(place: Place, normalise: str) -> None:
    case = FEATURE_CASES[0]
    source = make_features(case, torch.float32, place.device).requires_grad_()
    target = make_features(case, torch.float32, place.device, salt=1).requires_grad_()
    hard, soft = (make_labels(case, kind, place.device, salt=3) for kind in ("hard", "soft"))
    # A large eps keeps "l1" smooth enough for differences.
    options = {"normalise": normalise, "eps": 0.5}
    loss = symmetric_soft_divergence(source, hard, target, soft, **options)
    (loss * SCALE).backward()
    arguments = [array(tensor) for tensor in (source, hard, target, soft)]
    random = np.random.default_rng(0)
    for place_in_list, tensor in ((0, source), (2, target)):
        direction = random.normal(size=case.shape)
        ends = []
        for step in (-1e-5, 1e-5):
            moved = list(arguments)
            moved[place_in_list] = arguments[place_in_list] + step * direction
            ends.append(oracle(*moved, case.classes, normalise, 0.5))
        slope = (ends[1] - ends[0]) / 2e-5 * SCALE
        found = float((array(tensor.grad) * direction).sum())
        # Differences are good to about 1e-5 of a gradient of this length.
        assert abs(found - slope) < 1e-4 * float(np.abs(array(tensor.grad)).sum())


@pytest.mark.parametrize("normalise", NORMALISE)
def test_gradcheck(normalise: str) -> None:
    case = FeatureCase("gradcheck", (1, 5, 3, 4), 3)
    source = make_features(case, torch.float64, "cpu").requires_grad_()
    target = make_features(case, torch.float64, "cpu", salt=1).requires_grad_()
    hard, soft = (make_labels(case, kind, "cpu", torch.float64) for kind in ("hard", "soft"))

    def loss(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return symmetric_soft_divergence(s, hard, t, soft, normalise=normalise, eps=0.5)

    assert loss(source, target).dtype == torch.float64
    assert loss(source, target) > 0
    assert torch.autograd.gradcheck(loss, (source, target))


@pytest.mark.parametrize("normalise", NORMALISE)
def test_no_class_on_both_sides_is_zero_with_zero_gradients(place: Place, normalise: str) -> None:
    source = torch.randn(1, 4, 2, 3, device=place.device, requires_grad=True)
    target = torch.randn(2, 4, 3, 2, device=place.device, requires_grad=True)
    labels = torch.zeros(1, 2, 3, dtype=torch.int64, device=place.device)
    soft = torch.zeros(2, 3, 3, 2, device=place.device)
    soft[0, 2] = 1
    loss = symmetric_soft_divergence(source, labels, target, soft, normalise=normalise)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(source.grad, torch.zeros_like(source))
    assert torch.equal(target.grad, torch.zeros_like(target))


def test_a_class_of_one_side_takes_no_part_whatever_its_features(place: Place) -> None:
    source = torch.randn(1, 4, 1, 3, device=place.device)
    source[..., 2] = float("nan")  # class 2, which the target does not show
    source.requires_grad_()
    target = torch.randn(1, 4, 1, 2, device=place.device, requires_grad=True)
    labels = torch.tensor([0, 1, 2], device=place.device).view(1, 1, 3)
    target_labels = torch.tensor([0, 1], device=place.device).view(1, 1, 2)
    loss = symmetric_soft_divergence(source, labels, target, target_labels, num_classes=3)
    assert loss.isfinite()
    loss.backward()
    assert (source.grad[..., 2] == 0).all()
    assert source.grad.isfinite().all()
    assert target.grad.abs().max() > 0


@pytest.mark.parametrize("normalise", NORMALISE)
def test_equal_sides_do_not_diverge(place: Place, normalise: str) -> None:
    case = FEATURE_CASES[0]
    features = make_features(case, torch.float32, place.device).requires_grad_()
    labels = make_labels(case, "hard", place.device)
    arguments = (features, labels, features.detach(), labels)
    loss = symmetric_soft_divergence(*arguments, num_classes=5, normalise=normalise)
    loss.backward()
    assert loss.item() == 0.0
    assert_gradient(features.grad, np.zeros(case.shape))


@pytest.mark.parametrize("normalise", NORMALISE)
def test_swapping_the_domains_changes_nothing(place: Place, normalise: str) -> None:
    case = FEATURE_CASES[0]
    source = make_features(case, torch.float32, place.device)
    target = make_features(case, torch.float32, place.device, salt=1)
    first, second = (make_labels(case, kind, place.device) for kind in ("hard", "soft"))
    there = symmetric_soft_divergence(source, first, target, second, normalise=normalise)
    back = symmetric_soft_divergence(target, second, source, first, normalise=normalise)
    assert_within(there, float(back))


def test_centroids_far_apart_stay_finite(place: Place) -> None:
    source = torch.zeros(1, 3, 1, 1, device=place.device, requires_grad=True)
    target = torch.zeros(1, 3, 1, 1, device=place.device)
    target[0, 1] = 500.0  # softmax underflows to zero in float32
    labels = torch.zeros(1, 1, 1, dtype=torch.int64, device=place.device)
    loss = symmetric_soft_divergence(source, labels, target, labels, num_classes=1)
    assert_within(
        loss, oracle(array(source), array(labels), array(target), array(labels), 1, "softmax")
    )
    loss.backward()
    assert source.grad.isfinite().all()


def test_number_of_classes_comes_from_the_soft_labels(place: Place) -> None:
    case = FEATURE_CASES[0]
    features = make_features(case, torch.float32, place.device)
    target = make_features(case, torch.float32, place.device, salt=1)
    hard, soft = (make_labels(case, kind, place.device) for kind in ("hard", "soft"))
    told = symmetric_soft_divergence(features, hard, target, soft, num_classes=5)
    assert torch.equal(symmetric_soft_divergence(features, hard, target, soft), told)
