"""D: its grid, its layers, its smallest input."""

import pytest
import torch
from torch import nn

from cscl_fast.models import Discriminator


@pytest.mark.parametrize("height", [4, 5, 12, 13, 23, 30])
@pytest.mark.parametrize("width", [4, 17, 30])
@torch.no_grad()
def test_grid_is_a_quarter_of_the_features_and_a_32nd_of_the_image(height, width):
    logits = Discriminator(8)(torch.randn(2, 8, height, width))
    assert logits.shape == (2, 1, height // 4, width // 4)


@pytest.mark.parametrize(
    ("strides", "factor"), [((1, 1, 1, 1, 1), 1), ((2, 2, 2, 2, 2), 32), ((2, 1, 2, 1, 2), 8)]
)
@torch.no_grad()
def test_strides_are_an_option(strides, factor):
    assert Discriminator(3, strides)(torch.randn(1, 3, 64, 96)).shape[-2:] == (
        64 // factor,
        96 // factor,
    )


def test_layers_are_those_of_the_contract():
    convolutions = [m for m in Discriminator(7).modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 512, 1]
    assert [c.kernel_size[0] for c in convolutions] == [4, 4, 3, 3, 3]
    assert [c.stride[0] for c in convolutions] == [2, 2, 1, 1, 1]
    assert all(c.padding == (1, 1) for c in convolutions)
    slopes = [m.negative_slope for m in Discriminator(7).modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2] * 4


def test_gradients_reach_parameters_and_features():
    discriminator = Discriminator(4)
    features = torch.randn(1, 4, 8, 8, requires_grad=True)
    discriminator(features).sum().backward()
    assert features.grad.any()
    assert all(parameter.grad.any() for parameter in discriminator.parameters())


@pytest.mark.parametrize(("strides", "smallest"), [((2, 2, 1, 1, 1), 4), ((2, 2, 2, 2, 1), 16)])
def test_too_small_features_say_the_smallest_size(strides, smallest):
    discriminator = Discriminator(2, strides)
    assert discriminator(torch.zeros(1, 2, smallest, smallest)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=rf"at least {smallest}x{smallest}"):
        discriminator(torch.zeros(1, 2, smallest, smallest - 1))


@pytest.mark.parametrize("strides", [(2, 2, 1, 1), (2, 2, 3, 1, 1), (0, 2, 1, 1, 1)])
def test_impossible_strides_are_refused(strides):
    with pytest.raises(ValueError, match="five values, each 1 or 2"):
        Discriminator(2, strides)
