"""A network in the manner of segmentation_models_pytorch, adapted by CSCL.

python docs/examples/segmentation_models_style.py --steps 100

Such a network has an encoder that returns a list of feature maps, a decoder that takes the list,
and a head. F is the deepest map; the others go around the gate, to the decoder.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cscl_fast import CSCL, Config
from cscl_fast.models import EncoderWithHead


class Encoder(nn.Module):  # stands in for smp.Unet(...).encoder
    def __init__(self, channels: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        ins = (3, *channels[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in zip(ins, channels, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [x]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


class Head(nn.Module):  # with smp: self.segmentation_head(self.decoder([*skips, deep]))
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.decoder = nn.Conv2d(128 + 32, 64, 3, padding=1)
        self.segmentation_head = nn.Conv2d(64, classes, 1)

    def forward(self, deep: Tensor, *skips: Tensor) -> Tensor:
        fine = skips[2]
        joined = torch.cat([interpolate(deep, size=fine.shape[-2:]), fine], dim=1)
        return self.segmentation_head(self.decoder(joined).relu())


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
steps = parser.parse_args().steps
maps = {"pick": -1, "skips": (0, 1, 2, 3)}  # of the encoder's list: F, and what goes around it
model = EncoderWithHead(Encoder(), Head(19), 19, 128, **maps, feature_stride=16)
cscl = CSCL(model, Config())  # the paper's settings
images, labels = torch.rand(2, 3, 64, 128), torch.randint(19, (2, 64, 128))  # your loaders
cscl.begin_epoch([images])
for _ in range(steps):
    losses = cscl.step((images, labels), torch.rand(2, 3, 64, 128))
print("  ".join(f"{name} {value:.4g}" for name, value in losses.items()))
