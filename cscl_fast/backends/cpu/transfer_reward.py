"""Rewards of the transferability critic, R = R^s + R^a, by the compiled kernel.

The operator is `torch.ops.cscl_fast.transfer_reward`, computed by csrc/cpu/transfer_reward.cpp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cscl_fast import backends

from . import memory
from .registration import DTYPE_CODES, LIBRARY, implement, kernel_for, plain

LIBRARY.define(
    "transfer_reward(Tensor gated_logits, Tensor plain_logits, Tensor labels) -> (Tensor, Tensor)"
)


@torch.library.register_fake("cscl_fast::transfer_reward", lib=LIBRARY)
def _fake(gated_logits: Tensor, plain_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """reward float32 and valid bool, both [B, 1, h, w]."""
    batch, _, height, width = gated_logits.shape
    shape = (batch, 1, height, width)
    device = gated_logits.device
    return (
        torch.empty(shape, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.bool, device=device),
    )


def _compute(gated_logits: Tensor, plain_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    batch, classes, height, width = gated_logits.shape
    reward = memory.empty((batch, 1, height, width), torch.float32)
    valid = memory.empty((batch, 1, height, width), torch.bool)
    if reward.numel() == 0:
        return reward, valid
    if plain_logits.dtype != gated_logits.dtype:
        gated_logits, plain_logits = gated_logits.float(), plain_logits.float()
    labels = labels.contiguous()
    in_range = backends.library().transfer_reward(
        gated_logits.data_ptr(),
        gated_logits.stride(),
        plain_logits.data_ptr(),
        plain_logits.stride(),
        DTYPE_CODES[gated_logits.dtype],
        (batch, classes, height, width),
        labels.data_ptr(),
        reward.data_ptr(),
        valid.data_ptr(),
        torch.get_num_threads(),
    )
    if not in_range:
        from cscl_fast.ops import checks  # the operators import this module

        checks.check_label_map(labels, classes, gated_logits, "gated_logits")
    return reward, valid


implement("transfer_reward", "cpu", _compute)
# Rewards are constants: no gradient flows, so there is nothing for autograd to record.
LIBRARY.impl("transfer_reward", torch.library.fallthrough_kernel, "Autograd")


def transfer_reward(
    gated_logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16
    plain_logits: Tensor,  # [B, K, h, w]
    labels: Tensor,  # [B, h, w] int64; 255: ignored
) -> tuple[Tensor, Tensor]:  # reward float32, valid bool; both [B, 1, h, w]
    """Rewards, and where they count.

    Raises:
        ValueError: a label is neither in 0..K-1 nor 255.
    """
    if plain(gated_logits):
        compute = kernel_for("transfer_reward", gated_logits)
    else:
        compute = torch.ops.cscl_fast.transfer_reward
    reward, valid = compute(gated_logits, plain_logits, labels)
    return reward, valid
