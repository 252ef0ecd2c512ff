"""How far apart the two domains still are: the domain gap of a run, measured as it trains.

Two measures, both defined in docs/method.md ("The domain gap"): how often D is right about where a
location comes from, and how far apart the class centroids of the domains are. Measuring changes
nothing: evaluation mode, no gradients, no random numbers drawn, running statistics untouched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from cscl_fast import ops
from cscl_fast.data import SegmentationDataset, open_dataset
from cscl_fast.data.loading import collate, epoch_order
from cscl_fast.models import SegmentationModel
from cscl_fast.trainer.centroids import divergence_of_centroids
from cscl_fast.trainer.grids import image_size, nearest_labels, upsampled_argmax
from cscl_fast.trainer.labelling import evaluating
from cscl_fast.trainer.world import World


@dataclass(frozen=True)
class DomainGap:
    """The two measures; nan where there is none."""

    accuracy: float
    """Balanced accuracy of D over locations, 0 to 1; 0.5: it cannot tell. nan without D."""
    divergence: float
    """Mean divergence of the class centroids, nats a class. nan if no class is on both sides."""


class WithDiscriminator(Protocol):
    """What is measured: the players of the method, or anything that has these three of them."""

    transfer: bool  # False: D is not trained, and not asked

    @property
    def model(self) -> SegmentationModel:
        """E and C."""

    @property
    def discriminator(self) -> nn.Module:
        """D: F [B, C, h, w] → logits of "target" [B, 1, h', w']."""


class DomainSide:
    """What is collected of one domain: D's answers, and the centroid of each class."""

    def __init__(self, num_classes: int, channels: int, device: torch.device) -> None:
        kind = {"dtype": torch.float64, "device": device}
        self.sums = torch.zeros(num_classes, channels, **kind)  # type: ignore[call-overload]
        self.mass = torch.zeros(num_classes, **kind)  # type: ignore[call-overload]
        self.right = 0  # locations that D takes for what they are
        self.locations = 0

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Features [B, C, h, w] and their classes [B, h, w] int64 (255: none)."""
        centroids, mass = ops.class_centroids(features, labels, len(self.mass))
        self.sums += centroids.double() * mass.double()[:, None]
        self.mass += mass.double()

    def judge(self, logits: Tensor, *, target: bool) -> None:
        """D's logits of "target" at every location of this domain."""
        says_target = logits > 0
        self.right += int((says_target if target else ~says_target).sum())
        self.locations += logits.numel()

    @property
    def accuracy(self) -> float:
        return self.right / self.locations if self.locations else math.nan

    @property
    def centroids(self) -> Tensor:  # [K, C] float32
        return (self.sums / self.mass.clamp(min=1)[:, None]).float()


def domain_gap(
    players: WithDiscriminator,
    source: Iterable[tuple[Tensor, list[Tensor]]],
    target: Iterable[Tensor],
) -> DomainGap:
    """Measure the gap between batches of both domains.

    Args:
        players: E, C and D as they are.
        source: images [B, 3, H, W] and their B labels [H', W'] int64 (255: ignored).
        target: images [B, 3, H, W]; their classes are the network's own predictions.
    """
    model = players.model
    device = next(model.parameters()).device
    size = (model.num_classes, model.feature_channels, device)
    of_source, of_target = DomainSide(*size), DomainSide(*size)
    with evaluating(model):
        for images, labels in source:
            features = model.encode(images).deep
            of_source.add(features, nearest_labels(labels, image_size(features)).to(device))
            if players.transfer:
                of_source.judge(players.discriminator(features), target=False)
        for images in target:
            encoded = model.encode(images)
            predicted = upsampled_argmax(model.classify(encoded), image_size(encoded.deep))
            of_target.add(encoded.deep, predicted)
            if players.transfer:
                of_target.judge(players.discriminator(encoded.deep), target=True)
        divergence = centroid_divergence(of_source, of_target)
    return DomainGap((of_source.accuracy + of_target.accuracy) / 2, divergence)


def centroid_divergence(source: DomainSide, target: DomainSide) -> float:
    """Mean over the classes on both sides of ½(KL(s‖t) + KL(t‖s)) of the softmaxed centroids."""
    both = (source.mass > 0) & (target.mass > 0)
    if not both.any():
        return math.nan
    centroids = source.centroids, target.centroids
    return float(divergence_of_centroids(*centroids, both, normalise="softmax"))


class GapMeter:
    """The domain gap of a run, always on the same images: some of each domain, unaugmented.

    Args:
        world: the run's data; `gap_batches` batches of `evaluation_batch` images of each domain,
            drawn once from the run's seed.
    """

    def __init__(self, world: World) -> None:
        config = world.config
        self.device = world.device
        self.batch = config.evaluation_batch
        self.count = config.gap_batches * self.batch
        self.seed = config.seed
        source = world.source.config
        size = None if source.size == "default" else source.size  # "default" is resolved by now
        plain = replace(source, label_size=size)
        self.source = open_dataset(plain, training=False, seed=self.seed)
        self.source.share_cache(world.source)
        self.target = world.target_plain

    def __call__(self, players: WithDiscriminator) -> DomainGap:
        source = ((b, list(labels)) for b, labels in self._batches(self.source))
        return domain_gap(players, source, (images for images, _ in self._batches(self.target)))

    def _batches(self, dataset: SegmentationDataset) -> Iterator[tuple[Tensor, Iterable[Tensor]]]:
        """Read in this process and without a loader: nothing is drawn, and no worker is started."""
        chosen = epoch_order(len(dataset), self.seed, 0)[: self.count]
        size = dataset.batch_of(self.batch)
        for first in range(0, len(chosen), size):
            sample = collate([dataset[i] for i in chosen[first : first + size]])
            images = sample["clean"].to(self.device)
            yield images.contiguous(memory_format=torch.channels_last), sample["label"]
