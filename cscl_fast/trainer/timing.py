"""`timing.json`: steps, seconds and where they went, by phase, over every part of a resumed run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from cscl_fast.trainer.stopwatch import Stopwatch

Phases = dict[str, dict[str, Any]]


class Timing:
    """Adds up a run's phases. What was done after the checkpoint it goes on from is not in it.

    `stopwatch` counts the parts of the phase that is running.
    """

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()
        self.phases: Phases = {}  # all that is not in the phase that is running
        self.phase: str | None = None
        self.steps = 0  # of the phase that is running, in this process
        self._began = 0.0

    def begin(self, phase: str) -> None:
        """A phase begins or goes on; the one before ends."""
        self.phases = self.state_dict()
        self.phase, self.steps = phase, 0
        self.stopwatch.reset()
        self._began = time.perf_counter()

    def state_dict(self) -> Phases:
        """Phase → steps, seconds and seconds by part, until now."""
        result = {
            name: {**phase, "parts": {**phase["parts"]}} for name, phase in self.phases.items()
        }
        if self.phase is not None:
            known = result.setdefault(self.phase, {"steps": 0, "seconds": 0.0, "parts": {}})
            known["steps"] += self.steps
            known["seconds"] += time.perf_counter() - self._began
            for part, seconds in self.stopwatch.seconds.items():
                known["parts"][part] = known["parts"].get(part, 0.0) + seconds
        return result

    def load_state_dict(self, phases: Phases) -> None:
        self.phases = phases

    def write(self, folder: Path) -> None:
        """Write `timing.json`; "other" is what no part accounts for."""
        phases = self.state_dict()
        for phase in phases.values():
            parts = {name: round(seconds, 3) for name, seconds in phase["parts"].items()}
            rest = phase["seconds"] - sum(phase["parts"].values())
            phase["seconds"] = round(phase["seconds"], 3)
            phase["parts"] = {**parts, "other": round(max(rest, 0.0), 3)}
        text = json.dumps(phases, indent=2) + "\n"
        (folder / "timing.json").write_text(text, encoding="utf-8")
