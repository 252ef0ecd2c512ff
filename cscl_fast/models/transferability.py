"""T_Q and T_C: how well a location transfers (P), and what that judgement is worth (V)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TransferabilityQuantizer(nn.Module):
    """T_Q (Eq. 2): transferability from the discriminator's uncertainty.

    A 3x3 convolution of D's probability map and a sigmoid give f; P = 1 - H2(f), with H2 the
    binary entropy in bits. It starts as f = sigmoid(4 D - 2), close to D's own probability: from a
    random start f stays at a half, and P at nearly 0 closes the gate for good.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        assert self.convolution.bias is not None
        nn.init.dirac_(self.convolution.weight)
        with torch.no_grad():
            self.convolution.weight.mul_(4)
            self.convolution.bias.fill_(-2)

    def forward(
        self,
        probability: Tensor,  # [B, 1, h', w'], D's probability of "target", in [0, 1]
        size: tuple[int, int],  # (h, w) of the features
    ) -> Tensor:  # [B, 1, h, w], float32 for half-precision inputs, in [0, 1]
        """Transferability P, bilinearly resized to `size`."""
        logits = self.convolution(probability)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        transferability = 1 - _binary_entropy(logits)
        resized = F.interpolate(transferability, size, mode="bilinear", align_corners=False)
        return resized.clamp(0, 1)  # rounding alone would leave [0, 1] by some 1e-7


def _binary_entropy(
    logits: Tensor,
) -> Tensor:  # same shape, bits
    """H2(sigmoid(logits)); finite, with finite gradients, however large the logits are."""
    entropy = -torch.sigmoid(logits) * F.logsigmoid(logits)
    entropy = entropy - torch.sigmoid(-logits) * F.logsigmoid(-logits)
    return entropy / math.log(2)


class TransferabilityCritic(nn.Module):
    """T_C (Eq. 4-6): V, the reward it expects at each location for features F and judgement P.

    The state branch reads F, the policy branch P. The last layer starts at V = 1 everywhere, the
    middle of the rewards {0, 1, 2}.

    Args:
        in_channels: C of the features.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.state_branch = _convolution_blocks(in_channels, 64, 32, 16)
        self.policy_branch = _convolution_blocks(1, 16, 16)
        self.value = nn.Conv2d(32, 1, 3, padding=1)
        assert self.value.bias is not None
        nn.init.zeros_(self.value.weight)
        nn.init.ones_(self.value.bias)
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        features: Tensor,  # [B, C, h, w]
        transferability: Tensor,  # [B, 1, h, w], in [0, 1]
    ) -> Tensor:  # [B, 1, h, w]
        """The value V of each location."""
        state = self.state_branch(features)
        policy = self.policy_branch(transferability)
        value: Tensor = self.value(torch.cat((state, policy), dim=1))
        return value


def _convolution_blocks(*channels: int) -> nn.Sequential:
    """3x3 convolution and ReLU, from each number of channels to the next."""
    layers: list[nn.Module] = []
    for in_channels, out_channels in itertools.pairwise(channels):
        layers += [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
