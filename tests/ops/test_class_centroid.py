"""class_centroids: Eq. 12-13 against float64, one location after the other."""

from __future__ import annotations

from dataclasses import dataclass

import oracles
import pytest
import torch
from operator_cases import Place, arrange, array, assert_gradient, assert_within

from cscl_fast.ops import class_centroids

OPERATOR = "class_centroids"
SCALE = 1024.0


@dataclass(frozen=True)
class FeatureCase:
    """Features and labels of one shape."""

    name: str
    shape: tuple[int, int, int, int]  # B, C, h, w
    classes: int


FEATURE_CASES = (
    FeatureCase("plain", (2, 16, 7, 9), 5),
    FeatureCase("one location", (1, 8, 1, 1), 3),
    FeatureCase("one channel", (2, 1, 5, 4), 4),
    FeatureCase("one class", (1, 6, 4, 5), 1),
    FeatureCase("256 classes", (2, 4, 9, 8), 256),
    FeatureCase("no image", (0, 4, 5, 6), 3),
    FeatureCase("wide", (1, 300, 3, 4), 19),
)
KINDS = ("hard", "soft")


def make_features(
    case: FeatureCase, dtype: torch.dtype, device: str, layout: str = "contiguous", salt: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(case.name) + salt)
    return arrange(torch.randn(case.shape, generator=generator).to(device, dtype), layout)


