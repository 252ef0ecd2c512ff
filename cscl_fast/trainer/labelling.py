"""Who gives the pseudo-labels of the target, and with which thresholds (Algorithm 1, Eq. 8–10)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cscl_fast import ops
from cscl_fast.config import AdaptationConfig
from cscl_fast.models import SegmentationModel
from cscl_fast.models.average import WeightAverage
from cscl_fast.trainer.grids import at_grid, image_size, upsampled_argmax
from cscl_fast.trainer.processes import Processes


@dataclass
class PseudoLabels:
    """ŷ of one target batch: solved on the grid of the features, and again inside the loss."""

    logits: Tensor  # [B, K, h, w] of the label network
    thresholds: Tensor | None  # [K] float32; None: the hard argmax labels of every pixel
    gamma: float
    size: tuple[int, int]  # (H, W) of the images, where the loss is evaluated
    soft: Tensor  # [B, K, h, w] on the grid of F, zeros where rejected
    hard: Tensor  # [B, h, w] int64 on the grid of F, 255 where rejected

    def count(self) -> Tensor:
        """Number of pixels [] int64 of the images that carry a label: what `loss` is the mean over.

        One pass over the pixels; a step in one batch does not need it.
        """
        if self.thresholds is None:
            pixels = self.logits.shape[0] * self.size[0] * self.size[1]
            return torch.tensor(pixels, device=self.logits.device)
        with torch.no_grad():
            _, count = ops.pseudo_label_loss(
                self.logits, self.thresholds, self.gamma, size=self.size, return_count=True
            )
        return count

    def loss(self, logits: Tensor) -> Tensor:
        """The self-training loss (second term of Eq. 7) of these logits [B, K, h, w]."""
        if self.thresholds is None:
            full = upsampled_argmax(self.logits, self.size)
            return ops.upsampled_cross_entropy(logits, full)
        return ops.pseudo_label_loss(
            logits, self.thresholds, self.gamma, label_logits=self.logits, size=self.size
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards every layer's mode from before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class Labeller:
    """The label network and its thresholds.

    `labels="snapshot"`: a copy of the network, made when an epoch's thresholds are computed;
    `"ema"`: the averaged weights; `"live"`: the network being trained, in evaluation mode.
    """

    def __init__(
        self,
        model: SegmentationModel,
        average: WeightAverage,
        config: AdaptationConfig,
        num_classes: int,
        *,
        selects: bool = True,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        processes: Processes | None = None,
    ) -> None:
        self.config = config
        self.selects = selects
        self.processes = processes or Processes.alone()
        self.autocast = autocast  # around the label network's forwards
        self.trained = model
        self.average = average
        self.snapshot = (
            copy.deepcopy(model).eval().requires_grad_(False)
            if config.labels == "snapshot"
            else None
        )
        device = next(model.parameters()).device
        self.num_classes = num_classes
        self.thresholds = torch.ones(num_classes, device=device)
        self.portion = config.portion
        # Online: the window that is being filled and the one before it.
        self.window = ops.ClassThresholds(num_classes, device=device)
        self.previous = ops.ClassThresholds(num_classes, device=device)
        self.filled = 0

    @property
    def network(self) -> SegmentationModel:
        if self.config.labels == "snapshot":
            assert self.snapshot is not None
            return self.snapshot
        return self.average.module if self.config.labels == "ema" else self.trained

    def begin_epoch(self, epoch: int, batches: Iterable[Tensor]) -> Tensor:
        """Algorithm 1: new thresholds [K] from a pass over the target images `batches`.

        S_A grows with the epoch; a snapshot is taken first, so that labels and thresholds come
        from the same network. Online thresholds begin from the same pass. With several processes
        each gives its share of the images, and all get the thresholds of all.

        Raises:
            ValueError: `batches` has no pixel in it to count, in any process.
        """
        config = self.config
        self.portion = min(config.portion + config.portion_step * epoch, config.portion_max)
        if self.snapshot is not None:
            self.snapshot.load_state_dict(self.trained.state_dict())
        if not self.selects:
            return self.thresholds
        if config.thresholds == "epoch" or epoch == 0:
            collected = ops.ClassThresholds(self.num_classes, device=self.thresholds.device)
            network = self.network
            with evaluating(network):
                for images in batches:
                    with self.autocast():
                        logits = network(images)
                    collected.update(logits, size=image_size(images))
            self._add_up(collected)
            if int(collected.counts.sum()) == 0:
                raise ValueError(
                    "target_images has no pixel to take thresholds from: it is empty, or an "
                    "iterator that was read to its end before, or no logit of the label network "
                    "is finite"
                )
            self.thresholds = collected.compute(self.portion)
            self.previous = collected
        return self.thresholds

    def label(self, clean: Tensor) -> PseudoLabels:
        """Pseudo-labels of target images [B, 3, H, W]."""
        return self.label_parts([clean])[0]

    def label_parts(self, parts: Sequence[Tensor]) -> list[PseudoLabels]:
        """Pseudo-labels of the target images [B, 3, H, W] of one step, with the same thresholds."""
        with evaluating(self.network):
            looked = [self._look(clean) for clean in parts]
            if self.selects and self.config.thresholds == "online":
                self._advance([(z, image_size(x)) for (z, _), x in zip(looked, parts, strict=True)])
            return [
                self._solve(logits, grid, image_size(clean))
                for (logits, grid), clean in zip(looked, parts, strict=True)
            ]

    def _look(self, clean: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Logits [B, K, ...] of the label network, and (h, w) of its features."""
        with self.autocast():
            features = self.network.encode(clean)
            return self.network.classify(features), image_size(features.deep)

    def _solve(self, logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> PseudoLabels:
        gamma, on_grid = self.config.gamma, at_grid(logits, grid)
        if not self.selects:
            hard = on_grid.argmax(1)
            soft = F.one_hot(hard, logits.shape[1]).permute(0, 3, 1, 2).to(logits.dtype)
            return PseudoLabels(logits, None, gamma, size, soft, hard)
        soft, hard = ops.soft_pseudo_labels(on_grid, self.thresholds, gamma)
        return PseudoLabels(logits, self.thresholds, gamma, size, soft, hard)

    def _advance(self, seen: Sequence[tuple[Tensor, tuple[int, int]]]) -> None:
        """Online thresholds: the histogram of the last `online_window` steps, or up to two."""
        if self.filled >= self.config.online_window:
            self.previous, self.window, self.filled = self.window, self.previous, 0
            self.window.reset()
        self._count(self.window, seen)
        self.filled += 1
        self.thresholds = self.window.compute(self.portion, together_with=self.previous)

    def _count(
        self, into: ops.ClassThresholds, seen: Sequence[tuple[Tensor, tuple[int, int]]]
    ) -> None:
        """Count the logits of a step, those of all processes."""
        counted = into
        if self.processes.several:
            counted = ops.ClassThresholds(self.num_classes, device=self.thresholds.device)
        for logits, size in seen:
            counted.update(logits, size=size)
        if counted is not into:
            self._add_up(counted)
            into.merge(counted)

    def _add_up(self, counted: ops.ClassThresholds) -> None:
        if self.processes.several:
            with self.processes.watching("the counts of the thresholds"):
                counted.all_reduce()

    def forget(self, parts: Sequence[PseudoLabels]) -> None:
        """Take back what the last call of `label_parts` counted: its step came to nothing."""
        if not self.selects or self.config.thresholds != "online":
            return
        counted = ops.ClassThresholds(self.num_classes, device=self.thresholds.device)
        self._count(counted, [(pseudo.logits, pseudo.size) for pseudo in parts])
        state = self.window.state_dict()
        state["histogram"] = state["histogram"] - counted.state_dict()["histogram"]
        self.window.load_state_dict(state)
        self.filled -= 1
        self.thresholds = self.window.compute(self.portion, together_with=self.previous)

    def state_dict(self) -> dict[str, Any]:
        return {
            "thresholds": self.thresholds,
            "portion": self.portion,
            "snapshot": None if self.snapshot is None else self.snapshot.state_dict(),
            "window": self.window.state_dict(),
            "previous": self.previous.state_dict(),
            "filled": self.filled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.thresholds = state["thresholds"].to(self.thresholds.device)
        self.portion = state["portion"]
        if self.snapshot is not None:
            self.snapshot.load_state_dict(state["snapshot"])
        self.window.load_state_dict(state["window"])
        self.previous.load_state_dict(state["previous"])
        self.filled = state["filled"]
