"""Which classes the pseudo-labels are of: shares of the target's locations, for `kept.csv`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class KeptShares:
    """Counts the labels of every step until they are asked for. Nothing waits for the device."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)  # [K]
        self.locations = 0

    def add(self, hard: Tensor) -> None:
        """Labels [B, h, w] int64 of one step, 255 where a location has none."""
        classes = torch.arange(len(self.counts), device=hard.device)
        self.counts += (hard.flatten()[:, None] == classes).sum(0)
        self.locations += hard.numel()

    def take(self) -> Tensor:
        """Shares [K] float64 of the locations since the last call; they add up to `kept`."""
        shares = self.counts.double().cpu() / max(self.locations, 1)
        self.counts.zero_()
        self.locations = 0
        return shares

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "locations": self.locations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts.copy_(state["counts"])
        self.locations = state["locations"]
