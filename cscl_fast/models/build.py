"""From an architecture's name to a network."""

from __future__ import annotations

import difflib

import torch

from cscl_fast.models.batchnorm import freeze_affine
from cscl_fast.models.deeplab_v2 import DeepLabV2
from cscl_fast.models.fcn8s import FCN8s
from cscl_fast.models.segmentation_model import SegmentationModel

ARCHITECTURES = (
    "deeplabv2-resnet18",
    "deeplabv2-resnet50",
    "deeplabv2-resnet101",
    "deeplabv2-resnet101-caffe",  # for the field's Caffe-converted checkpoints
    "fcn8s-vgg16",
)


def build_model(
    architecture: str,
    num_classes: int,
    *,
    batchnorm_affine: bool = True,
) -> SegmentationModel:
    """A freshly initialised network, channels-last, in training mode, on the CPU.

    Args:
        architecture: one of `ARCHITECTURES`.
        num_classes: K, 1 to 256.
        batchnorm_affine: train the scale and shift of batch normalisation, as from scratch;
            False freezes them, as with pretrained weights.

    Raises:
        ValueError: the architecture is unknown, or `num_classes` is out of range.
    """
    if architecture not in ARCHITECTURES:
        nearest = difflib.get_close_matches(architecture, ARCHITECTURES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"architecture is {architecture!r}; the nearest known one is {nearest!r} "
            f"(all: {', '.join(ARCHITECTURES)})"
        )
    if not 1 <= num_classes <= 256:
        raise ValueError(f"num_classes is {num_classes}; it needs to be 1 to 256")
    model: SegmentationModel
    if architecture == "fcn8s-vgg16":
        model = FCN8s(num_classes)
    else:
        depth, _, variant = architecture.removeprefix("deeplabv2-resnet").partition("-")
        model = DeepLabV2(int(depth), num_classes, caffe=variant == "caffe")
    if not batchnorm_affine:
        freeze_affine(model)
    return model.to(memory_format=torch.channels_last)