def make_labels(
    case: FeatureCase, kind: str, device: str, dtype: torch.dtype = torch.float32, salt: int = 0
) -> torch.Tensor:
    """Hard labels with ignored locations, or soft ones with rejected locations and ties."""
    generator = torch.Generator().manual_seed(len(case.name) + 100 + salt)
    batch, _, height, width = case.shape
    gone = torch.rand(batch, height, width, generator=generator) < 0.3
    if kind == "hard":
        labels = torch.randint(0, case.classes, gone.shape, generator=generator)
        return labels.masked_fill(gone, 255).to(device)
    logits = torch.randn(batch, case.classes, height, width, generator=generator) * 3
    logits[:, :, ::3] = logits[:, :, ::3].round()  # many ties
    return logits.softmax(1).masked_fill(gone[:, None], 0).to(device, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("feature_case", FEATURE_CASES, ids=lambda case: case.name)
def test_agrees_with_float64(
    place: Place, feature_case: FeatureCase, dtype: torch.dtype, layout: str, kind: str
) -> None:
    features = make_features(feature_case, dtype, place.device, layout).requires_grad_()
    labels = make_labels(feature_case, kind, place.device, dtype)
    centroids, mass = class_centroids(features, labels, feature_case.classes)
    assert centroids.dtype == mass.dtype == torch.float32
    expected, expected_mass = oracles.centroids(
        array(features), array(labels), feature_case.classes
    )
    assert_within(centroids, expected)
    assert_within(mass, expected_mass)
    assert not mass.requires_grad

    weight = torch.randn(centroids.shape, generator=torch.Generator().manual_seed(5))
    (centroids * weight.to(place.device) * SCALE).sum().backward()
    row, share = oracles.assignment(array(labels), feature_case.classes)
    per_mass = array(weight) / expected_mass.clip(1e-30)[:, None]
    gradient = per_mass[row] * (share * (row >= 0))[:, None] * SCALE
    assert_gradient(features.grad, oracles.image(gradient, array(features)))


@pytest.mark.parametrize("kind", KINDS)
def test_no_mass_is_zero_with_zero_gradients(place: Place, kind: str) -> None:
    features = torch.randn(2, 3, 4, 5, device=place.device, requires_grad=True)
    labels = torch.full((2, 4, 5), 255) if kind == "hard" else torch.zeros(2, 6, 4, 5)
    centroids, mass = class_centroids(features, labels.to(place.device), 6)
    assert torch.equal(centroids, torch.zeros(6, 3, device=place.device))
    assert torch.equal(mass, torch.zeros(6, device=place.device))
    centroids.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_million_locations(place: Place, kind: str) -> None:
    """Features that are mostly alike, as after a ReLU with a bias: the sums are large."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(1, 2, 512, 1024, generator=generator) * 0.1 + 3
    labels = torch.zeros(1, 512, 1024, dtype=torch.int64)
    labels[:, :8] = 1
    wanted = torch.stack(
        [features[0, :, 8:].double().mean((1, 2)), features[0, :, :8].double().mean((1, 2))]
    )
    mass = [504 * 1024.0, 8 * 1024.0]
    if kind == "soft":
        labels = torch.nn.functional.one_hot(labels, 2).permute(0, 3, 1, 2) * 0.7
        mass = [0.7 * m for m in mass]
    centroids, found = class_centroids(features.to(place.device), labels.to(place.device), 2)
    assert_within(centroids, array(wanted))
    assert_within(found, mass)


def test_only_the_largest_soft_label_counts(place: Place) -> None:
    features = torch.tensor([1.0, 2.0, 4.0], device=place.device).view(1, 1, 1, 3)
    soft = torch.tensor([[0.6, 0.5, 0.3], [0.4, 0.5, 0.7]], device=place.device).view(1, 2, 1, 3)
    centroids, mass = class_centroids(features, soft, 2)
    assert_within(centroids[:, 0], [(0.6 * 1 + 0.5 * 2) / 1.1, 4.0])
    assert_within(mass, [1.1, 0.7])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_in_its_class(place: Place, kind: str) -> None:
    features = torch.ones(1, 2, 1, 3, device=place.device)
    features[0, :, 0, 1] = float("nan")  # of class 1
    features[0, :, 0, 2] = float("inf")  # of no class
    labels = torch.tensor([0, 1, 255]).view(1, 1, 3)
    if kind == "soft":
        labels = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]]).view(1, 2, 1, 3)
    centroids, _ = class_centroids(features, labels.to(place.device), 2)
    assert torch.equal(centroids[0], torch.ones(2, device=place.device))
    assert centroids[1].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    case = FEATURE_CASES[0]
    features = make_features(case, torch.float64, "cpu").requires_grad_()
    labels = make_labels(case, kind, "cpu", torch.float64)
    assert class_centroids(features, labels, 5)[0].dtype == torch.float64
    assert torch.autograd.gradcheck(lambda f: class_centroids(f, labels, 5)[0], features)


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_classes_and_splitting_the_batch(place: Place, kind: str) -> None:
    case = FEATURE_CASES[0]
    features = make_features(case, torch.float32, place.device)
    labels = make_labels(case, kind, place.device)
    if kind == "soft":  # without ties, which belong to the lowest class of either order
        labels = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2))
        labels = labels.to(place.device)
    centroids, mass = class_centroids(features, labels, 5)
    order = torch.tensor([3, 0, 4, 1, 2], device=place.device)
    if kind == "soft":
        renamed = labels[:, order]
    else:
        renamed = torch.where(labels == 255, 255, order.argsort()[labels.clamp(max=4)])
    permuted, permuted_mass = class_centroids(features, renamed, 5)
    assert_within(permuted, array(centroids[order]))
    assert_within(permuted_mass, array(mass[order]))
    parts = [
        class_centroids(f, y, 5) for f, y in zip(features.split(1), labels.split(1), strict=True)
    ]
    total = sum(m for _, m in parts)
    assert_within(total, array(mass))
    assert_within(sum(c * m[:, None] for c, m in parts) / total[:, None], array(centroids))


def test_repeats_bitwise(place: Place) -> None:
    case = FeatureCase("threads", (2, 64, 40, 50), 19)
    labels = make_labels(case, "hard", place.device)
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 3, 3):
            torch.set_num_threads(count)
            features = make_features(case, torch.float32, place.device).requires_grad_()
            centroids, _ = class_centroids(features, labels, 19)
            centroids.square().sum().backward()
            answers.append((centroids.detach(), features.grad))
    finally:
        torch.set_num_threads(threads)
    for centroids, gradient in answers[1:]:
        assert torch.equal(centroids, answers[0][0])
        assert torch.equal(gradient, answers[0][1])
