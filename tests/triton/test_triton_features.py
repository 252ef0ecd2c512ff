"""Centroids and divergence of the Triton backend against float64, by Triton's interpreter."""

from __future__ import annotations

import oracles
import pytest
import torch
from interpreter_cases import interpreted
from operator_cases import DTYPES, LAYOUTS, array, assert_gradient, assert_within
from torch import Tensor

from cscl_fast.backends.reference import symmetric_soft_divergence as reference
from cscl_fast.backends.triton import class_centroid
from cscl_fast.backends.triton.symmetric_soft_divergence import symmetric_soft_divergence

FEATURES = {
    "plain": ((2, 16, 7, 9), 5),
    "one location": ((1, 8, 1, 1), 3),
    "one class": ((1, 1, 4, 5), 1),
    "256 classes": ((2, 4, 9, 8), 256),
    "no image": ((0, 4, 5, 6), 3),
    "wide": ((1, 300, 3, 4), 19),
}


def make_features(
    name: str, dtype: torch.dtype, layout: str, salt: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, hard labels and soft ones."""
    shape, classes = FEATURES[name]
    generator = torch.Generator().manual_seed(salt)
    features = torch.randn(shape, generator=generator).to(dtype)
    if layout == "channels-last":
        features = features.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        features = features.repeat_interleave(2, dim=3)[..., ::2]
    batch, _, height, width = shape
    hard = torch.randint(0, classes, (batch, height, width), generator=generator)
    gone = torch.rand(hard.shape, generator=generator) < 0.3
    soft = (3 * torch.randn(batch, classes, height, width, generator=generator)).softmax(1)
    soft = soft.round(decimals=1).masked_fill(gone[:, None], 0)  # ties
    return features, hard.masked_fill(gone, 255), soft.to(dtype)


@interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FEATURES)
def test_class_centroids(name: str, dtype: torch.dtype, layout: str) -> None:
    classes = FEATURES[name][1]
    features, *both = make_features(name, dtype, layout, 0)
    features.requires_grad_()
    for labels in both:
        centroids, mass = class_centroid.class_centroids(features, labels, classes)
        expected, expected_mass = oracles.centroids(array(features), array(labels), classes)
        assert_within(centroids, expected)
        assert_within(mass, expected_mass)
        assert not mass.requires_grad
        weight = torch.randn(centroids.shape, generator=torch.Generator().manual_seed(5))
        (gradient,) = torch.autograd.grad((centroids * weight).sum(), features)
        row, share = oracles.assignment(array(labels), classes)
        per_mass = array(weight) / expected_mass.clip(1e-30)[:, None]
        wanted = per_mass[row] * (share * (row >= 0))[:, None]
        assert_gradient(gradient, oracles.image(wanted, array(features)))


@interpreted
def test_a_bad_feature_spoils_its_own_class_only() -> None:
    features = torch.randn(1, 3, 2, 4)
    features[0, 1, 0, 1] = float("nan")
    features[0, 0, 1, 2] = float("inf")
    labels = torch.tensor([[0, 1, 2, 255], [0, 1, 255, 2]])[None]
    centroids, _ = class_centroid.class_centroids(features, labels, 3)
    assert centroids[[0, 2]].isfinite().all()
    assert centroids[1].isfinite().tolist() == [True, False, True]


@interpreted
@pytest.mark.parametrize("normalise", ["softmax", "l1"])
@pytest.mark.parametrize("name", FEATURES)
def test_symmetric_soft_divergence(name: str, normalise: str) -> None:
    classes = FEATURES[name][1]
    for i, dtype in enumerate(DTYPES if classes < 256 else DTYPES[:1]):
        source, hard, _ = make_features(name, dtype, LAYOUTS[i], 0)
        target, _, soft = make_features(name, dtype, LAYOUTS[i], 1)
        loss = symmetric_soft_divergence(source, hard, target, soft, classes, normalise, 1e-6)
        sides = (
            oracles.centroids(array(source), array(hard), classes),
            oracles.centroids(array(target), array(soft), classes),
        )
        assert_within(loss, oracles.divergence(*sides, normalise, 1e-6))


@interpreted
@pytest.mark.parametrize("normalise", ["softmax", "l1"])
def test_gradient_of_the_divergence(normalise: str) -> None:
    source, hard, _ = make_features("plain", torch.float32, "contiguous", 0)
    target, _, soft = make_features("plain", torch.float32, "channels-last", 1)
    given = [source.requires_grad_(), hard, target.requires_grad_(), soft, 5, normalise, 0.5]
    found = torch.autograd.grad(symmetric_soft_divergence(*given), (source, target))
    wide = [source.detach().double().requires_grad_(), hard]
    wide += [target.detach().double().requires_grad_(), soft.double(), *given[4:]]
    wanted = torch.autograd.grad(reference.symmetric_soft_divergence(*wide), (wide[0], wide[2]))
    for a, b in zip(found, wanted, strict=True):
        assert_gradient(a, array(b))
