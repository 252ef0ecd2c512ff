"""Order of the samples and loaders: deterministic, resumable, independent of the workers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate

from cscl_fast.data.dataset import SampleDict, SegmentationDataset
from cscl_fast.data.errors import DataError


class InfiniteSampler(Sampler[tuple[int, int]]):
    """Endless (epoch, index) pairs, every epoch in a new random order.

    The order depends on `seed` alone, and `position`, the number of pairs given so far, is the
    whole state. With workers a loader asks ahead of what the training step has seen, so resume
    from the steps done: `sampler.position = steps * batch_size`.

    Raises:
        ValueError: the data set is empty, or `position` is negative.
    """

    def __init__(self, length: int, seed: int = 0, position: int = 0) -> None:
        if length < 1:
            raise ValueError(f"length is {length}; an endless order needs at least one sample")
        if position < 0:
            raise ValueError(f"position is {position}; it counts samples from 0")
        self.length = length
        self.seed = seed
        self.position = position

    def __iter__(self) -> Iterator[tuple[int, int]]:
        while True:
            epoch = self.position // self.length
            order = epoch_order(self.length, self.seed, epoch)
            while self.position // self.length == epoch:
                index = order[self.position % self.length]
                self.position += 1
                yield epoch, index

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "length": self.length, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where the state was taken.

        Raises:
            ValueError: the state belongs to another number of samples or another seed.
        """
        for key in ("length", "seed"):
            if state[key] != getattr(self, key):
                raise ValueError(
                    f"the sampler's {key} is {getattr(self, key)}, the saved one's {state[key]}; "
                    "a run goes on with the data set and seed it was started with"
                )
        self.position = state["position"]


class EpochSampler(Sampler[tuple[int, int]]):
    """One epoch of (epoch, index) pairs; each new iteration is the next epoch."""

    def __init__(self, length: int, seed: int = 0, *, shuffle: bool = True) -> None:
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = epoch_order(self.length, self.seed, epoch) if self.shuffle else range(self.length)
        return iter([(epoch, index) for index in order])


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """A random order of the indices, from (seed, epoch) alone."""
    order: list[int] = np.random.default_rng([seed, epoch, length]).permutation(length).tolist()
    return order


def make_loader(
    dataset: SegmentationDataset,
    batch_size: int,
    *,
    sampler: Sampler[Any] | None = None,
    shuffle: bool = False,
    workers: int = 0,
    seed: int = 0,
    drop_last: bool = False,
    pin_memory: bool = False,
) -> DataLoader[SampleDict]:
    """Batches of a data set: images and labels stacked, `name`, `path` and `index` collected.

    Args:
        sampler: gives indices or (epoch, index) pairs; an `InfiniteSampler` for training.
        shuffle: without a sampler, a new order in every pass, from `seed`.
        workers: processes that read ahead; 0 reads in this one. They live as long as the
            loader. With `cache: ram` all images are read first, once, for all of them.

    Raises:
        ValueError: batch_size or workers cannot work, or sampler and shuffle are both given.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it is at least 1")
    if workers < 0:
        raise ValueError(f"workers is {workers}; it is 0 or more")
    if sampler is not None and shuffle:
        raise ValueError("shuffle is for loaders without a sampler; the sampler gives the order")
    if workers > 0:
        dataset.preload()
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler or EpochSampler(len(dataset), seed, shuffle=shuffle),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_seed_worker,
        # Without one the loader would draw from PyTorch's global generator.
        generator=torch.Generator().manual_seed(seed),
        collate_fn=collate,
        drop_last=drop_last,
        pin_memory=pin_memory,
    )


def collate(samples: list[SampleDict]) -> dict[str, Any]:
    """Stack samples into a batch; labels of several sizes (evaluation only) stay a list.

    Raises:
        DataError: the images' sizes differ; names two and what to set.
    """
    first = samples[0]
    for other in samples[1:]:
        a, b = first["image"].shape, other["image"].shape
        if a != b:
            raise DataError(
                f"a batch needs images of one size, but {first['path']} is {a[1]}x{a[2]} (HxW) "
                f"and {other['path']} {b[1]}x{b[2]}; set size, or crop, or use batches of one"
            )
    batch: dict[str, Any] = default_collate(
        [{key: value for key, value in sample.items() if key != "label"} for sample in samples]
    )
    labels = [sample["label"] for sample in samples]
    one_size = all(label.shape == labels[0].shape for label in labels)
    batch["label"] = torch.stack(labels) if one_size else labels
    return batch


def _seed_worker(worker: int) -> None:
    """Seed Python's and NumPy's global generators; the data set itself uses neither."""
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)
