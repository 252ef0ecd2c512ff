"""What every segmentation network here offers: encode, classify, and the plain path of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck


class Features(NamedTuple):
    """What the encoder hands to the classifier."""

    deep: Tensor  # [B, C, h, w], after the last ReLU, channels-last: F of the paper
    skips: tuple[Tensor, ...] = ()  # finer feature maps, for networks that fuse them


class SegmentationModel(nn.Module, ABC):
    """An encoder E and a pixel classifier C.

    They are two steps because the method works between them: the discriminator, the
    transferability networks and the category centroids read `Features.deep`, and the gated
    path classifies features that are multiplied by (1 + transferability): `classify_both`.
    """

    architecture: str
    num_classes: int
    feature_channels: int  # C of `Features.deep`
    feature_stride: int = 8  # pixels of the image for each location of `Features.deep`
    encoder: nn.Module
    classifier: nn.Module  # learns with ten times the encoder's rate

    @abstractmethod
    def encode(
        self,
        images: Tensor,  # [B, 3, H, W], any memory format
    ) -> Features:
        """The encoder's features of normalised images."""

    @abstractmethod
    def classify(
        self,
        features: Features,
    ) -> Tensor:  # [B, K, ceil(H / 8), ceil(W / 8)]
        """Class logits at an eighth of the image's resolution.

        (The -caffe variants pool with rounding up: one row or column more at some sizes.)
        """

    def classify_both(
        self,
        features: Features,
        gate: Tensor,  # [B, 1, h, w], P on the grid of `features.deep`
    ) -> tuple[Tensor, Tensor]:  # [B, K, ...] each
        """The logits by the plain path and by the gated one, C(F) and C(F (1 + P)).

        Here two calls of `classify`; a network whose classifier allows it shares their work.
        """
        gated = features._replace(deep=features.deep * (1 + gate))
        return self.classify(features), self.classify(gated)

    def recomputable(self) -> list[nn.Module]:
        """The parts of the encoder that `checkpoint_activations` takes: residual blocks here."""
        blocks = (BasicBlock, Bottleneck)
        return [module for module in self.encoder.modules() if isinstance(module, blocks)]

    def forward(
        self,
        images: Tensor,  # [B, 3, H, W]
    ) -> Tensor:  # [B, K, ceil(H / 8), ceil(W / 8)]
        """Class logits by the plain path, without the transferability gate."""
        return self.classify(self.encode(images))
