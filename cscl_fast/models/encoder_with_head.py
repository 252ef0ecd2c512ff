"""Any encoder and any pixel classifier as a network that the method can adapt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cscl_fast.models.segmentation_model import Features, SegmentationModel


class EncoderWithHead(SegmentationModel):
    """A `SegmentationModel` made of two modules from elsewhere.

        network = torchvision.models.segmentation.deeplabv3_resnet50(num_classes=19)
        model = EncoderWithHead(network.backbone, network.classifier, 19, 2048, pick="out")

    The method reads one feature map, F, and classifies F and F * (1 + P). Both modules become
    channels-last; nothing else in them changes, and their parameters keep their names below
    `encoder.` and `classifier.`.

    Args:
        encoder: takes images [B, 3, H, W] and returns F, or several feature maps.
        head: takes F [B, C, h, w] and, after it, the maps of `skips`; returns logits [B, K, ...].
            Their grid may be finer than that of F, as that of decoders is.
        num_classes: K, 1 to 256.
        feature_channels: C.
        pick: which of several maps is F: the key of a mapping ("out"), or the index into a list or
            tuple (-1: the last). None where the encoder returns F itself.
        skips: keys or indices of the maps that the head gets beside F.
        feature_stride: pixels of the image for each location of F; it decides on which grid the
            discriminator works.

    Raises:
        TypeError: `encoder` or `head` is no module.
        ValueError: `num_classes`, `feature_channels` or `feature_stride` is out of range; in
            `encode` and `classify` also where a module returns something else than was said here.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        num_classes: int,
        feature_channels: int,
        pick: str | int | None = None,
        *,
        skips: Sequence[str | int] = (),
        feature_stride: int = 8,
    ) -> None:
        super().__init__()
        for name, module in (("encoder", encoder), ("head", head)):
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"{name} is a {type(module).__name__}; it needs to be a torch.nn.Module"
                )
        if not 1 <= num_classes <= 256:
            raise ValueError(f"num_classes is {num_classes}; it needs to be 1 to 256")
        if feature_channels < 1:
            raise ValueError(f"feature_channels is {feature_channels}; it needs to be at least 1")
        if feature_stride < 1:
            raise ValueError(f"feature_stride is {feature_stride}; it needs to be at least 1")
        if skips and pick is None:
            raise ValueError(
                f"skips is {tuple(skips)}, but pick is None; say which of the encoder's maps F is"
            )
        self.architecture = f"{type(encoder).__name__}+{type(head).__name__}"
        self.num_classes = num_classes
        self.feature_channels = feature_channels
        self.feature_stride = feature_stride
        self.pick = pick
        self.skips = tuple(skips)
        self.encoder = encoder
        self.classifier = head
        self.to(memory_format=torch.channels_last)

    def encode(self, images: Tensor) -> Features:
        found = self.encoder(images.contiguous(memory_format=torch.channels_last))
        deep = _picked(found, self.pick)
        channels = self.feature_channels
        if deep.ndim != 4 or deep.shape[1] != channels:
            raise ValueError(
                f"the encoder's feature map is {list(deep.shape)}; it needs to be "
                f"[B, {channels}, h, w], as feature_channels is {channels}"
            )
        skips = tuple(_picked(found, skip) for skip in self.skips)
        return Features(deep.contiguous(memory_format=torch.channels_last), skips)

    def classify(self, features: Features) -> Tensor:
        logits = self.classifier(features.deep, *features.skips)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"the head returned a {type(logits).__name__}; it needs to return the logits "
                "alone, a tensor [B, K, h, w]"
            )
        if logits.ndim != 4 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the head's logits are {list(logits.shape)}; they need to be "
                f"[B, {self.num_classes}, h, w], as num_classes is {self.num_classes}"
            )
        return logits.contiguous(memory_format=torch.channels_last)


def _picked(found: Any, pick: str | int | None) -> Tensor:
    """The feature map that `pick` names in what an encoder returned."""
    chosen = found
    if isinstance(found, Mapping):
        if pick not in found:
            keys = ", ".join(map(repr, found))
            raise ValueError(f"pick is {pick!r}; the encoder returned a mapping with {keys}")
        chosen = found[pick]
    elif isinstance(found, list | tuple):
        if not isinstance(pick, int) or not -len(found) <= pick < len(found):
            raise ValueError(
                f"pick is {pick!r}; the encoder returned {len(found)} maps: an index is needed, "
                f"from {-len(found)} to {len(found) - 1}"
            )
        chosen = found[pick]
    elif pick is not None and isinstance(found, Tensor):
        raise ValueError(
            f"pick is {pick!r}; the encoder returned one tensor: pick needs to be None"
        )
    if not isinstance(chosen, Tensor):
        raise ValueError(
            f"the encoder's feature map is a {type(chosen).__name__}; it needs to be a tensor "
            "[B, C, h, w]"
        )
    return chosen
