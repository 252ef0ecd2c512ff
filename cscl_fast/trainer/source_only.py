"""Source-only training, the warm-up before CSCL, as an object for any training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cscl_fast import ops
from cscl_fast.config import Config
from cscl_fast.models import SegmentationModel
from cscl_fast.trainer.batches import Labelled, Source, as_parts
from cscl_fast.trainer.optimizers import model_optimizer
from cscl_fast.trainer.precision import Precision
from cscl_fast.trainer.prepare import checked, optimizers, prepare
from cscl_fast.trainer.processes import Processes, Shared, running_averages
from cscl_fast.trainer.stopwatch import Stopwatch
from cscl_fast.trainer.update import Losses, Remembered, Update, shares_of


class SourceOnly:
    """Source-only training, the warm-up before CSCL: cross-entropy at image size.

        warmup = SourceOnly(model, config)
        for images, labels in loader:
            losses = warmup.step((images, labels))

    Of `config` count the sections `warmup` and `optimizer`, and what else `CSCL` looks at. What
    is said there of micro-batches, skipped steps and `DivergedError` holds here, too.
    """

    def __init__(
        self,
        model: SegmentationModel,
        config: Config | None = None,
        *,
        stopwatch: Stopwatch | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.config = config = checked(config)
        self.device = next(model.parameters()).device
        self.stopwatch = stopwatch or Stopwatch()
        self.processes = processes or Processes.alone()
        self.precision = Precision(config.precision, self.device)
        prepare(model, config, self.processes)
        self.model = model.train()
        rate = config.warmup.learning_rate
        players = {"model": model_optimizer(model, config.optimizer, rate)}
        self.optimizers = optimizers(players, config, config.warmup.steps)
        self.shared: dict[str | None, Shared] = {"model": Shared(self.processes, model)}
        self.statistics = running_averages(model)
        self.steps_done = 0
        self._before = Remembered(model)

    @property
    def skipped(self) -> int:
        """Optimizer steps skipped so far because of float16 values that were not finite."""
        return self.precision.skipped

    def step(self, source: Source | Sequence[Source]) -> dict[str, float]:
        """One step on labelled images: `source` (the loss), `total`, `learning_rate`, `skipped`.

        Raises:
            DivergedError: the loss or a gradient is not finite; nothing was updated.
            ValueError: the wrong number of micro-batches.
            TypeError: source is neither a `Batch` nor two tensors.
        """
        batches = as_parts(source, "source", self.config.accumulate, self.device)
        self.optimizers.set_progress(self.steps_done)
        if not self.model.training:
            self.model.train()
        self._before.save()
        parts = [Labelled(batch) for batch in batches]
        if len(parts) > 1 or self.processes.several:
            counts = [{"source": (part.batch.labels != 255).sum()} for part in parts]
            for part, shares in zip(parts, shares_of(counts, self.processes), strict=True):
                part.shares = shares
        update = Update(
            parts,
            _cross_entropy,
            self.optimizers,
            self.precision,
            self.stopwatch,
            self.processes,
            self.shared,
        )
        try:
            update("model", self._losses)
        except BaseException:
            self._before.restore()
            raise
        self.steps_done += 1
        if update.updated:
            self.processes.average_(self.statistics)
        else:
            self._before.restore()
        return {
            **update.values,
            "total": update.values["source"],
            "learning_rate": self.optimizers.players["model"].param_groups[0]["lr"],
            "skipped": float(self.skipped),
        }

    def _losses(self, part: Labelled) -> Losses:
        logits = self.model(part.batch.images)
        return {"source": ops.upsampled_cross_entropy(logits, part.batch.labels)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on but its batches and random generators."""
        return {
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "precision": self.precision.state_dict(),
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.precision.load_state_dict(state["precision"])
        self.steps_done = state["steps_done"]


def _cross_entropy(losses: Losses, shares: Losses | None) -> Tensor:
    return losses["source"] if shares is None else losses["source"] * shares["source"]
