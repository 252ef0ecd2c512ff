"""What a run keeps on the disk to go on from: its checkpoints, and how far its tables went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cscl_fast.cli import to_yaml
from cscl_fast.config import Config
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

    def _images_a_step(self) -> int:
        """Of each domain, in this phase, by all processes."""
        config = self.config
        section = config.warmup if self.place.phase == "warmup" else config.adaptation
        return section.batch_size * config.accumulate * self.processes.count

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
            CheckpointError: there is none, or it is of another network or an older version.
        """
        state = checkpoint.load_newest(self.checkpoints, warn)
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

    def _require_same_batch(self, state: State, warn: Callable[[str], None]) -> None:
        """Another number of processes may go on if a step still learns from as many images."""
        before, now = 1 + len(state.get("random_of_others", [])), self.processes.count
        if before == now:
            return
        images = state.get("images_a_step", self._images_a_step())
        phase = self.place.phase
        if images != self._images_a_step():
            raise CheckpointError(
                f"{self.path('last')} was written by {before} process(es), which learned from "
                f"{images} images a step; with {now} it would be {self._images_a_step()}. Go on "
                f"with as many processes, or choose {phase}.batch_size and accumulate so that "
                f"their product is {images} / {now}"
            )
        warn(
            f"note: the run goes on with {now} process(es) instead of {before}, with as many "
            "images a step; dropout draws other random numbers"
        )

    def _write_what_it_is(self) -> None:
        """`config.yaml` and `classes.json`: known from the beginning, and changed by no step."""
        write_text(self.folder / "config.yaml", to_yaml(self.config))
        write_classes(self.folder / "classes.json", self.world.classes)
