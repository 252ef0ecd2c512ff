"""The players of the method and their losses; the schedules make a step of them.

`look` is the forward of one domain, below it stands every loss of Eq. 14. Both schedules
(`schedules.py`) are made of these parts, so that a formula stands once.

Who learns from what, whatever the schedule:

    E, C   L_seg (Eq. 7), L_div (Eq. 13); E also L_adv (Eq. 1)
    D      its own binary cross-entropy (Eq. 1)
    T_Q    L_seg through the gate, L_cri (Eq. 5)
    T_C    L_reg (Eq. 6)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cscl_fast import ops
from cscl_fast.config import AdaptationConfig, Part
from cscl_fast.models import (
    Discriminator,
    SegmentationModel,
    TransferabilityCritic,
    TransferabilityQuantizer,
)
from cscl_fast.models.batchnorm import frozen_statistics
from cscl_fast.models.segmentation_model import Features
from cscl_fast.trainer.centroids import RunningCentroids
from cscl_fast.trainer.labelling import PseudoLabels, image_size

Losses = dict[str, Tensor]


@dataclass
class Batch:
    """Images of one domain, on the training device."""

    images: Tensor  # [B, 3, H, W] float32, normalised, augmented
    clean: Tensor  # [B, 3, H, W] float32, the same geometry, no photometric augmentation
    labels: Tensor  # [B, H, W] int64, 255 = ignored; never read for the target
    paths: list[str]


@dataclass
class View:
    """What the networks make of one domain's batch."""

    features: Features  # .deep is F: [B, C, h, w]
    plain: Tensor  # [B, K, h, w] logits of C(F)
    gated: Tensor | None  # [B, K, h, w] logits of C(F · (1 + P)); None without the transfer part
    transferability: Tensor | None  # [B, 1, h, w] P in [0, 1]

    @property
    def paths(self) -> list[Tensor]:
        """The logits that C is trained on: [plain] or [plain, gated]."""
        return [self.plain] if self.gated is None else [self.plain, self.gated]


@contextmanager
def constant(*modules: nn.Module) -> Iterator[None]:
    """Parameters of these modules get no gradient from what is computed inside."""
    learning = [p for m in modules for p in m.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)


def discriminator_strides(
    model: SegmentationModel, config: AdaptationConfig
) -> tuple[int, int, int, int, int]:
    """The configured strides, or those with which D judges at 1/32 of the image."""
    if config.discriminator_strides is not None:
        return config.discriminator_strides
    deep = model.architecture.startswith("fcn8s")  # its F is at 1/32 already
    return (1, 1, 1, 1, 1) if deep else (2, 2, 1, 1, 1)


