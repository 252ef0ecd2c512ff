"""What a training step takes: batches, or the tensors that they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cscl_fast.trainer.players import Batch
from cscl_fast.trainer.update import Shares

Source = Batch | tuple[Tensor, Tensor]  # a batch, or (images, labels)
Target = Batch | Tensor  # a batch, or images


@dataclass
class Labelled:
    """What one forward of the source-only training takes."""

    batch: Batch
    shares: Shares | None = None

    @property
    def paths(self) -> list[str]:
        return self.batch.paths


def as_parts(given: Any, name: str, count: int, device: torch.device) -> list[Batch]:
    """The `count` batches of a step, from one batch or from a list of micro-batches.

    Each is a `Batch`, images [B, 3, H, W], or a pair of images and labels [B, H, W].

    Raises:
        TypeError, ValueError: something else; the message names `name` and what it needs.
    """
    parts = list(given) if isinstance(given, list) else [given]
    if len(parts) != count:
        raise ValueError(
            f"{name} is {len(parts)} micro-batches; accumulate is {count}, so a step takes a "
            f"list of {count}; the images and labels of one batch are a tuple"
        )
    return [as_batch(part, name, device) for part in parts]


def as_batch(given: Any, name: str, device: torch.device) -> Batch:
    """A `Batch` on `device`, its images channels-last; see `as_parts`."""
    if isinstance(given, Batch):
        require_images(given.images, f"{name}'s images")
        require_images(given.clean, f"{name}'s clean images")
        images = channels_last(given.images, device)
        clean = images if given.clean is given.images else channels_last(given.clean, device)
        return Batch(images, clean, given.labels.to(device, non_blocking=True), given.paths)
    needed = "(images, labels)" if name == "source" else "images"
    images, labels = given if _is_pair(given) else (given, None)
    if not isinstance(images, Tensor) or (labels is None and name == "source"):
        raise TypeError(f"{name} is a {type(given).__name__}; it needs to be a Batch or {needed}")
    require_images(images, f"{name}'s images")
    expected = (images.shape[0], *images.shape[2:])
    if labels is None:  # of the target: nothing reads them
        labels = torch.full((), 255).expand(expected)
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != expected:
        found = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else labels
        raise ValueError(f"{name}'s labels are {found}; they need to be int64 {list(expected)}")
    images = channels_last(images, device)
    return Batch(images, images, labels.to(device, non_blocking=True))


def require_images(images: Any, name: str) -> None:
    """Refuse what is not images as the networks take them, under autocast, too.

    Raises:
        TypeError, ValueError: the message names `name`, what it is and what it needs.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} are a {type(images).__name__}; they need to be a tensor")
    if images.ndim != 4 or images.dtype != torch.float32:
        raise ValueError(
            f"{name} are {images.dtype} {list(images.shape)}; they need to be torch.float32 "
            "[B, 3, H, W]"
        )


def as_images(given: Iterable[Any], name: str, device: torch.device) -> Iterator[Tensor]:
    """Batches of images on the device, each checked when its turn comes; see `require_images`."""
    for images in given:
        require_images(images, name)
        yield channels_last(images, device)


def _is_pair(given: Any) -> bool:
    return isinstance(given, Sequence) and len(given) == 2


def channels_last(images: Tensor, device: torch.device) -> Tensor:
    """Images [B, 3, H, W] on the device, channels-last in memory."""
    images = images.to(device, non_blocking=True)
    return images.contiguous(memory_format=torch.channels_last)
