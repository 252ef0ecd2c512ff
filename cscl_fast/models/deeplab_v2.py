"""DeepLab-v2: a dilated torchvision ResNet and four parallel dilated convolutions.

The encoder keeps torchvision's modules and names (`conv1`, `bn1`, `layer1` ... `layer4`), so that
its state dict is torchvision's own without `fc`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torchvision
from torch import Tensor, nn

from cscl_fast.models.dilated_head import DilatedHead
from cscl_fast.models.segmentation_model import Features, SegmentationModel


class DeepLabV2(SegmentationModel):
    """DeepLab-v2 with output stride 8.

    Args:
        depth: 18, 50 or 101 layers in the ResNet.
        num_classes: K.
        caffe: compute what the field's Caffe-converted checkpoints were trained with; the names
            and shapes of the weights are the same. Only for bottlenecks (50 and 101).
    """

    def __init__(self, depth: int, num_classes: int, *, caffe: bool = False) -> None:
        super().__init__()
        self.architecture = f"deeplabv2-resnet{depth}" + ("-caffe" if caffe else "")
        self.num_classes = num_classes
        self.feature_channels = 512 if depth == 18 else 2048
        self.encoder = _dilated_resnet(depth)
        if caffe:
            _compute_as_caffe(self.encoder)
        self.classifier = DilatedHead(self.feature_channels, num_classes)

    def encode(self, images: Tensor) -> Features:
        images = images.contiguous(memory_format=torch.channels_last)
        return Features(self.encoder(images))

    def classify(self, features: Features) -> Tensor:
        logits: Tensor = self.classifier(features.deep)
        return logits

    def classify_both(self, features: Features, gate: Tensor) -> tuple[Tensor, Tensor]:
        plain, gated = self.classifier(features.deep, gate)
        return plain, gated


def _dilated_resnet(depth: int) -> nn.Sequential:
    """torchvision's ResNet up to `layer4`, with the strides of layer3 and layer4 as dilation."""
    build = getattr(torchvision.models, f"resnet{depth}")
    if depth == 18:
        resnet = build(weights=None)
        _replace_stride_with_dilation(resnet.layer3, 2)
        _replace_stride_with_dilation(resnet.layer4, 4)
    else:
        resnet = build(weights=None, replace_stride_with_dilation=[False, True, True])
    dropped = ("avgpool", "fc")
    return nn.Sequential(
        OrderedDict((name, part) for name, part in resnet.named_children() if name not in dropped)
    )


def _replace_stride_with_dilation(layer: nn.Module, dilation: int) -> None:
    """What torchvision's option of this name does, for BasicBlock, where torchvision refuses it.

    The convolution that lost its stride still reads the finer grid it was trained on, so it keeps
    that grid's dilation. Then every fourth location of the dilated network equals the original
    one, and ImageNet weights stay exact.
    """
    for convolution in layer.modules():
        if not isinstance(convolution, nn.Conv2d):
            continue
        strided = convolution.stride == (2, 2)
        convolution.stride = (1, 1)
        if convolution.kernel_size == (3, 3):
            spacing = dilation // 2 if strided else dilation
            convolution.dilation = (spacing, spacing)
            convolution.padding = (spacing, spacing)


def _compute_as_caffe(encoder: nn.Module) -> None:
    """Where Caffe's ResNet strides and dilates: a torchvision ResNet puts neither there."""
    layers = dict(encoder.named_modules())
    maxpool = layers["maxpool"]
    assert isinstance(maxpool, nn.MaxPool2d)
    maxpool.ceil_mode = True
    _convolution(layers, "layer2.0.conv1").stride = (2, 2)
    _convolution(layers, "layer2.0.conv2").stride = (1, 1)
    for name, dilation in (("layer3.0.conv2", 2), ("layer4.0.conv2", 4)):
        _convolution(layers, name).dilation = (dilation, dilation)
        _convolution(layers, name).padding = (dilation, dilation)


def _convolution(layers: dict[str, nn.Module], name: str) -> nn.Conv2d:
    layer = layers[name]
    assert isinstance(layer, nn.Conv2d)
    return layer
