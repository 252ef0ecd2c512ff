"""The operators of the Triton backend against float64, by Triton's interpreter.

The interpreter must be chosen before Triton is imported. Where it was not, one test runs this file
again in a process of its own; with TRITON_INTERPRET=1 in the environment the tests run as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

import oracles
from operator_cases import (
    CASES,
    DTYPES,
    LAYOUTS,
    Case,
    array,
    assert_gradient,
    assert_within,
    make_logits,
    make_thresholds,
)

from cscl_fast.backends.reference import transfer_reward as reference_reward
from cscl_fast.backends.triton import class_centroid, class_threshold
from cscl_fast.backends.triton.launch import INTERPRETED
from cscl_fast.backends.triton.pseudo_label_loss import pseudo_label_loss
from cscl_fast.backends.triton.soft_pseudo_label import soft_pseudo_labels
from cscl_fast.backends.triton.symmetric_soft_divergence import symmetric_soft_divergence
from cscl_fast.backends.triton.transfer_reward import transfer_reward
from cscl_fast.backends.triton.upsampled_cross_entropy import upsampled_cross_entropy

interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 in advance")
SCALE = 1024.0  # gradients of a mean are below what float16 can hold
# One layout and dtype for every case, so that all of them occur.
SPREAD = [
    pytest.param(case, DTYPES[i % 3], LAYOUTS[i // 3 % 3], id=case.name)
    for i, case in enumerate(CASES)
]
ALL_KINDS = [
    pytest.param(CASES[1], dtype, layout, id=f"{CASES[1].name}-{dtype}-{layout}")
    for dtype in DTYPES
    for layout in LAYOUTS
]
BAD = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="already interpreted")
@pytest.mark.timeout(1800)
def test_operators_in_the_interpreter() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stdout[-10_000:] + told.stderr[-2_000:]


def upsampled(logits: Tensor, case: Case) -> np.ndarray:
    return oracles.upsample(array(logits), case.size, case.align_corners)


def random_labels(case: Case, area: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed + 7)
    shape = (case.shape[0], *area)
    labels = torch.randint(0, case.shape[1], shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.2] = 255
    return labels


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
    from cscl_fast.backends.reference import symmetric_soft_divergence as reference

    source, hard, _ = make_features("plain", torch.float32, "contiguous", 0)
    target, _, soft = make_features("plain", torch.float32, "channels-last", 1)
    given = [source.requires_grad_(), hard, target.requires_grad_(), soft, 5, normalise, 0.5]
    found = torch.autograd.grad(symmetric_soft_divergence(*given), (source, target))
    wide = [source.detach().double().requires_grad_(), hard]
    wide += [target.detach().double().requires_grad_(), soft.double(), *given[4:]]
    wanted = torch.autograd.grad(reference.symmetric_soft_divergence(*wide), (wide[0], wide[2]))
    for a, b in zip(found, wanted, strict=True):
        assert_gradient(a, array(b))


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
