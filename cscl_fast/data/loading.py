"""Order of the samples and loaders: deterministic, resumable, independent of the workers."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cscl_fast.data.dataset import SampleDict, SegmentationDataset
from cscl_fast.data.errors import DataError

Batch = TypeVar("Batch")


class InfiniteSampler(Sampler[tuple[int, int]]):
    """Endless (epoch, index) pairs, every epoch in a new random order.

    The order depends on `seed` alone, and `position`, the number of pairs given so far, is the
    whole state. With workers a loader asks ahead of what the training step has seen, so resume
    from the steps done: `sampler.position = steps * batch_size`.

    Several processes share one order: of every `count * batch_size` pairs, process `rank` gives
    its own `batch_size`, so that together they see what one process with the sum of their batches
    sees, in its order. `position` counts the pairs of all of them, and is the same in each after
    the same number of batches.

    Raises:
        ValueError: the data set is empty, `position` is negative or in the middle of another
            process's batch, or there is no such process.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        position: int = 0,
        *,
        rank: int = 0,
        count: int = 1,
        batch_size: int = 1,  # of each process
    ) -> None:
        if length < 1:
            raise ValueError(f"length is {length}; an endless order needs at least one sample")
        if position < 0:
            raise ValueError(f"position is {position}; it counts samples from 0")
        require_rank(rank, count)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it is at least 1")
        if position % (count * batch_size) >= batch_size:
            raise ValueError(
                f"position is {position}; {count} processes with batches of {batch_size} begin at "
                f"multiples of {count * batch_size}"
            )
        self.length = length
        self.seed = seed
        self.position = position
        self.rank = rank
        self.count = count
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order: list[int] = []
        order_epoch = -1
        together = self.count * self.batch_size
        while True:
            mine = self.position + self.rank * self.batch_size
            epoch = mine // self.length
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.length, self.seed, epoch), epoch
            self.position += 1
            if self.position % together == self.batch_size % together:  # my batch is complete
                self.position += together - self.batch_size
            yield epoch, order[mine % self.length]

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
    """One epoch of (epoch, index) pairs; each new iteration is the next epoch.

    Several processes take turns by batches of `batch_size`: process `rank` gives the pairs of the
    batches rank, rank + count, ... of one process. Each sample is seen once, in the same company,
    so that a network gives it the same bits.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        rank: int = 0,
        count: int = 1,
        batch_size: int = 1,
    ) -> None:
        require_rank(rank, count)
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        places = range(length)
        turns = range(rank * batch_size, length, count * batch_size)
        self.mine = [place for first in turns for place in places[first : first + batch_size]]

    def __len__(self) -> int:
        return len(self.mine)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = epoch_order(self.length, self.seed, epoch) if self.shuffle else range(self.length)
        return iter([(epoch, order[place]) for place in self.mine])


def require_rank(rank: int, count: int) -> None:
    """Refuse a process that is not one of `count`."""
    if not 0 <= rank < count:
        raise ValueError(f"rank is {rank} of {count}; it is 0 to {count - 1}")


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
        pin_memory: put the batches where a GPU can fetch them while the program goes on.

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

    The images are channels-last in memory, as the networks take them, so that no layout is
    changed in a training step. `augmented` says whether `image` differs from `clean` at all; where
    it does not, both are one tensor.

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
    augmented = any(sample["image"] is not sample["clean"] for sample in samples)
    images = _stack([sample["image"] for sample in samples])
    labels = [sample["label"] for sample in samples]
    one_size = all(label.shape == labels[0].shape for label in labels)
    return {
        "image": images,
        "clean": _stack([sample["clean"] for sample in samples]) if augmented else images,
        "augmented": augmented,
        "label": torch.stack(labels) if one_size else labels,
        "name": [sample["name"] for sample in samples],
        "path": [sample["path"] for sample in samples],
        "index": torch.tensor([sample["index"] for sample in samples]),
    }


def _stack(images: list[Tensor]) -> Tensor:  # [B, 3, H, W], channels-last
    shape = (len(images), *images[0].shape)
    batch = torch.empty(shape, dtype=images[0].dtype, memory_format=torch.channels_last)
    return torch.stack(images, out=batch)


def read_ahead(batches: Iterable[Batch], count: int = 2) -> Iterator[Batch]:
    """The same batches, read by a thread that is up to `count` of them ahead.

    Decoding and augmentation leave Python's lock most of the time, so they overlap with the
    training. The order, the batches and the random generators are as without it: nothing that
    makes a sample draws from a global generator. An error is raised where its batch would be.
    """
    iterator = iter(batches)
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        pending: deque[Future[Any]] = deque()
        try:
            while True:
                while len(pending) <= count:
                    pending.append(thread.submit(next, iterator, _END))
                batch = pending.popleft().result()
                if batch is _END:
                    return
                yield batch
        finally:
            for future in pending:
                future.cancel()


_END = object()


def _seed_worker(worker: int) -> None:
    """Seed Python's and NumPy's global generators; the data set itself uses neither."""
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)
