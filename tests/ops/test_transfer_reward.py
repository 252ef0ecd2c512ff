"""transfer_reward: R = R^s + R^a against float64, one location after the other."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from operator_cases import CASES, Case, Place, array, make_logits

from cscl_fast.ops import transfer_reward

OPERATOR = "transfer_reward"


def make_labels(case: Case, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(case.seed + 7)
    shape = (case.shape[0], *case.shape[2:])
    labels = torch.randint(0, case.shape[1], shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.2] = 255
    return labels.to(device)


def test_agrees_with_float64(place: Place, case: Case, dtype: torch.dtype, layout: str) -> None:
    gated = make_logits(case, dtype, place.device, layout)
    plain = make_logits(case, dtype, place.device, layout, salt=1)
    labels = make_labels(case, place.device)
    reward, valid = transfer_reward(gated, plain, labels)
    expected, expected_valid = oracles.rewards(array(gated), array(plain), array(labels))
    assert reward.dtype == torch.float32
    assert valid.dtype == torch.bool
    np.testing.assert_array_equal(array(valid), expected_valid)
    # With one class both probabilities are exactly 1; elsewhere random logits do not tie.
    np.testing.assert_array_equal(array(reward), expected)


def test_every_reward(place: Place) -> None:
    """One location for each combination of right and likelier, and one ignored."""
    plain = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 3.0, -3.0, 2.0, 0.0]])
    gated = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 2.0, -2.0, -2.0, 9.0]])
    labels = torch.tensor([1, 1, 1, 1, 255])
    reward, valid = transfer_reward(
        gated.view(1, 2, 1, 5).to(place.device),
        plain.view(1, 2, 1, 5).to(place.device),
        labels.view(1, 1, 5).to(place.device),
    )
    assert reward.flatten().tolist() == [2.0, 1.0, 1.0, 0.0, 0.0]
    assert valid.flatten().tolist() == [True, True, True, True, False]


def test_equal_logits_are_no_gain(place: Place, dtype: torch.dtype, layout: str) -> None:
    logits = make_logits(CASES[0], dtype, place.device, layout)
    labels = make_labels(CASES[0], place.device)
    reward, _ = transfer_reward(logits, logits.clone(), labels)
    right = (logits.argmax(1) == labels)[:, None]
    assert torch.equal(reward, right.float())


def test_a_small_gain_counts(place: Place) -> None:
    """One unit in the last place of float32, at a probability where float32 loses it."""
    plain = torch.zeros(1, 2, 1, 1, device=place.device)
    plain[0, 0] = 12.0
    gated = plain.clone()
    gated[0, 0] = torch.nextafter(gated[0, 0], torch.full_like(gated[0, 0], 20.0))
    labels = torch.zeros(1, 1, 1, dtype=torch.int64, device=place.device)
    assert transfer_reward(gated, plain, labels)[0].item() == 2.0
    assert transfer_reward(plain, gated, labels)[0].item() == 1.0


def test_ties_of_the_gated_argmax_go_to_the_lowest_class(place: Place) -> None:
    logits = torch.zeros(1, 3, 1, 2, device=place.device)
    labels = torch.tensor([0, 1], device=place.device).view(1, 1, 2)
    assert transfer_reward(logits, logits, labels)[0].flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_earns_nothing(place: Place, bad: float) -> None:
    good = torch.zeros(1, 3, 1, 1, device=place.device)
    good[:, 1] = 2.0
    broken = good.clone()
    broken[:, 1] = bad
    labels = torch.ones(1, 1, 1, dtype=torch.int64, device=place.device)
    weak = torch.zeros_like(good)
    for gated, plain, wanted in ((broken, weak, 0.0), (good, broken, 1.0), (broken, broken, 0.0)):
        reward, valid = transfer_reward(gated, plain, labels)
        assert reward.item() == wanted
        assert valid.item()


def test_rewards_are_constants(place: Place) -> None:
    logits = make_logits(CASES[0], torch.float32, place.device).requires_grad_()
    reward, _ = transfer_reward(logits, logits * 2, make_labels(CASES[0], place.device))
    assert not reward.requires_grad


def test_splitting_a_batch_changes_nothing(place: Place) -> None:
    case = CASES[0]
    gated, plain = (make_logits(case, torch.float32, place.device, salt=i) for i in range(2))
    labels = make_labels(case, place.device)
    whole = transfer_reward(gated, plain, labels)
    parts = [
        transfer_reward(*pieces)
        for pieces in zip(gated.split(1), plain.split(1), labels.split(1), strict=True)
    ]
    assert torch.equal(whole[0], torch.cat([reward for reward, _ in parts]))
    assert torch.equal(whole[1], torch.cat([valid for _, valid in parts]))
