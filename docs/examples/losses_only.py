"""Self-training with the operators alone: a loop without the trainer.

python docs/examples/losses_only.py --steps 200
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from cscl_fast import ops

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
steps = parser.parse_args().steps
classes, size = 19, (64, 128)
model = nn.Sequential(  # any network; its logits may be coarser than the image
    nn.Conv2d(3, 32, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(32, classes, 1)
)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
source, labels = torch.rand(2, 3, *size), torch.randint(classes, (2, *size))  # your loaders
target = torch.rand(2, 3, *size)

# Once an epoch: class-wise thresholds over the whole target set, in constant memory (Algorithm 1).
collected = ops.ClassThresholds(classes)
with torch.no_grad():
    for images in target.split(1):
        collected.update(model(images), size=size)
thresholds = collected.compute(portion=0.35)  # [19]

for _ in range(steps):
    # Both losses at image size; neither the upsampled logits nor the soft labels are stored.
    supervised = ops.upsampled_cross_entropy(model(source), labels)
    self_training = ops.pseudo_label_loss(model(target), thresholds, size=size)
    optimizer.zero_grad()
    (supervised + self_training).backward()
    optimizer.step()
print(f"source {supervised.item():.3f}  target {self_training.item():.3f}")
