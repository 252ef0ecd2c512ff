"""The precision of the networks: autocast, and the gradient scaler that float16 needs.

Losses are float32 whatever the networks compute in: the operators see to that. Weights, gradients
and optimizer states are float32, too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from cscl_fast.trainer.optimizers import Optimizers

ALL = "all"  # players, updated together
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """How the networks compute, and how a gradient becomes a step.

    With float16 the loss is multiplied by a scale before the backward pass, so that small
    gradients do not vanish. A gradient that is not finite afterwards skips the step of everything
    that was to be updated with it, and halves the scale.

    Args:
        precision: of the networks' forwards and backwards.
        device: where they compute; float16 works on the CPU, too, slowly.
        initial_scale: of the gradients, float16 only.
        growth_interval: steps without a skip after which the scale doubles.
    """

    def __init__(
        self,
        precision: Literal["float32", "bfloat16", "float16"],
        device: torch.device,
        *,
        initial_scale: float = 2.0**16,
        growth_interval: int = 2000,
    ) -> None:
        self.device = device
        self.dtype = DTYPES.get(precision)
        self.scaler = torch.amp.GradScaler(
            device.type,
            init_scale=initial_scale,
            growth_interval=growth_interval,
            enabled=precision == "float16",
        )
        self.scaler.scale(torch.zeros((), device=device))  # makes its scale: a step may be skipped
        self.skipped = 0  # steps
        self.in_a_row: dict[str, int] = {}  # of them, the last ones of each player

    @property
    def scales(self) -> bool:
        """Whether a value that is not finite skips a step (float16) instead of being an error."""
        return self.scaler.is_enabled()

    def autocast(self) -> AbstractContextManager[Any]:
        """The networks' forwards belong inside, the backward passes outside.

        Weights are cast at each use: a cache of cast weights would outlive an update inside of the
        context, and would hand weights cast without gradients to forwards that need them.
        """
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=False)

    def backward(self, objective: Tensor) -> None:
        """Add the gradients of `objective`, scaled, to those that are there."""
        scaled: Tensor = self.scaler.scale(objective)
        scaled.backward()

    def step(self, optimizers: Optimizers, player: str | None = None) -> bool:
        """float16: step one player, or all; with gradients that are not finite none of them.

        Returns:
            Whether the step was taken. Clipping (inside of `Optimizers.step`) sees the gradients
            in their own scale.
        """
        together = _Together(optimizers, player)
        self.scaler.step(together)  # type: ignore[arg-type]  # what it needs of an optimizer
        self.scaler.update()
        self._count(player, together.stepped)
        return together.stepped

    def skip(self, player: str | None = None) -> None:
        """Count a step that the forward made impossible, and halve the scale, as `step` does."""
        state = self.scaler.state_dict()
        scale = state["scale"] * state["backoff_factor"]
        self.scaler.load_state_dict({**state, "scale": scale, "_growth_tracker": 0})
        self._count(player, False)

    def _count(self, player: str | None, taken: bool) -> None:
        self.skipped += not taken
        self.in_a_row[player or ALL] = 0 if taken else self.skipped_in_a_row(player) + 1

    def skipped_in_a_row(self, player: str | None = None) -> int:
        """Of one player, or of all together; what the others did in between does not count."""
        return self.in_a_row.get(player or ALL, 0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "in_a_row": dict(self.in_a_row),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scales and state["scaler"]:  # a run may go on in another precision
            self.scaler.load_state_dict(state["scaler"])
        self.skipped, in_a_row = state["skipped"], state["in_a_row"]
        if isinstance(in_a_row, int):  # of all players: so it was counted once
            in_a_row = dict.fromkeys((ALL, "model"), in_a_row) if in_a_row else {}
        self.in_a_row = dict(in_a_row)


class _Together:
    """Several optimizers as the one that a gradient scaler judges and steps."""

    def __init__(self, optimizers: Optimizers, player: str | None) -> None:
        self.optimizers, self.player = optimizers, player
        self.stepped = False
        self.param_groups = [
            group
            for name, optimizer in optimizers.players.items()
            if player is None or name == player
            for group in optimizer.param_groups
        ]

    def step(self) -> None:
        self.optimizers.step(self.player)
        self.stepped = True
