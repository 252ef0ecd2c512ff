"""What a run logs, as event files for TensorBoard (`tensorboard: true`).

    tensorboard --logdir runs

Each phase has a folder of its own, `tensorboard/warmup` and `tensorboard/adaptation`, so that
TensorBoard draws them in two colours and a resumed run can cut each where it goes on. Steps count
through: the adaptation begins where the warm-up ended.

A resumed run writes its steps again. TensorBoard drops what an earlier process wrote at or behind
the step that the new file announces (`purge_step`). One such step has to be right for everything in
a folder, so each value stands at the first step that it belongs to: thresholds, which are computed
before the first step of their epoch, at that step; the scores of the source-only network, which are
taken after the last checkpoint of the warm-up, at the start of the adaptation.
"""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from cscl_fast.config import ConfigError
from cscl_fast.data import ClassList
from cscl_fast.trainer.evaluation import Score
from cscl_fast.trainer.observers import Observer
from cscl_fast.trainer.panels import OVERVIEW

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOSSES = (
    "total", "source", "target", "discriminator", "adversarial", "critic", "regression",
    "divergence",
)  # fmt: skip
WATCHED = ("kept", "reward", "transferability")
LEGIBLE = 40  # classes whose distances can be written into the cells of their picture


class Gap(Protocol):
    """The domain gap as `trainer/gap.py` measures it."""

    @property
    def accuracy(self) -> float:
        """D's balanced accuracy, 0 to 1."""

    @property
    def divergence(self) -> float:
        """Mean divergence of the class centroids, nats."""


class TensorBoard(Observer):
    """An observer of a run, beside `Records`.

    Args:
        folder: the run folder; nothing is written to it before the first value comes.
        classes: names for what is logged by class.
        warmup_steps: steps of the warm-up, where the adaptation's steps begin.

    Raises:
        ConfigError: the package `tensorboard` is not installed.
    """

    def __init__(self, folder: Path, classes: ClassList, warmup_steps: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"tensorboard is true, but its writer cannot be imported ({error}); install it "
                'with `pip install tensorboard` (or `pip install ".[tensorboard]"` in the '
                "checkout), or leave tensorboard at false"
            ) from None
        self.folder = folder / "tensorboard"
        self.names = list(classes.names)
        self.begins = {"warmup": 0, "adaptation": warmup_steps}
        self.last = self.begins["adaptation"]  # the latest step of the adaptation, counted through
        self._make = SummaryWriter
        self._writers: dict[str, SummaryWriter] = {}

    # ------------------------------------------------------------------------- what a run tells it

    def log(self, values: Mapping[str, Any]) -> None:
        """Losses and watched values of one step, by the columns of `metrics.csv`."""
        phase, step = str(values["phase"]), int(values["step"])
        for name, value in values.items():
            if name in ("phase", "step") or not isinstance(value, int | float):
                continue
            group = "losses" if name in LOSSES else "watched" if name in WATCHED else "progress"
            self._scalar(phase, step, f"{group}/{name}", float(value))
        self._flush(phase)

    def score(self, row: str, phase: str, step: int, score: Score) -> None:
        """mIoU and IoU by class in percent; the row is part of the name."""
        if phase == "warmup":
            phase, step = "adaptation", 0
        for name, value in score.row().items():
            tag = f"{name}/{row}" if name.startswith("mIoU") else f"IoU, {row}/{name}"
            self._scalar(phase, step, tag, value)
        self._flush(phase)

    def thresholds(self, epoch: int, step: int, portion: float, thresholds: Tensor) -> None:
        """δ [K] of an epoch, and S_A; `step` steps of the adaptation were done before."""
        self._scalar("adaptation", step + 1, "progress/portion", portion)
        self._by_class("adaptation", step + 1, "thresholds", thresholds)

    def kept(self, epoch: int, step: int, shares: Tensor) -> None:
        """Share [K] of the target's locations that carry a pseudo-label of each class."""
        self._by_class("adaptation", step, "kept", shares)

    def gap(self, epoch: int, step: int, gap: Gap) -> None:
        """The domain gap; the one of step 0 stands at the step that comes after it."""
        self._scalar("adaptation", max(step, 1), "gap/accuracy", float(gap.accuracy))
        self._scalar("adaptation", max(step, 1), "gap/divergence", float(gap.divergence))
        self._flush("adaptation")

    def centroids(self, epoch: int, step: int, distances: Tensor) -> None:
        """Distances [K, K] of the source's class centroids (rows) from the target's, as a picture.

        NaN: one of the two domains did not show the class.
        """
        matrix = distances.detach().double().cpu().numpy()
        with _pictures_may_fail():
            picture = matrix_picture(matrix, self.names)
            self._picture("adaptation", max(step, 1), "centroids/source by target", picture)
        self._flush("adaptation")

    def panels(self, folder: Path) -> None:
        """Every PNG of a folder but the overview of the others; drawn after the last step."""
        step = self.last - self.begins["adaptation"] + 1
        for path in sorted(folder.glob("*.png")):
            if path.name == OVERVIEW:  # all of them once more, and of any size
                continue
            with _pictures_may_fail():
                with Image.open(path) as image:
                    picture = np.asarray(image.convert("RGB"))
                self._picture("adaptation", step, f"{folder.name}/{path.stem}", picture)
        self._flush("adaptation")

    def cut(self, done: Mapping[str, int]) -> None:
        """Drop what lies behind a checkpoint that is resumed: it will be written again.

        `done`: steps of each phase that the checkpoint holds; a phase that it has not reached is
        missing and dropped as a whole.
        """
        for phase, begin in self.begins.items():
            keep = done.get(phase, -1)
            if (self.folder / phase).is_dir() and keep < 10**9:
                self._writer(phase, purge_step=begin + keep + 1)
        self.last = self.begins["adaptation"] + done.get("adaptation", 0)

    def start_again(self) -> None:
        """Forget the event files of a run that is overwritten."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    # ------------------------------------------------------------------------------------ its parts

    def _writer(self, phase: str, purge_step: int | None = None) -> SummaryWriter:
        if phase not in self._writers:
            folder = self.folder / phase
            wait_for_a_later_name(folder)
            self._writers[phase] = self._make(str(folder), purge_step=purge_step)
        return self._writers[phase]

    def _scalar(self, phase: str, step: int, tag: str, value: float) -> None:
        step += self.begins[phase]
        if phase == "adaptation":
            self.last = max(self.last, step)
        if math.isfinite(value):  # NaN is a class that does not occur; TensorBoard would mark it
            self._writer(phase).add_scalar(tag, value, step)

    def _by_class(self, phase: str, step: int, group: str, values: Tensor) -> None:
        for name, value in zip(self.names, values.tolist(), strict=True):
            self._scalar(phase, step, f"{group}/{name}", value)
        self._flush(phase)

    def _picture(self, phase: str, step: int, tag: str, picture: npt.NDArray[np.uint8]) -> None:
        step += self.begins[phase]
        self._writer(phase).add_image(tag, picture, step, dataformats="HWC")

    def _flush(self, phase: str) -> None:
        """A run that is killed goes on from its checkpoint: what came before has to be on disk."""
        if phase in self._writers:
            self._writers[phase].flush()


@contextmanager
def _pictures_may_fail() -> Iterator[None]:
    """A picture that cannot be drawn is left out with a warning: no run stops for it."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"a picture for TensorBoard is left out: {reason}", stacklevel=3)


