"""What a run keeps on the disk to go on from: its checkpoints, and how far its tables went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cscl_fast.cli import to_yaml
from cscl_fast.config import AdaptationConfig, Config, WarmupConfig
from cscl_fast.data.classes import write_classes
from cscl_fast.models import SegmentationModel
from cscl_fast.trained import to_plain
from cscl_fast.trainer import checkpoint
from cscl_fast.trainer.checkpoint import CheckpointError
from cscl_fast.trainer.evaluation import Score
from cscl_fast.trainer.files import PART, write_text
from cscl_fast.trainer.processes import Processes
from cscl_fast.trainer.records import Records
from cscl_fast.trainer.timing import Timing
from cscl_fast.trainer.world import World

State = dict[str, Any]

# What a run writes beside tables and checkpoints.
OTHERS = (
    "timing.json", "environment.json", "results.txt", "results.md", "curves.png",
    "convergence.csv", "convergence.png", "panels/*.png", "transferability/*.png",
)  # fmt: skip


@dataclass
class Place:
    """Where a run is: what a checkpoint has to remember besides weights."""

    phase: str = "warmup"
    step: int = 0  # within the phase
    best: float = -1.0
    scores: dict[str, list[float]] = field(default_factory=dict)  # row → IoU by class, percent

    @property
    def done(self) -> dict[str, int]:
        """Steps of each phase that has begun; a phase that is over counts as endless."""
        if self.phase == "warmup":
            return {"warmup": self.step}
        return {"warmup": 10**12, "adaptation": self.step}


class Keeper:
    """Saves a run and brings it back.

    Args:
        model: E and C, which every checkpoint holds.
        records: its tables grow with the run; a checkpoint knows how long they were.
        processes: of the run; the first one writes, the others come along.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        model: SegmentationModel,
        records: Records,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.world, self.model, self.records = config, world, model, records
        self.processes = processes or Processes.alone()
        self.folder = config.run_folder
        self.checkpoints = self.folder / "checkpoints"
        self.place = Place()
        self.timing = Timing()

    def path(self, name: str) -> Path:
        return self.checkpoints / f"{name}.pt"

    def scores(self) -> dict[str, Score]:
        """Of every row of the final table, so far."""
        classes = self.world.classes
        return {
            row: Score(classes, torch.tensor(iou, dtype=torch.float64))
            for row, iou in self.place.scores.items()
        }

    # --------------------------------------------------------------------------------------- saving

    def save(self, more: State) -> None:
        """Write `last.pt`: all that the run needs to go on as if it had not been stopped."""
        states = self.processes.gather(checkpoint.random_state(self.world.device))
        if not self.processes.is_main:
            return
        state = {
            **self._content(self.model),
            "random": states[0],
            "random_of_others": states[1:],
            "images_a_step": self._images_a_step(),
            "tables": self.records.lengths(),
            "timing": self.timing.state_dict(),
            **more,
        }
        checkpoint.save_newest(self.checkpoints, state)
        self.timing.write(self.folder)

    def save_model(self, name: str, model: nn.Module) -> None:
        """Write a network to evaluate or to start from: `source.pt` or `best.pt`."""
        if self.processes.is_main:
            checkpoint.save(self.path(name), self._content(model))

    def _section(self) -> WarmupConfig | AdaptationConfig:
        """Of the configuration, what this phase is made by."""
        warms_up = self.place.phase == "warmup"
        return self.config.warmup if warms_up else self.config.adaptation

    def _images_a_step(self) -> int:
        """Of each domain, in this phase, by all processes."""
        return self._section().batch_size * self.config.accumulate * self.processes.count

    def _content(self, model: nn.Module) -> State:
        """What every checkpoint holds: a model that evaluates, its classes, and the place."""
        classes = self.world.classes
        return {
            "architecture": self.config.model.architecture,
            "num_classes": classes.num_classes,
            "batchnorm_affine": self.config.model.batchnorm_affine,
            "classes": {
                "names": list(classes.names),
                "colors": [list(color) for color in classes.colors],
            },
            "data": to_plain(self.world.evaluation.config),
            "model": model.state_dict(),
            "place": vars(self.place).copy(),
        }

    # ------------------------------------------------------------------------------- starting again

    def start(self) -> None:
        """A run from the beginning: what one that is overwritten has left must not stay."""
        self.processes.main_does(self._start)

    def _start(self) -> None:
        for path in self.checkpoints.glob("*.pt*"):
            path.unlink()
        for pattern in OTHERS:
            for path in self.folder.glob(pattern):
                path.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_what_it_is()

    def resume(self, warn: Callable[[str], None]) -> State:
        """Go back to the newest whole checkpoint: network, place, tables and timing.

        The rest of its content is returned, for those whose state it is.

        Raises:
            CheckpointError: there is none, it is of another network or an older version, or what
                processes learn from a step has changed.
        """
        state = checkpoint.load_newest(self.checkpoints, warn, self._require_same_place)
        path = self.path("last")
        if state["version"] < 2:
            raise CheckpointError(
                f"{path} was written by an older cscl_fast, whose runs this one cannot go on with; "
                "evaluate, predict and --model.init read it"
            )
        expected = (self.config.model.architecture, self.world.classes.num_classes)
        found = (state["architecture"], state["num_classes"])
        if found != expected:
            raise CheckpointError(
                f"{path} holds a {found[0]} with {found[1]} classes; this run is a "
                f"{expected[0]} with {expected[1]}"
            )
        try:
            self.model.load_state_dict(state.pop("model"))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"the network in {path} is not this run's: {reason}") from error
        self.place = Place(**state["place"])
        self.timing.load_state_dict(state["timing"])
        self._require_same_batch(state, warn)
        self.processes.main_does(lambda: self._go_back(state, warn))
        return state

    def _go_back(self, state: State, warn: Callable[[str], None]) -> None:
        """The files of the run as they were at the checkpoint."""
        for name in self.records.go_back(state["tables"]):
            warn(f"warning: {self.folder / name} is shorter than at the checkpoint; rows are lost")
        for part in self.checkpoints.glob(f"*{PART}"):  # the process ended while it wrote
            part.unlink()
        self._write_what_it_is()

    def _require_same_place(self, state: State) -> None:
        """Each process reads for itself, and might have found another file damaged or missing."""
        place = state.get("place", {})
        places = self.processes.gather((place.get("phase"), place.get("step")))
        if len(set(places)) > 1:
            found = ", ".join(f"process {i}: {p} step {n}" for i, (p, n) in enumerate(places, 1))
            raise CheckpointError(
                f"the processes find different checkpoints in {self.checkpoints} ({found}); "
                "is it one folder for all of them? Try again when all see the same files"
            )

    def _require_same_batch(self, state: State, warn: Callable[[str], None]) -> None:
        """A step of several processes has to learn from as many images as before.

        One process may go on with more or fewer, if it was one before; for several, where they
        are in the data would lie in the middle of a batch.
        """
        before, now = 1 + len(state.get("random_of_others", [])), self.processes.count
        here = self._images_a_step()
        images = state.get("images_a_step", here)
        phase = self.place.phase
        if images != here and max(before, now) > 1:
            raise CheckpointError(
                f"{self.path('last')} was written by {before} process(es), which learned from "
                f"{images} images a step; with {now} it would be {here}. Go on with as many "
                f"processes and the batch_size they had, or choose {phase}.batch_size and "
                f"accumulate so that their product is {images} / {now}"
            )
        size = self._section().batch_size
        if now > 1 and any(place % (size * now) for place in state["positions"].values()):
            raise CheckpointError(
                f"{self.path('last')} is in the middle of a batch of {now} processes with "
                f"{phase}.batch_size {size}, as its run once had batches of another size; go on "
                "with one process"
            )
        if images != here:
            warn(f"note: a step learns from {here} images of each domain now instead of {images}")
        if before != now:
            warn(
                f"note: the run goes on with {now} process(es) instead of {before}, with as many "
                "images a step; dropout draws other random numbers"
            )

    def _write_what_it_is(self) -> None:
        """`config.yaml` and `classes.json`: known from the beginning, and changed by no step."""
        write_text(self.folder / "config.yaml", to_yaml(self.config))
        write_classes(self.folder / "classes.json", self.world.classes)
