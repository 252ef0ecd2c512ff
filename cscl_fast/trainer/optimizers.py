"""The optimizers of the players and the polynomial decay of their learning rates."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cscl_fast.config import OptimizerConfig
from cscl_fast.models import SegmentationModel


def model_optimizer(
    model: SegmentationModel, config: OptimizerConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """SGD or Adam over the encoder and the (faster) classifier; frozen parameters are left out."""
    groups = [
        {
            "params": [p for p in part.parameters() if p.requires_grad],
            "lr": learning_rate * factor,
            "initial_lr": learning_rate * factor,
        }
        for part, factor in ((model.encoder, 1.0), (model.classifier, config.classifier_factor))
    ]
    if config.name == "sgd":
        return torch.optim.SGD(
            groups,
            lr=learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
    return torch.optim.Adam(
        groups, lr=learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )


def player_optimizer(module: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Adam (0.9, 0.99), as the paper trains D, T_Q and T_C."""
    group = {"params": list(module.parameters()), "initial_lr": learning_rate}
    return torch.optim.Adam([group], lr=learning_rate, betas=(0.9, 0.99))


class Optimizers:
    """One optimizer per player, stepped together (joint) or one by one (alternating)."""

    def __init__(
        self,
        players: dict[str, torch.optim.Optimizer],
        *,
        steps: int,
        power: float,
        clip_norm: float = 0.0,
    ) -> None:
        self.players = players
        self.steps = max(steps, 1)
        self.power = power
        self.clip_norm = clip_norm

    def set_progress(self, step: int) -> None:
        """Polynomial decay: rate = initial · (1 − step / steps)^power."""
        factor = max(0.0, 1 - step / self.steps) ** self.power
        for optimizer in self.players.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def zero_grad(self) -> None:
        for optimizer in self.players.values():
            optimizer.zero_grad(set_to_none=True)

    def step(self, player: str | None = None) -> None:
        """Step one player, or all of them."""
        for name, optimizer in self.players.items():
            if player is not None and name != player:
                continue
            if name == "model" and self.clip_norm > 0:
                parameters = [p for g in optimizer.param_groups for p in g["params"]]
                nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.players.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.players.items():
            optimizer.load_state_dict(state[name])
