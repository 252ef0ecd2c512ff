"""The data of a run: three data sets, their check, and endless batches with a place to resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cscl_fast.config import Config
from cscl_fast.data import (
    ClassList,
    DataError,
    DatasetConfig,
    SegmentationDataset,
    open_dataset,
    require_same_classes,
)
from cscl_fast.data.check import check_dataset
from cscl_fast.data.loading import InfiniteSampler, make_loader
from cscl_fast.trainer.players import Batch


class Stream:
    """Batches of a data set without end, shuffled anew each pass; `position` is where it is."""

    def __init__(
        self,
        dataset: SegmentationDataset,
        batch_size: int,
        device: torch.device,
        *,
        workers: int,
        seed: int,
    ) -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, device
        self.workers, self.seed = workers, seed
        self.position = 0  # samples taken
        self._batches: Iterator[dict[str, Any]] | None = None

    def seek(self, position: int) -> None:
        self.position, self._batches = position, None

    def next(self) -> Batch:
        if self._batches is None:
            sampler = InfiniteSampler(len(self.dataset), self.seed)
            sampler.position = self.position
            loader = make_loader(
                self.dataset,
                self.batch_size,
                sampler=sampler,
                workers=self.workers,
                seed=self.seed,
            )
            self._batches = iter(loader)
        try:
            sample = next(self._batches)
        except DataError as error:
            raise _without_traceback(error) from error
        self.position += self.batch_size
        return to_batch(sample, self.device)


def _without_traceback(error: DataError) -> DataError:
    """The message of the data set alone: a worker process puts its traceback before it."""
    return DataError(str(error).rsplit("DataError: ", 1)[-1].strip())


def to_batch(sample: dict[str, Any], device: torch.device) -> Batch:
    def move(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device, non_blocking=True)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    images = move(sample["image"])
    clean = images if torch.equal(sample["image"], sample["clean"]) else move(sample["clean"])
    return Batch(images, clean, move(sample["label"]), list(sample["path"]))


class World:
    """Source and target for training, the target again unaugmented, and the evaluation set."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        seed = config.seed

        def drawn(section: DatasetConfig) -> DatasetConfig:
            """Another seed of the run is another drawn world."""
            return replace(section, scene_seed=section.scene_seed + seed)

        self.source = open_dataset(drawn(config.source), training=True, seed=seed)
        self.target = open_dataset(drawn(config.target), training=True, seed=seed + 1)
        self.target_plain = open_dataset(drawn(config.target), training=False, seed=seed)
        self.evaluation = open_dataset(drawn(config.evaluation), training=False, seed=seed)
        require_same_classes(self.source.classes, self.target.classes)
        require_same_classes(self.source.classes, self.evaluation.classes)
        self.classes: ClassList = self.source.classes

    def check(self, say: Callable[[str], None]) -> None:
        """Look at every data set before the first step; raises `DataError` if one is unusable."""
        named = {"source": self.source, "target": self.target, "evaluation": self.evaluation}
        for name, dataset in named.items():
            report = check_dataset(dataset, deep=self.config.deep_check)
            say(f"{name}: {report}")
            report.raise_if_bad(need_labels=name == "source")
            if name == "evaluation" and not report.labelled:
                say("evaluation: without labels there is no score: every IoU will be nan")

    def stream(self, which: str, batch_size: int) -> Stream:
        """Endless training batches of "source" or "target"."""
        dataset = self.source if which == "source" else self.target
        seed = 2 * self.config.seed + (which == "target")
        return Stream(dataset, batch_size, self.device, workers=self.config.workers, seed=seed)

    def _plain_batches(
        self, dataset: SegmentationDataset, size: int, shuffle: bool
    ) -> Iterator[dict[str, Any]]:
        try:
            yield from make_loader(
                dataset,
                size,
                shuffle=shuffle,
                workers=self.config.workers,
                seed=self.config.seed,
                drop_last=False,
            )
        except DataError as error:
            raise _without_traceback(error) from error

    def target_pass(self) -> Iterator[Tensor]:
        """Every target image once, unaugmented, in order: what Algorithm 1 collects from."""
        size = self.config.evaluation_batch
        for sample in self._plain_batches(self.target_plain, size, shuffle=False):
            yield sample["clean"].to(self.device).contiguous(memory_format=torch.channels_last)

    def target_statistics(self, batches: int) -> Iterator[Tensor]:
        """Random target batches: neighbours in file order are often frames of one video."""
        size = min(max(4, self.config.adaptation.batch_size), len(self.target_plain))
        loader = self._plain_batches(self.target_plain, size, shuffle=True)
        for _, sample in zip(range(batches), loader, strict=False):
            if len(sample["clean"]) == size:
                yield sample["clean"].to(self.device).contiguous(memory_format=torch.channels_last)

    def evaluation_batches(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Images [B, 3, H, W] and their labels, which may be larger than the images."""
        size = self.config.evaluation_batch
        for sample in self._plain_batches(self.evaluation, size, shuffle=False):
            images = sample["clean"].to(self.device).contiguous(memory_format=torch.channels_last)
            yield images, list(sample["label"])
