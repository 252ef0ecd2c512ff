"""Which classes the pseudo-labels are of: shares of the target's locations, for `kept.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cscl_fast.trainer.processes import Processes


class KeptShares:
    """Counts the labels of every step until they are asked for, those of all processes.

    With one process nothing waits for the device.
    """

    def __init__(
        self, num_classes: int, device: torch.device, processes: Processes | None = None
    ) -> None:
        # Locations with a label of each class, and all locations.
        self.counts = torch.zeros(num_classes + 1, dtype=torch.int64, device=device)
        self.processes = processes or Processes.alone()

    def count(self, parts: Sequence[Tensor]) -> Tensor:  # [K + 1] int64
        """What `add` takes, from a step's labels [B, h, w] int64, 255 where there is none."""
        hard = torch.cat([part.flatten() for part in parts])
        classes = torch.arange(len(self.counts) - 1, device=hard.device)
        by_class = (hard[:, None] == classes).sum(0)
        return self.processes.sum(torch.cat([by_class, by_class.new_full((1,), len(hard))]))

    def add(self, counted: Tensor) -> None:
        self.counts += counted

    def take(self) -> Tensor:
        """Shares [K] float64 of the locations since the last call; they add up to `kept`."""
        counts = self.counts.double().cpu()
        self.counts.zero_()
        return counts[:-1] / counts[-1].clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts.copy_(state["counts"])
