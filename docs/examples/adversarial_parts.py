"""The adversarial and transferability parts around any encoder with a feature map (Eq. 1-6).

python docs/examples/adversarial_parts.py
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from cscl_fast import ops
from cscl_fast.models import Discriminator, TransferabilityCritic, TransferabilityQuantizer

encoder = nn.Sequential(nn.Conv2d(3, 64, 3, stride=8, padding=1), nn.ReLU())  # yours
classifier = nn.Conv2d(64, 19, 1)  # yours
d, quantizer, critic = Discriminator(64), TransferabilityQuantizer(), TransferabilityCritic(64)
source, target = encoder(torch.rand(2, 3, 96, 192)), encoder(torch.rand(2, 3, 96, 192))
labels = torch.randint(19, (2, *source.shape[-2:]))  # of the source, on the features' grid

# Eq. 1: D tells the domains apart (source 0, target 1), the encoder makes target pass for source.
on_source, on_target = d(source.detach()), d(target.detach())
loss_d = 0.5 * (
    cross_entropy(on_source, torch.zeros_like(on_source))
    + cross_entropy(on_target, torch.ones_like(on_target))
)
fooled = d(target)
loss_encoder = cross_entropy(fooled, torch.zeros_like(fooled))  # d's gradients are not used

# P = 1 - H2(f) in [0, 1], f from D's probability: the gate of the second path through C.
transferability = quantizer(on_source.sigmoid().detach(), size=source.shape[-2:])
plain, gated = classifier(source), classifier(source * (1 + transferability))

# Eq. 2-6: the critic learns the reward of the gate (L_reg) and teaches the quantizer (L_cri).
reward, valid = ops.transfer_reward(gated.detach(), plain.detach(), labels)
value = critic(source.detach(), transferability.detach())
loss_critic = ((value - reward).square() * valid).sum() / valid.sum().clamp(min=1)
loss_quantizer = -critic(source.detach(), transferability).mean()  # step the quantizer alone
for name, loss in (
    ("discriminator", loss_d), ("adversarial", loss_encoder),
    ("regression", loss_critic), ("critic", loss_quantizer),
):  # fmt: skip
    print(f"{name} {loss.item():.3f}")
