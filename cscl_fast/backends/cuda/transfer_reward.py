"""Rewards of the transferability critic, by csrc/cuda/transfer_reward.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.cpu.registration import implement

from .call import Call


def _compute(gated_logits: Tensor, plain_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if plain_logits.dtype != gated_logits.dtype:
        gated_logits, plain_logits = gated_logits.float(), plain_logits.float()
    call = Call(gated_logits)
    batch, _, height, width = gated_logits.shape
    reward = call.empty((batch, 1, height, width), torch.float32)
    valid = call.empty((batch, 1, height, width), torch.bool)
    if reward.numel() > 0:
        plain_logits = call.read(plain_logits)
        backends.cuda_library().transfer_reward(
            call.logits(gated_logits),
            plain_logits.data_ptr(),
            plain_logits.stride(),
            call.read(call.keep(labels.contiguous())).data_ptr(),
            reward.data_ptr(),
            valid.data_ptr(),
            call.place(),
        )
    return reward, valid


implement("transfer_reward", "cuda", _compute)
