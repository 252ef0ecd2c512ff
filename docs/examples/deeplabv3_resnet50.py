"""torchvision's DeepLabV3, adapted by CSCL in a loop of one's own.

python docs/examples/deeplabv3_resnet50.py --epochs 4 --steps 100

The data here are the package's drawn scenes; any loader of images [B, 3, H, W] and labels
[B, H, W] (int64, 255 = ignored) does.
"""

from __future__ import annotations

import argparse
from itertools import islice

import torch
from torchvision.models.segmentation import deeplabv3_resnet50

from cscl_fast import CSCL, SourceOnly
from cscl_fast.config import AdaptationConfig, Config, WarmupConfig
from cscl_fast.data import DatasetConfig, InfiniteSampler, make_loader, open_dataset
from cscl_fast.models import EncoderWithHead

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--steps", type=int, default=100, help="of the warm-up, and of each epoch")
parser.add_argument("--size", type=int, nargs=2, default=(96, 192), metavar=("H", "W"))
parser.add_argument("--count", type=int, default=60, help="images of each domain")
options = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"

domains = {}
for look in ("synthetic", "real"):
    scenes = DatasetConfig(kind="scenes", look=look, size=tuple(options.size), count=options.count)
    domains[look] = open_dataset(scenes, training=True, seed=0)
loaders = [make_loader(d, 2, sampler=InfiniteSampler(len(d), seed=0)) for d in domains.values()]

# Any encoder and any head; weights_backbone="DEFAULT" starts from ImageNet.
network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=10)
model = EncoderWithHead(network.backbone, network.classifier, 10, 2048, pick="out").to(device)

config = Config(
    precision="bfloat16" if device == "cuda" else "float32",
    warmup=WarmupConfig(steps=options.steps, learning_rate=2.5e-3),
    adaptation=AdaptationConfig(epochs=options.epochs, steps=options.steps),
)
warmup = SourceOnly(model, config)
for batch in islice(loaders[0], options.steps):
    losses = warmup.step((batch["image"], batch["label"]))
print(f"source only: cross-entropy {losses['source']:.3f}")

cscl = CSCL(model, config)
for epoch in range(options.epochs):
    everything = make_loader(domains["real"], 2)
    cscl.begin_epoch(batch["clean"] for batch in everything)  # thresholds, Algorithm 1
    for s, t in islice(zip(*loaders, strict=True), options.steps):
        losses = cscl.step((s["image"], s["label"]), t["image"])  # no label of the target is read
    print(f"epoch {epoch}: " + "  ".join(f"{name} {value:.4g}" for name, value in losses.items()))
torch.save(cscl.average.module.state_dict(), "deeplabv3_adapted.pt")
