"""Who is told what happens in a run: the tables, TensorBoard, anyone's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from cscl_fast.trainer.evaluation import Score
from cscl_fast.trainer.stopwatch import Stopwatch

if TYPE_CHECKING:
    from cscl_fast.trainer.gap import DomainGap


class Observer:
    """What a run tells. A subclass needs only what it is interested in: the rest does nothing."""

    def start_again(self) -> None:
        """A run begins from nothing: forget what there is of one that it overwrites."""

    def cut(self, done: dict[str, int]) -> None:
        """A run goes on after these steps (phase → step): forget what was told after them.

        A phase that was not reached is missing. One that was left behind has a large number.
        """

    def log(self, values: dict[str, float | int | str]) -> None:
        """A row of `metrics.csv`, every `log_every` steps: losses and watched values of a step."""

    def score(self, row: str, phase: str, step: int, score: Score) -> None:
        """An evaluation; `row` is its name in the final table."""

    def thresholds(self, epoch: int, step: int, portion: float, thresholds: Tensor) -> None:
        """An epoch of the adaptation begins, with S_A (`portion`) and δ [K]."""

    def kept(self, epoch: int, step: int, shares: Tensor) -> None:
        """Share [K] of the target's locations with a pseudo-label of each class, since the last."""

    def gap(self, epoch: int, step: int, gap: DomainGap) -> None:
        """The domain gap: `accuracy` of D and `divergence` of the centroids."""

    def centroids(self, epoch: int, step: int, distances: Tensor) -> None:
        """Distances [K, K] between the class centroids of source (rows) and target (columns)."""

    def panels(self, folder: Path) -> None:
        """The panels are drawn; they are in `folder`."""

    def close(self) -> None:
        """The run has ended, or stops."""


class Observers(Observer):
    """Several observers as one; each is told everything, in their order.

    Args:
        stopwatch: counts the time they take as "records".
    """

    def __init__(
        self, observers: Iterable[Observer] = (), stopwatch: Stopwatch | None = None
    ) -> None:
        self.observers = list(observers)
        self.stopwatch = stopwatch or Stopwatch()

    def _each(self) -> Iterator[Observer]:
        with self.stopwatch("records"):
            yield from self.observers

    def start_again(self) -> None:
        for observer in self._each():
            observer.start_again()

    def cut(self, done: dict[str, int]) -> None:
        for observer in self._each():
            observer.cut(done)

    def log(self, values: dict[str, float | int | str]) -> None:
        for observer in self._each():
            observer.log(values)

    def score(self, row: str, phase: str, step: int, score: Score) -> None:
        for observer in self._each():
            observer.score(row, phase, step, score)

    def thresholds(self, epoch: int, step: int, portion: float, thresholds: Tensor) -> None:
        for observer in self._each():
            observer.thresholds(epoch, step, portion, thresholds)

    def kept(self, epoch: int, step: int, shares: Tensor) -> None:
        for observer in self._each():
            observer.kept(epoch, step, shares)

    def gap(self, epoch: int, step: int, gap: DomainGap) -> None:
        for observer in self._each():
            observer.gap(epoch, step, gap)

    def centroids(self, epoch: int, step: int, distances: Tensor) -> None:
        for observer in self._each():
            observer.centroids(epoch, step, distances)

    def panels(self, folder: Path) -> None:
        for observer in self._each():
            observer.panels(folder)

    def close(self) -> None:
        for observer in self._each():
            observer.close()
