"""T_Q and T_C: the transferability and the value it is given."""

import pytest
import torch

from cscl_fast.models import TransferabilityCritic, TransferabilityQuantizer


def transferability(target_probability):  # float64; 1 - H2(f) in bits, with 0 log 0 = 0
    complement = 1 - target_probability
    return 1 + (
        torch.special.xlogy(target_probability, target_probability)
        + torch.special.xlogy(complement, complement)
    ) / torch.log(torch.tensor(2.0, dtype=torch.float64))


def test_quantizer_starts_at_the_probability_of_the_discriminator():
    probability = torch.rand(2, 1, 7, 9)
    found = TransferabilityQuantizer()(probability, (7, 9))
    expected = transferability(torch.sigmoid(4 * probability.double() - 2))
    # 1 - H2 cancels near f = 1/2: the error is float32's rounding of 1.
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_quantizer_is_a_convolution_and_an_entropy():
    torch.manual_seed(0)
    quantizer = TransferabilityQuantizer()
    for parameter in quantizer.parameters():
        torch.nn.init.normal_(parameter, std=2)
    probability = torch.rand(2, 1, 6, 5)
    found = quantizer(probability, (6, 5))
    logits = quantizer.double().convolution(probability.double())
    expected = transferability(torch.sigmoid(logits))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0, 100.0, 1e4, 1e30])
def test_quantizer_is_exact_and_finite_at_the_extremes(scale):
    quantizer = TransferabilityQuantizer()
    with torch.no_grad():
        quantizer.convolution.weight.mul_(scale)
        quantizer.convolution.bias.mul_(scale)
    probability = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).reshape(5, 1, 1, 1).requires_grad_()
    found = quantizer(probability, (1, 1))
    expected = transferability(torch.sigmoid(scale * (4 * probability.detach().double() - 2)))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    found.sum().backward()
    assert probability.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in quantizer.parameters())


def test_gradient_of_the_quantizer_is_that_of_float64():
    probability = torch.linspace(0, 1, 21).reshape(1, 1, 3, 7)
    reference = TransferabilityQuantizer().double()
    transferability(torch.sigmoid(reference.convolution(probability.double()))).sum().backward()
    quantizer = TransferabilityQuantizer()
    quantizer(probability, (3, 7)).sum().backward()
    for found, expected in zip(quantizer.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(12, 17), (3, 4), (1, 1), (13, 18)])
def test_transferability_has_the_size_of_the_features_and_stays_in_its_range(size):
    quantizer = TransferabilityQuantizer()
    with torch.no_grad():
        quantizer.convolution.weight.mul_(100)
    found = quantizer(torch.rand(3, 1, 3, 4), size)
    assert found.shape == (3, 1, *size)
    assert found.min() >= 0 and found.max() <= 1


def test_resizing_is_bilinear():
    quantizer = TransferabilityQuantizer()
    found = quantizer(torch.tensor([0.5, 1.0]).reshape(1, 1, 1, 2), (1, 4)).flatten()
    left, right = 0.0, transferability(torch.sigmoid(torch.tensor(2.0).double())).item()
    expected = torch.tensor([left, 0.25 * right, 0.75 * right, right])
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)


def test_half_precision_autocast_keeps_transferability_in_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = TransferabilityQuantizer()(torch.rand(1, 1, 3, 4), (6, 8))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("size", [(1, 1), (12, 17)])
def test_critic_starts_at_the_middle_of_the_rewards(size):
    critic = TransferabilityCritic(6)
    value = critic(torch.randn(2, 6, *size), torch.rand(2, 1, *size))
    assert value.shape == (2, 1, *size)
    assert (value == 1).all()


def test_critic_learns_from_features_and_from_transferability():
    torch.manual_seed(0)
    critic = TransferabilityCritic(6)
    torch.nn.init.normal_(critic.value.weight)
    features = torch.rand(2, 6, 5, 7, requires_grad=True)
    policy = torch.rand(2, 1, 5, 7, requires_grad=True)
    value = critic(features, policy)
    assert value.min() < 0, "the value is linear, not rectified"
    value.sum().backward()
    assert features.grad.any() and policy.grad.any()
    assert all(parameter.grad.any() for parameter in critic.parameters())


def test_branches_of_the_critic_are_those_of_the_contract():
    critic = TransferabilityCritic(6)
    shapes = [tuple(p.shape) for p in critic.parameters() if p.ndim == 4]
    assert shapes == [
        (64, 6, 3, 3),
        (32, 64, 3, 3),
        (16, 32, 3, 3),
        (16, 1, 3, 3),
        (16, 16, 3, 3),
        (1, 32, 3, 3),
    ]