def wait_for_a_later_name(folder: Path) -> None:
    """Wait until a new event file's name comes behind those that are there, a second at most.

    Readers take event files in the order of their names, `events.out.tfevents.SECOND.…`; of two
    from one second the later one may come first, and what it purges would then stay.
    """
    seconds = {path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*")}
    while f"{int(time.time()):010d}" in seconds:
        time.sleep(0.02)


def matrix_picture(
    distances: npt.NDArray[np.float64],  # [K, K], NaN where there is none
    names: list[str],  # [K]
) -> npt.NDArray[np.uint8]:  # [height, width, 3]
    """The matrix with its class names and values; the brighter, the further apart.

    With many classes it does not become larger, but its cells smaller and empty.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cell = 0.46 * min(1, LEGIBLE / len(names))  # inches: five characters of 8 points, or nothing
    side = 2.4 + cell * len(names)
    size = min(9.0, 0.8 * 72 * cell)  # points, of the class names
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    axis = figure.subplots()
    axis.imshow(distances, cmap="viridis")
    places = range(len(names))
    axis.set_xticks(places, names, rotation=90, fontsize=size, parse_math=False)
    axis.set_yticks(places, names, fontsize=size, parse_math=False)
    axis.set_xlabel("target")
    axis.set_ylabel("source")
    axis.set_title("distance of the class centroids", fontsize=10)
    finite = distances[np.isfinite(distances)]
    middle = (finite.min() + finite.max()) / 2 if finite.size else 0.0
    for (row, column), value in np.ndenumerate(distances):
        if np.isfinite(value) and len(names) <= LEGIBLE:
            color = "black" if value > middle else "white"
            text = short(float(value))
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def short(value: float) -> str:
    """Three digits where they fit a cell: `0.034`, `1.20`, `12.3`, `4e+03`."""
    size = abs(value)
    if size >= 999.5 or 0 < size < 0.0005:
        return f"{value:.0e}"
    places = 3 if size < 0.1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:.{places}f}"
