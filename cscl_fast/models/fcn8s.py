"""FCN-8s: torchvision's VGG-16 with its fully connected layers as convolutions, and two skips.

The encoder's `features` are torchvision's own, under their own names; `fc6` and `fc7` are the
first two fully connected layers of torchvision's classifier, as convolutions.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vgg

from cscl_fast.models.segmentation_model import Features, SegmentationModel

POOLS = (4, 9, 16, 23, 30)  # where in torchvision's `features` the five poolings stand
POOL3_CHANNELS, POOL4_CHANNELS, FC_CHANNELS = 256, 512, 4096


class VGG16Encoder(nn.Module):
    """VGG-16 up to fc7, fully convolutional."""

    def __init__(self) -> None:
        super().__init__()
        # Not `torchvision.models.vgg16()`: it would first fill 120 million linear weights.
        self.features = vgg.make_layers(vgg.cfgs["D"], batch_norm=False)
        self.fc6 = nn.Conv2d(512, FC_CHANNELS, 7, padding=3)
        self.fc7 = nn.Conv2d(FC_CHANNELS, FC_CHANNELS, 1)
        self.dropout = nn.Dropout(0.5)
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                # Rounding up keeps the border of sizes that 32 does not divide, and makes every
                # grid at least half the one before, so that upsampling by 2 can be cropped to it.
                layer.ceil_mode = True
            elif isinstance(layer, nn.Conv2d):
                assert layer.bias is not None
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        for layer in (self.fc6, self.fc7):  # as torchvision starts its linear layers
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        # Up to one pooling each. In a tuple, so that the layers have no second name.
        bounds = itertools.pairwise((-1, *POOLS))
        self.stages = tuple(self.features[last + 1 : pool + 1] for last, pool in bounds)

    def forward(
        self,
        images: Tensor,  # [B, 3, H, W]
    ) -> tuple[Tensor, Tensor, Tensor]:  # fc7, pool4, pool3 at 1/32, 1/16, 1/8
        first, second, third, fourth, fifth = self.stages
        pool3 = third(second(first(images)))
        pool4 = fourth(pool3)
        pool5 = fifth(pool4)
        fc6 = self.dropout(F.relu(self.fc6(pool5), inplace=True))
        fc7 = self.dropout(F.relu(self.fc7(fc6), inplace=True))
        return fc7, pool4, pool3


class FusedScores(nn.Module):
    """The pixel classifier of FCN-8s: 1x1 scores at three grids, summed from coarse to fine.

    The skips start at 0, as in FCN: the network begins as FCN-32s and learns what they add.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.score_fc7 = nn.Conv2d(FC_CHANNELS, num_classes, 1)
        self.score_pool4 = nn.Conv2d(POOL4_CHANNELS, num_classes, 1)
        self.score_pool3 = nn.Conv2d(POOL3_CHANNELS, num_classes, 1)
        nn.init.normal_(self.score_fc7.weight, std=0.01)
        nn.init.zeros_(self.score_pool4.weight)
        nn.init.zeros_(self.score_pool3.weight)
        for layer in (self.score_fc7, self.score_pool4, self.score_pool3):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        fc7: Tensor,  # [B, 4096, h, w]
        pool4: Tensor,  # [B, 512, h4, w4]
        pool3: Tensor,  # [B, 256, h3, w3]
        gate: Tensor | None = None,  # [B, 1, h, w]
    ) -> Tensor | tuple[Tensor, Tensor]:  # [B, K, h3, w3]
        """The logits; with a gate also those of `fc7 * (1 + gate)` and the same skips.

        The gate is one number for each location, so it may be multiplied after the scores of fc7
        as well as before them: both paths share every score.
        """
        scores = F.conv2d(fc7, self.score_fc7.weight)
        bias = self.score_fc7.bias
        assert bias is not None
        bias = bias[:, None, None]
        on_pool4, on_pool3 = self.score_pool4(pool4), self.score_pool3(pool3)

        def fused(deepest: Tensor) -> Tensor:
            logits = on_pool4 + _doubled(deepest, pool4.shape[-2:])
            return on_pool3 + _doubled(logits, pool3.shape[-2:])

        plain = fused(scores + bias)
        return plain if gate is None else (plain, fused(scores * (1 + gate) + bias))


def _doubled(
    scores: Tensor,  # [B, K, h, w]
    size: torch.Size,  # (2h or 2h - 1, 2w or 2w - 1)
) -> Tensor:  # [B, K, *size]
    """Bilinear upsampling by exactly 2, cropped at the far border: the grids stay aligned."""
    doubled = F.interpolate(scores, scale_factor=2.0, mode="bilinear", align_corners=False)
    return doubled[..., : size[0], : size[1]]


class FCN8s(SegmentationModel):
    """FCN-8s with a VGG-16 encoder; F is fc7, at 1/32 of the image, the skips are pool4, pool3.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.architecture = "fcn8s-vgg16"
        self.num_classes = num_classes
        self.feature_channels = FC_CHANNELS
        self.feature_stride = 32
        self.encoder: VGG16Encoder = VGG16Encoder()
        self.classifier = FusedScores(num_classes)

    def encode(self, images: Tensor) -> Features:
        images = images.contiguous(memory_format=torch.channels_last)
        fc7, pool4, pool3 = self.encoder(images)
        return Features(fc7, (pool4, pool3))

    def recomputable(self) -> list[nn.Module]:
        return list(self.encoder.stages)

    def classify(self, features: Features) -> Tensor:
        pool4, pool3 = features.skips
        logits: Tensor = self.classifier(features.deep, pool4, pool3)
        return logits

    def classify_both(self, features: Features, gate: Tensor) -> tuple[Tensor, Tensor]:
        pool4, pool3 = features.skips
        plain, gated = self.classifier(features.deep, pool4, pool3, gate)
        return plain, gated
