"""soft_pseudo_labels: Eq. 8-10 against float64, and against a numerical minimisation of Eq. 8."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from operator_cases import (
    CASES,
    DTYPES,
    Case,
    Place,
    array,
    assert_within,
    make_logits,
    make_thresholds,
)
from scipy.optimize import minimize

from cscl_fast.ops import SoftPseudoLabels, soft_pseudo_labels

OPERATOR = "soft_pseudo_labels"
REJECTED = 255


def check_against_oracle(
    answer: SoftPseudoLabels, logits: torch.Tensor, delta: torch.Tensor, gamma: float, case: Case
) -> None:
    """Soft labels, classes and selection, all but where the decision is within 1e-5 of a tie."""
    z = oracles.upsample(array(logits), case.size, case.align_corners)
    soft, selected = oracles.soft_labels(z, array(delta), gamma)
    assert answer.soft.shape == soft.shape
    assert answer.soft.dtype == logits.dtype
    assert answer.hard.shape == selected.shape
    assert answer.hard.dtype == torch.int64
    actual, hard = array(answer.soft), array(answer.hard)

    decided = np.abs(selected) > 1e-5
    kept = actual.sum(axis=1) > 0
    np.testing.assert_array_equal(kept[decided], (selected > 0)[decided])
    expected = np.where(kept[:, None], soft, 0.0)
    # An error in log p is divided by gamma on its way into the soft label.
    assert_within(answer.soft, expected, relative=1e-5 / gamma)

    ordered = np.sort(soft, axis=1)
    margin = ordered[:, -1] - ordered[:, -2] if soft.shape[1] > 1 else np.ones(selected.shape)
    clear = kept & (margin > 1e-5)
    np.testing.assert_array_equal(hard[clear], soft.argmax(axis=1)[clear])
    if soft.shape[1] < 256:
        np.testing.assert_array_equal(hard == REJECTED, ~kept)


@pytest.mark.parametrize("gamma", [0.25, 1.0])
def test_agrees_with_float64(
    place: Place, case: Case, dtype: torch.dtype, layout: str, gamma: float
) -> None:
    logits = make_logits(case, dtype, place.device, layout)
    delta = make_thresholds(case.shape[1], place.device)
    answer = soft_pseudo_labels(logits, delta, gamma, **case.upsampling)
    check_against_oracle(answer, logits, delta, gamma, case)


@pytest.mark.parametrize("gamma", [0.02, 0.1, 5.0])
def test_other_sharpness(place: Place, gamma: float) -> None:
    case = CASES[3]
    logits = make_logits(case, torch.float32, place.device)
    delta = make_thresholds(case.shape[1], place.device)
    answer = soft_pseudo_labels(logits, delta, gamma, **case.upsampling)
    check_against_oracle(answer, logits, delta, gamma, case)


@pytest.mark.parametrize("gamma", [1e-30, 1e30])
def test_extreme_sharpness_is_finite(place: Place, gamma: float) -> None:
    logits = make_logits(CASES[0], torch.float32, place.device)
    soft, hard = soft_pseudo_labels(logits, make_thresholds(19, place.device), gamma)
    assert soft.isfinite().all()
    assert_within(soft.sum(dim=1), array(hard != REJECTED).astype(float))


def test_float64_answers_in_float64() -> None:
    case = CASES[1]
    logits = make_logits(case, torch.float64)
    delta = make_thresholds(5).double()
    soft, _ = soft_pseudo_labels(logits, delta, **case.upsampling)
    expected, selected = oracles.soft_labels(
        oracles.upsample(array(logits), case.size, case.align_corners), array(delta), 0.25
    )
    assert soft.dtype == torch.float64
    assert_within(soft, np.where(selected[:, None] > 0, expected, 0), 1e-12, 1e-13)


@pytest.mark.parametrize("size", [None, (9, 10)])
@pytest.mark.parametrize("shape", [(2, 7, 4, 5), (2, 7, 1, 1), (1, 7, 5, 1)])
def test_memory_format_is_the_logits_own(
    place: Place, shape: tuple[int, ...], size: tuple[int, int] | None
) -> None:
    delta = make_thresholds(7, place.device)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        logits = torch.empty(shape, device=place.device, memory_format=memory_format).normal_()
        soft, hard = soft_pseudo_labels(logits, delta, size=size)
        assert soft.is_contiguous(memory_format=memory_format)
        assert hard.is_contiguous()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_finite_are_rejected(place: Place, bad: float) -> None:
    logits = make_logits(CASES[0], torch.float32, place.device)
    logits[0, 3, 2, 4] = bad
    delta = torch.full((19,), 0.01, device=place.device)  # everything else is kept
    soft, hard = soft_pseudo_labels(logits, delta)
    rejected = hard == REJECTED
    assert rejected.sum() == 1
    assert rejected[0, 2, 4]
    assert (soft[0, :, 2, 4] == 0).all()
    assert soft.isfinite().all()


@pytest.mark.parametrize("align_corners", [False, True])
def test_upsampling_spreads_what_is_not_finite_to_its_readers_only(
    place: Place, align_corners: bool
) -> None:
    case = Case("not finite", (1, 4, 5, 6), (13, 17), align_corners)
    logits = make_logits(case, torch.float32, place.device)
    logits[0, 1, 2, 3] = float("nan")
    delta = torch.full((4,), 0.01, device=place.device)
    _, hard = soft_pseudo_labels(logits, delta, **case.upsampling)
    z = oracles.upsample(array(logits), case.size, align_corners)
    np.testing.assert_array_equal(array(hard) == REJECTED, np.isnan(z).any(axis=1))


def test_ties_go_to_the_lowest_class(place: Place) -> None:
    logits = torch.zeros(1, 5, 2, 3, device=place.device)
    logits[:, 0] = -3
    delta = torch.full((5,), 0.1, device=place.device)
    assert (soft_pseudo_labels(logits, delta).hard == 1).all()
    assert (soft_pseudo_labels(logits, delta, size=(7, 5)).hard == 1).all()


def test_thresholds_of_one_reject_what_is_not_certain(place: Place) -> None:
    logits = torch.randn(1, 4, 3, 3, device=place.device)
    soft, hard = soft_pseudo_labels(logits, torch.ones(4, device=place.device))  # Σ p^4 < 1
    assert (hard == REJECTED).all()
    assert (soft == 0).all()


def test_labels_are_constants(place: Place) -> None:
    logits = make_logits(CASES[0], torch.float32, place.device).requires_grad_()
    soft, hard = soft_pseudo_labels(logits, make_thresholds(19, place.device))
    assert not soft.requires_grad
    assert not hard.requires_grad


def test_permuting_classes_permutes_the_answer(place: Place) -> None:
    case = CASES[3]
    logits = make_logits(case, torch.float32, place.device)
    delta = make_thresholds(19, place.device)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(1)).to(place.device)
    straight = soft_pseudo_labels(logits, delta, **case.upsampling)
    permuted = soft_pseudo_labels(logits[:, order], delta[order], **case.upsampling)
    # Sums over the classes in another order: a few units in the last place, divided by gamma.
    torch.testing.assert_close(permuted.soft, straight.soft[:, order], rtol=1e-5, atol=1e-6)
    kept = permuted.hard != REJECTED
    torch.testing.assert_close(order[permuted.hard[kept]], straight.hard[kept])


@pytest.mark.parametrize("dtype_of_split", DTYPES)
def test_splitting_a_batch_changes_nothing(place: Place, dtype_of_split: torch.dtype) -> None:
    case = CASES[1]
    logits = make_logits(case, dtype_of_split, place.device)
    delta = make_thresholds(5, place.device)
    whole = soft_pseudo_labels(logits, delta, **case.upsampling)
    parts = [soft_pseudo_labels(one, delta, **case.upsampling) for one in logits.split(1)]
    assert torch.equal(whole.soft, torch.cat([part.soft for part in parts]))
    assert torch.equal(whole.hard, torch.cat([part.hard for part in parts]))


def test_repeats_bitwise_for_any_number_of_threads(place: Place) -> None:
    case = Case("threads", (2, 19, 9, 17), (64, 128))
    logits = make_logits(case, torch.float32, place.device)
    delta = make_thresholds(19, place.device)
    threads = torch.get_num_threads()
    try:
        answers = []
        for count in (1, 3, 1):
            torch.set_num_threads(count)
            answers.append(soft_pseudo_labels(logits, delta, **case.upsampling))
    finally:
        torch.set_num_threads(threads)
    for other in answers[1:]:
        assert torch.equal(answers[0].soft, other.soft)
        assert torch.equal(answers[0].hard, other.hard)


def cost(y: np.ndarray, p: np.ndarray, delta: np.ndarray, gamma: float) -> float:
    """Eq. 8 for one pixel; 0 log 0 = 0."""
    entropy = np.where(y > 0, y * np.log(np.maximum(y, 1e-300)), 0).sum()
    return float(-(y * np.log(p / delta)).sum() + gamma * entropy)


@pytest.mark.parametrize("gamma", [0.25, 0.6, 1.5])
def test_closed_form_minimises_equation_8(place: Place, gamma: float) -> None:
    """Minimise Eq. 8 over the simplex numerically; the zero vector costs 0."""
    random = np.random.default_rng(int(gamma * 100))
    kept = 0
    for _ in range(12):
        classes = int(random.integers(2, 7))
        z = random.normal(size=classes) * 1.5
        p = np.exp(oracles.log_softmax(z[None]))[0]
        delta = random.uniform(0.05, 1.0, size=classes)
        found = minimize(
            cost,
            np.full(classes, 1 / classes),
            args=(p, delta, gamma),
            method="SLSQP",
            bounds=[(0, 1)] * classes,
            constraints={"type": "eq", "fun": lambda y: y.sum() - 1},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found.success
        if abs(found.fun) < 1e-4:
            continue  # too close to the cost of rejection for the minimiser to decide
        logits = torch.tensor(z, dtype=torch.float32, device=place.device).view(1, -1, 1, 1)
        threshold = torch.tensor(delta, dtype=torch.float32, device=place.device)
        soft, hard = soft_pseudo_labels(logits, threshold, gamma)
        y = array(soft)[0, :, 0, 0]
        if found.fun < 0:
            kept += 1
            # The minimum is flat: 1e-8 in the cost is 1e-4 in its argument.
            np.testing.assert_allclose(y, found.x, atol=1e-3)
            assert cost(y, p, delta, gamma) <= found.fun + 1e-6
            assert hard.item() == int(np.argmax(found.x))
        else:
            assert (y == 0).all()
            assert hard.item() == REJECTED
    assert kept >= 2


def test_kept_mask_is_the_sign_of_the_cost(place: Place) -> None:
    case = CASES[3]
    logits = make_logits(case, torch.float32, place.device)
    delta = make_thresholds(19, place.device)
    hard = soft_pseudo_labels(logits, delta, **case.upsampling).hard
    z = oracles.upsample(array(logits), case.size, case.align_corners)
    p = np.exp(oracles.log_softmax(oracles.pixels(z)))
    y = oracles.pixels(oracles.soft_labels(z, array(delta), 0.25)[0])
    costs = np.array([cost(a, b, array(delta), 0.25) for a, b in zip(y, p, strict=True)])
    clear = np.abs(costs) > 1e-5
    kept = array(hard).reshape(-1) != REJECTED
    np.testing.assert_array_equal(kept[clear], (costs < 0)[clear])
    assert 0.02 < kept.mean() < 0.98  # the case has both
