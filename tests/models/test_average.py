"""The exponential average of the weights."""

import pytest
import torch
from torch import nn

from cscl_fast.models import WeightAverage, build_model


def network(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    model(torch.randn(2, 3, 5, 5))
    return model


def test_parameters_follow_with_the_decay_and_buffers_are_copied():
    model = network(0)
    average = WeightAverage(model, 0.9)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    for seed in (1, 2, 3):
        model.load_state_dict(network(seed).state_dict())
        average.update(model)
        for name, parameter in model.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach().double()
    for name, parameter in average.module.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-6, atol=1e-7)
    for found, buffer in zip(average.module.buffers(), model.buffers(), strict=True):
        assert torch.equal(found, buffer)


def test_average_is_an_independent_copy_in_evaluation_mode():
    model = network(0)
    average = WeightAverage(model, 0.99)
    assert not any(layer.training for layer in average.module.modules())
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        model[0].weight.zero_()
    assert average.module[0].weight.any()


@pytest.mark.parametrize(("decay", "seed"), [(0.0, 1), (1.0, 0)])
def test_decay_of_zero_copies_and_of_one_stays(decay, seed):
    average = WeightAverage(network(0), decay)
    average.update(network(1))
    assert torch.equal(average.module[0].weight, network(seed)[0].weight)


def test_update_leaves_no_trace_in_autograd_and_keeps_channels_last():
    model = build_model("deeplabv2-resnet18", 3)
    average = WeightAverage(model, 0.9)
    average.update(model)
    for parameter in average.module.parameters():
        assert parameter.grad_fn is None
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)


def test_state_is_the_state_dict_of_the_network():
    first, second = WeightAverage(network(0), 0.9), WeightAverage(network(1), 0.9)
    network(2).load_state_dict(first.state_dict())
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.module[0].weight, second.module[0].weight)


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_decay_is_checked(decay):
    with pytest.raises(ValueError, match="decay is"):
        WeightAverage(network(0), decay)
