"""The data of a run: three data sets, their check, and endless batches with a place to resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cscl_fast.config import Config, ConfigError
from cscl_fast.data import (
    ClassList,
    DataError,
    DatasetConfig,
    SegmentationDataset,
    open_dataset,
    require_same_classes,
)
from cscl_fast.data.check import check_dataset
from cscl_fast.data.loading import EpochSampler, InfiniteSampler, make_loader, read_ahead
from cscl_fast.trainer.players import Batch


class Stream:
    """Batches of a data set without end, shuffled anew each pass; `position` is where it is.

    The next batches are read while the training computes: by `workers` processes, or by a thread.

    Args:
        rank, count: of the processes that train together; each has a stream of its own, and their
            batches together are those of one process with the sum of the batch sizes.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        batch_size: int,
        device: torch.device,
        *,
        workers: int,
        seed: int,
        rank: int = 0,
        count: int = 1,
    ) -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, device
        self.workers, self.seed = workers, seed
        self.rank, self.count = rank, count
        self.position = 0  # samples taken, by all processes together
        self._batches: Iterator[dict[str, Any]] | None = None

    def seek(self, position: int) -> None:
        """Go to a place; after n batches it is n · batch_size · count."""
        self.position, self._batches = position, None

    def next(self) -> Batch:
        if self._batches is None:
            sampler = InfiniteSampler(
                len(self.dataset),
                self.seed,
                self.position,
                rank=self.rank,
                count=self.count,
                batch_size=self.batch_size,
            )
            loader = make_loader(
                self.dataset,
                self.batch_size,
                sampler=sampler,
                workers=self.workers,
                seed=self.seed,
                pin_memory=self.device.type == "cuda",
            )
            self._batches = iter(loader) if self.workers else read_ahead(loader)
        try:
            sample = next(self._batches)
        except DataError as error:
            raise _without_traceback(error) from error
        self.position += self.batch_size * self.count
        return to_batch(sample, self.device)


def _without_traceback(error: DataError) -> DataError:
    """The message of the data set alone: a worker process puts its traceback before it."""
    return DataError(str(error).rsplit("DataError: ", 1)[-1].strip())


def to_batch(sample: dict[str, Any], device: torch.device) -> Batch:
    """A loader's batch on the training device; from pinned memory without waiting for the copy."""

    def move(tensor: Tensor) -> Tensor:  # keeps channels-last
        return tensor.to(device, non_blocking=True)

    images = move(sample["image"])
    clean = move(sample["clean"]) if sample["augmented"] else images
    return Batch(images, clean, move(sample["label"]), list(sample["path"]))


