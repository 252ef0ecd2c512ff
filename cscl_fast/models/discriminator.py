"""D: tells target features from source features, location by location (Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

OUT_CHANNELS = (64, 128, 256, 512, 1)


class Discriminator(nn.Module):
    """Five convolutions without normalisation; leaky ReLU between them.

    Where the stride is 2 the kernel is 4x4, where it is 1 it is 3x3, padding 1 both times. The
    default halves twice: features at 1/8 of the image are judged on a grid at 1/32.

    Args:
        in_channels: C of the features.
        strides: five strides, each 1 or 2.

    Raises:
        ValueError: `strides` are not five values of 1 or 2.
    """

    def __init__(self, in_channels: int, strides: Sequence[int] = (2, 2, 1, 1, 1)) -> None:
        super().__init__()
        if len(strides) != len(OUT_CHANNELS) or any(stride not in (1, 2) for stride in strides):
            raise ValueError(f"strides is {tuple(strides)}; it needs five values, each 1 or 2")
        self.in_channels = in_channels
        self.strides = tuple(strides)
        layers: list[nn.Module] = []
        for out_channels, stride in zip(OUT_CHANNELS, strides, strict=True):
            kernel_size = 4 if stride == 2 else 3
            layers += [
                nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=1),
                nn.LeakyReLU(0.2),
            ]
            in_channels = out_channels
        self.layers = nn.Sequential(*layers[:-1])
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        features: Tensor,  # [B, C, h, w]
    ) -> Tensor:  # [B, 1, h', w']
        """Logits of "this location comes from the target domain": sigmoid of them is D(.).

        Raises:
            ValueError: the features are too small to be halved as often as `strides` ask for.
        """
        smallest = 2 ** self.strides.count(2)
        if min(features.shape[-2:]) < smallest:
            height, width = features.shape[-2:]
            raise ValueError(
                f"features is {height}x{width}; the discriminator with strides {self.strides} "
                f"needs at least {smallest}x{smallest}: use larger images or fewer strides of 2"
            )
        logits: Tensor = self.layers(features)
        return logits
