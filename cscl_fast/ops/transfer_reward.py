"""Rewards that the transferability critic learns to predict, Eq. 4-6."""

from __future__ import annotations

import torch
from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.reference import transfer_reward as reference
from cscl_fast.ops import checks

_KERNELS = backends.implementations("transfer_reward")


def transfer_reward(
    gated_logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16 (float64: reference only)
    plain_logits: Tensor,  # [B, K, h, w]
    labels: Tensor,  # [B, h, w] int64; 255: ignored
) -> tuple[Tensor, Tensor]:  # reward float32 in {0, 1, 2}, valid bool; both [B, 1, h, w]
    """What the gate earned at every location: R = R^s + R^a.

    R^s is 1 where the gated argmax (ties: the lowest class) is the label, R^a is 1 where the
    gated probability of the label's class is strictly above the plain one. The reward is 0 where
    it is not valid, that is where the label is ignored. Logits that are not finite earn nothing:
    R is 0 where a gated one is NaN or infinite, R^a where a plain one is.

    Rewards are constants: no gradient flows into the logits.

    Args:
        gated_logits: C(F · (1 + P)).
        plain_logits: C(F).
        labels: ground truth or argmax ŷ at the logits' resolution.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong rank, shape or device, K not in 1..256, or a label out of range.
    """
    checks.check_logits(gated_logits, "gated_logits")
    checks.check_logits(plain_logits, "plain_logits")
    checks.check_same_shape("plain_logits", plain_logits, "gated_logits", gated_logits)
    checks.check_same_device("plain_logits", plain_logits, "gated_logits", gated_logits)
    backend = backends.select("transfer_reward", gated_logits, "gated_logits")
    if plain_logits.dtype == torch.float64:
        backend = "reference"
    checks.check_label_map(
        labels, gated_logits.shape[1], gated_logits, "gated_logits", values=backend != "cpu"
    )
    if backend in _KERNELS:
        reward, valid = _KERNELS[backend].transfer_reward(gated_logits, plain_logits, labels)
        return reward, valid
    return reference.transfer_reward(gated_logits, plain_logits, labels)
