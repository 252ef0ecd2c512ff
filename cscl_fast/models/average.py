"""An exponential average of a network's weights, ready to evaluate."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Model = TypeVar("Model", bound=nn.Module)


class WeightAverage(Generic[Model]):
    """`module` is a copy of `model` in evaluation mode whose weights follow it slowly.

    It starts at the model's weights as they are now; `update` moves every parameter to
    decay * average + (1 - decay) * model and copies the buffers (the running statistics).

    Args:
        model: the network to follow. It is copied, never changed.
        decay: in [0, 1]; 0.99 to 0.999 is usual.

    Raises:
        ValueError: `decay` is outside [0, 1].
    """

    def __init__(self, model: Model, decay: float) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is {decay}; it needs to be in [0, 1]")
        self.decay = decay
        self.module: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self._move_towards = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow `model`, which has the same layers as the network given at the start."""
        self._move_towards(list(self.module.parameters()), list(model.parameters()), None)
        for average, current in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(current)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, under the names that the model's own state dict has."""
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state)