class World:
    """Source and target for training, the target again unaugmented, and the evaluation set.

    Args:
        rank, count: of the processes that train together; each gets its share of the training
            batches, of the pass over the target and of the evaluation.
    """

    def __init__(
        self, config: Config, device: torch.device, *, rank: int = 0, count: int = 1
    ) -> None:
        self.config, self.device = config, device
        self.rank, self.count = rank, count
        seed = config.seed

        def drawn(section: DatasetConfig) -> DatasetConfig:
            """Another seed of the run is another drawn world; one key sets all three caches."""
            return replace(
                section,
                scene_seed=section.scene_seed + seed,
                cache=config.cache or section.cache,
            )

        self.source = open_dataset(drawn(config.source), training=True, seed=seed)
        self.target = open_dataset(drawn(config.target), training=True, seed=seed + 1)
        self.target_plain = open_dataset(drawn(config.target), training=False, seed=seed)
        self.target_plain.share_cache(self.target)
        self.evaluation = open_dataset(drawn(config.evaluation), training=False, seed=seed)
        require_same_classes(self.source.classes, self.target.classes)
        require_same_classes(self.source.classes, self.evaluation.classes)
        self.classes: ClassList = self.source.classes

    def check(self, say: Callable[[str], None]) -> None:
        """Look at every data set before the first step.

        Raises:
            DataError: one is unusable.
            ConfigError: training batches of images that cannot be stacked.
        """
        named = {"source": self.source, "target": self.target, "evaluation": self.evaluation}
        for name, dataset in named.items():
            report = check_dataset(dataset, deep=self.config.deep_check)
            say(f"{name}: {report}")
            report.raise_if_bad(need_labels=name == "source")
            if name == "evaluation" and not report.labelled:
                say(
                    "evaluation: without labels there is no score: every IoU will be nan, and "
                    "there will be no best.pt"
                )

        self._require_batches()

    def _require_batches(self) -> None:
        """Refuse training batches of images that differ in size; passes take them one by one."""
        config = self.config
        keys: list[tuple[str, SegmentationDataset, str, int]] = []
        if config.warmup.steps > 0:
            size = config.warmup.batch_size
            keys.append(("source", self.source, "warmup.batch_size", size))
        if not config.source_only:
            size = config.adaptation.batch_size
            keys.append(("source", self.source, "adaptation.batch_size", size))
            keys.append(("target", self.target, "adaptation.batch_size", size))
        for name, dataset, key, size in keys:
            if dataset.batch_of(size) != size:
                (h, w), (other_h, other_w) = sorted(set(dataset.file_sizes or ()))[:2]
                raise ConfigError(
                    f"{key} is {size}, but the {name} images differ in size, as {h}x{w} and "
                    f"{other_h}x{other_w} (HxW): set {name}.size or {name}.crop, or use batches "
                    "of 1"
                )

    def stream(self, which: str, batch_size: int) -> Stream:
        """Endless training batches of "source" or "target"."""
        dataset = self.source if which == "source" else self.target
        seed = 2 * self.config.seed + (which == "target")
        return Stream(
            dataset,
            batch_size,
            self.device,
            workers=self.config.workers,
            seed=seed,
            rank=self.rank,
            count=self.count,
        )

    def _plain_batches(
        self, dataset: SegmentationDataset, size: int, *, shuffle: bool = False, shared: bool = True
    ) -> Iterator[dict[str, Any]]:
        """One pass in batches of `size`, or of 1 where images differ in size.

        `shared`: this process's batches, not all of them.
        """
        size = dataset.batch_of(size)
        rank, count = (self.rank, self.count) if shared else (0, 1)
        sampler = EpochSampler(
            len(dataset),
            self.config.seed,
            shuffle=shuffle,
            rank=rank,
            count=count,
            batch_size=size,
        )
        loader = make_loader(
            dataset,
            size,
            sampler=sampler,
            workers=self.config.workers,
            seed=self.config.seed,
            pin_memory=self.device.type == "cuda",
        )
        try:
            yield from loader if self.config.workers else read_ahead(loader)
        except DataError as error:
            raise _without_traceback(error) from error

    def _moved(self, images: Tensor) -> Tensor:  # channels-last, as they come
        return images.to(self.device, non_blocking=True)

    def target_pass(self) -> Iterator[Tensor]:
        """Every target image once, unaugmented, in order: what Algorithm 1 collects from.

        Of several processes each passes its share; their counts add up to those of one.
        """
        size = self.config.evaluation_batch
        for sample in self._plain_batches(self.target_plain, size):
            yield self._moved(sample["clean"])

    def target_statistics(self, batches: int) -> Iterator[Tensor]:
        """Random target batches: neighbours in file order are often frames of one video.

        The same in each of several processes, so that their statistics stay alike.
        """
        size = min(max(4, self.config.adaptation.batch_size), len(self.target_plain))
        size = self.target_plain.batch_of(size)
        loader = self._plain_batches(self.target_plain, size, shuffle=True, shared=False)
        for _, sample in zip(range(batches), loader, strict=False):
            if len(sample["clean"]) == size:
                yield self._moved(sample["clean"])

    def evaluation_batches(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Images [B, 3, H, W] and their labels, which may be larger than the images."""
        size = self.config.evaluation_batch
        for sample in self._plain_batches(self.evaluation, size):
            yield self._moved(sample["clean"]), list(sample["label"])