def nearest_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels [B, H, W] int64 at the locations of a coarser grid, [B, h, w] int64 (nearest)."""
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0].long()


class Players(nn.Module):
    """The players of the method and their losses.

    Args:
        model: E and C.
        config: the section `adaptation` of the configuration.
        without: parts left out, as in the paper's ablations.
    """

    def __init__(
        self, model: SegmentationModel, config: AdaptationConfig, without: tuple[Part, ...] = ()
    ) -> None:
        super().__init__()
        self.config = config
        self.transfer = "transfer" not in without
        self.selects = "pseudo-labels" not in without
        self.aligns = "divergence" not in without
        self.model = model
        channels = model.feature_channels
        self.discriminator = Discriminator(channels, strides=discriminator_strides(model, config))
        self.quantizer = TransferabilityQuantizer()
        self.critic = TransferabilityCritic(channels)
        if not self.transfer:  # kept as modules so that a checkpoint has one shape; never trained
            for module in (self.discriminator, self.quantizer, self.critic):
                module.requires_grad_(False)
        self.centroids = (
            RunningCentroids(config.centroid_momentum, model.num_classes, channels)
            if config.centroid_momentum > 0
            else None
        )

    # ------------------------------------------------------------------ the forward of one domain

    def look(self, images: Tensor, *, source: bool, track: bool) -> View:
        """E, the gate and C on the images [B, 3, H, W] of one domain.

        `track`: whether this forward may move the running statistics of the batch normalisations;
        those of the source never do with bn="per-domain".
        """
        may_track = track and not (source and self.config.bn == "per-domain")
        with nullcontext() if may_track else frozen_statistics(self.model):
            features = self.model.encode(images)
            plain = self.model.classify(features)
            if not self.transfer:
                return View(features, plain, None, None)
            # D only tells where the domains can be told apart: its probability is a constant here,
            # so that L_seg and L_cri reach T_Q and go no further.
            with torch.no_grad():
                probability = torch.sigmoid(self.discriminator(features.deep))
            gate = self.quantizer(probability, size=features.deep.shape[-2:])
            gated = self.model.classify(features._replace(deep=features.deep * (1 + gate)))
        return View(features, plain, gated, gate)

    # ------------------------------------------------------------------------------- the losses

    def segmentation_losses(
        self, source: View, labels: Tensor, target: View, pseudo: PseudoLabels
    ) -> Losses:
        """Eq. 7: cross-entropy on the source, self-training on the target, over both paths."""
        on_source = [ops.upsampled_cross_entropy(z, labels) for z in source.paths]
        on_target = [pseudo.loss(z) for z in target.paths]
        return {
            "source": torch.stack(on_source).mean(),
            "target": torch.stack(on_target).mean(),
        }

    def adversarial_loss(self, target: View) -> Tensor:
        """Eq. 1 as E sees it: the target's features pass for source (label 0)."""
        with constant(self.discriminator):
            logits = self.discriminator(target.features.deep)
        return F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))

    def discriminator_loss(self, source: View, target: View) -> Tensor:
        """Eq. 1 as D sees it: halved binary cross-entropy, source 0, target 1."""
        on_source = self.discriminator(source.features.deep.detach())
        on_target = self.discriminator(target.features.deep.detach())
        return 0.5 * (
            F.binary_cross_entropy_with_logits(on_source, torch.zeros_like(on_source))
            + F.binary_cross_entropy_with_logits(on_target, torch.ones_like(on_target))
        )

    def critic_loss(self, *views: View) -> Tensor:
        """L_cri = mean(−V) over all locations (Eq. 5): moves T_Q only."""
        with constant(self.critic):
            values = [
                self.critic(view.features.deep.detach(), view.transferability) for view in views
            ]
        return -torch.cat([v.flatten() for v in values]).mean()

    def regression_loss(self, *judged: tuple[View, Tensor]) -> tuple[Tensor, Tensor]:
        """L_reg = mean((V − R)²) over the rewarded locations (Eq. 6): moves T_C only.

        Each argument is a view and the labels [B, h, w] its rewards are judged by (Eq. 2–4).
        Returns the loss and the mean reward.
        """
        squares, rewards, counts = [], [], []
        for view, labels in judged:
            assert view.gated is not None and view.transferability is not None
            grid = image_size(view.features.deep)
            reward, valid = ops.transfer_reward(
                at_grid(view.gated, grid).detach(), at_grid(view.plain, grid).detach(), labels
            )
            value = self.critic(view.features.deep.detach(), view.transferability.detach())
            squares.append(((value - reward).square() * valid).sum())
            rewards.append((reward * valid).sum())
            counts.append(valid.sum())
        count = torch.stack(counts).sum().clamp(min=1)
        return torch.stack(squares).sum() / count, torch.stack(rewards).sum() / count

    def divergence_loss(
        self, source: View, labels: Tensor, target: View, pseudo: PseudoLabels
    ) -> Tensor:
        """L_div (Eq. 11–13): symmetric divergence of the class centroids of both domains."""
        f_s, f_t = source.features.deep, target.features.deep
        if self.centroids is not None:
            return self.centroids.divergence(
                f_s, labels, f_t, pseudo.soft, normalise=self.config.normalise
            )
        return ops.symmetric_soft_divergence(
            f_s, labels, f_t, pseudo.soft, normalise=self.config.normalise
        )

    def losses(self, source: Batch, target: Batch, pseudo: PseudoLabels, *, track: bool) -> Losses:
        """Every loss of Eq. 14 from one forward per image. `target.labels` is not read."""
        s = self.look(source.images, source=True, track=track)
        t = self.look(target.images, source=False, track=track)
        labels = nearest_labels(source.labels, image_size(s.features.deep))
        losses = self.segmentation_losses(s, source.labels, t, pseudo)
        if self.transfer:
            losses["discriminator"] = self.discriminator_loss(s, t)
            losses["adversarial"] = self.adversarial_loss(t)
            losses["critic"] = self.critic_loss(s, t)
            losses["regression"], losses["reward"] = self.regression_loss(
                (s, labels), (t, pseudo.hard)
            )
            losses["transferability"] = mean_transferability(s, t)
        if self.aligns:
            losses["divergence"] = self.divergence_loss(s, labels, t, pseudo)
        return losses

    def objective(self, losses: Losses) -> Tensor:
        """Eq. 14, with D's own objective beside it (no other term reaches D)."""
        weights = self.config.weights
        total = losses["source"] + weights.target * losses["target"]
        if self.transfer:
            total = (
                total
                + losses["discriminator"]
                + weights.regression * losses["regression"]
                + weights.critic * losses["critic"]
                + weights.adversarial * losses["adversarial"]
            )
        if self.aligns:
            total = total + weights.divergence * losses["divergence"]
        return total


def mean_transferability(*views: View) -> Tensor:
    """The mean of P over all locations, to be watched: where it is 0 the gate does nothing."""
    gates = [v.transferability for v in views if v.transferability is not None]
    return torch.cat([gate.detach().flatten() for gate in gates]).mean()


def at_grid(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits on the grid of the features: themselves for DeepLab, resized for FCN-8s."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
