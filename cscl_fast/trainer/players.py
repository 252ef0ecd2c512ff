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

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

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
from cscl_fast.models.batchnorm import frozen_statistics, running_statistics
from cscl_fast.models.segmentation_model import Features
from cscl_fast.trainer.centroids import (
    RunningCentroids,
    centroid_distances,
    centroids_of_all,
    divergence_of_centroids,
)
from cscl_fast.trainer.grids import at_grid, discriminator_strides, image_size, nearest_labels
from cscl_fast.trainer.labelling import PseudoLabels, evaluating
from cscl_fast.trainer.processes import Processes
from cscl_fast.trainer.update import Losses, Shares, shares_of

# Means over the source's images and over the target's, of which D's loss consists.
HALVES = ("discriminator, source", "discriminator, target")


@dataclass
class Batch:
    """Images of one domain, on the training device."""

    images: Tensor  # [B, 3, H, W] float32, normalised, augmented
    clean: Tensor  # [B, 3, H, W] float32, the same geometry, no photometric augmentation
    labels: Tensor  # [B, H, W] int64, 255 = ignored; never read for the target
    paths: list[str] = field(default_factory=list)  # files of the images, for messages


@dataclass
class Pair:
    """What one joint forward takes: a source and a target batch, and the target's labels."""

    source: Batch
    target: Batch
    pseudo: PseudoLabels
    shares: Shares | None = None  # of the whole step's means (`Players.counts`); None: all of it

    @property
    def paths(self) -> list[str]:
        return [*self.source.paths, *self.target.paths]


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


class Players(nn.Module):
    """The players of the method and their losses.

    Args:
        model: E and C.
        config: the section `adaptation` of the configuration.
        without: parts left out, as in the paper's ablations.
        processes: of a run in several processes.
        of_all: whether L_div aligns the class centroids of all of them (`global_centroids`).
    """

    def __init__(
        self,
        model: SegmentationModel,
        config: AdaptationConfig,
        without: tuple[Part, ...] = (),
        processes: Processes | None = None,
        *,
        of_all: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.processes = processes or Processes.alone()
        self.of_all = of_all and self.processes.several
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
        self.grids: dict[tuple[int, int], tuple[int, int]] = {}  # (H, W) of images → (h, w) of F
        self.watches_centroids = False
        self.watched: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # of `watch`
        self.centroids = (
            RunningCentroids(
                config.centroid_momentum,
                model.num_classes,
                channels,
                self.processes,
                of_all=self.of_all,
            )
            if config.centroid_momentum > 0
            else None
        )

    # ------------------------------------------------------------------ the forward of one domain

    def look(self, images: Tensor, *, source: bool, track: bool) -> View:
        """E, the gate and C on the images [B, 3, H, W] of one domain.

        `track`: whether this forward may move the running statistics of the batch normalisations;
        those of the source never do with bn="per-domain".
        """
        with self._statistics(track and not (source and self.config.bn == "per-domain")):
            features = self.model.encode(images)
            self.grids[image_size(images)] = image_size(features.deep)
            if not self.transfer:
                return View(features, self.model.classify(features), None, None)
            # D only tells where the domains can be told apart: its probability is a constant here,
            # so that L_seg and L_cri reach T_Q and go no further.
            with torch.no_grad():
                probability = torch.sigmoid(self.discriminator(features.deep))
            gate = self.quantizer(probability, size=features.deep.shape[-2:])
            plain, gated = self.model.classify_both(features, gate)
        return View(features, plain, gated, gate)

    def _statistics(self, may_track: bool) -> AbstractContextManager[None]:
        """By which statistics batch normalisation normalises inside, and which it moves."""
        if self.config.bn == "frozen":
            return running_statistics(self.model)
        return nullcontext() if may_track else frozen_statistics(self.model)

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
            logits = self.discriminator(target.features.deep).float()
        return F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))

    def discriminator_loss(
        self, source: View, target: View, shares: Shares | None = None
    ) -> Tensor:
        """Eq. 1 as D sees it: halved binary cross-entropy, source 0, target 1.

        A part of a step may have more of one domain than of the other: with its `shares` its two
        halves weigh what they do in the whole step.
        """
        on_source = self.discriminator(source.features.deep.detach()).float()
        on_target = self.discriminator(target.features.deep.detach()).float()
        halves = (
            F.binary_cross_entropy_with_logits(on_source, torch.zeros_like(on_source)),
            F.binary_cross_entropy_with_logits(on_target, torch.ones_like(on_target)),
        )
        if shares is None:
            return 0.5 * (halves[0] + halves[1])
        of_source, of_target = (shares[half] for half in HALVES)
        return (of_source * halves[0] + of_target * halves[1]) / (of_source + of_target)

    def critic_loss(self, *views: View) -> Tensor:
        """L_cri = mean(−V) over all locations (Eq. 5): moves T_Q only."""
        with constant(self.critic):
            values = [
                self.critic(view.features.deep.detach(), view.transferability) for view in views
            ]
        return -torch.cat([v.float().flatten() for v in values]).mean()

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
            squares.append(((value.float() - reward).square() * valid).sum())
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
        if self.of_all:
            k = self.model.num_classes
            centroids_s, mass_s = centroids_of_all(self.processes, f_s, labels, k)
            centroids_t, mass_t = centroids_of_all(self.processes, f_t, pseudo.soft, k)
            present = (mass_s > 0) & (mass_t > 0)
            return divergence_of_centroids(
                centroids_s, centroids_t, present, normalise=self.config.normalise
            )
        return ops.symmetric_soft_divergence(
            f_s, labels, f_t, pseudo.soft, normalise=self.config.normalise
        )

    def losses(
        self,
        source: Batch,
        target: Batch,
        pseudo: PseudoLabels,
        *,
        track: bool,
        shares: Shares | None = None,
    ) -> Losses:
        """Every loss of Eq. 14 from one forward per image. `target.labels` is not read."""
        s = self.look(source.images, source=True, track=track)
        t = self.look(target.images, source=False, track=track)
        labels = nearest_labels(source.labels, image_size(s.features.deep))
        losses = self.segmentation_losses(s, source.labels, t, pseudo)
        if self.transfer:
            losses["discriminator"] = self.discriminator_loss(s, t, shares)
            losses["adversarial"] = self.adversarial_loss(t)
            losses["critic"] = self.critic_loss(s, t)
            losses["regression"], losses["reward"] = self.regression_loss(
                (s, labels), (t, pseudo.hard)
            )
            losses["transferability"] = mean_transferability(s, t)
        if self.aligns:
            losses["divergence"] = self.divergence_loss(s, labels, t, pseudo)
        self.watch(s, labels, t, pseudo)
        return losses

    @property
    def terms(self) -> dict[str, float]:
        """The losses of Eq. 14 and their weights, and D's own, which reaches nothing but D."""
        weights = self.config.weights
        return {
            "source": 1.0,
            "target": weights.target,
            "discriminator": 1.0,
            "regression": weights.regression,
            "critic": weights.critic,
            "adversarial": weights.adversarial,
            "divergence": weights.divergence,
        }

    def objective(self, losses: Losses, shares: Shares | None = None) -> Tensor:
        """Eq. 14: the weighted sum of those of its terms that are among `losses`.

        `shares`: what part of the whole step's means the losses are; None: they are all of it.
        """
        terms = [
            weight * losses[name] * (1 if shares is None else shares[name])
            for name, weight in self.terms.items()
            if name in losses
        ]
        return torch.stack(terms).sum()

    # ----------------------------------------------------- several batches as the parts of one step

    def counts(self, source: Batch, target: Batch, pseudo: PseudoLabels) -> dict[str, Tensor]:
        """What each loss and watched value is the mean over, as scalars: pixels, locations, images.

        A part of a step that is taken in several counts by its share of their sum: then the means
        are those of all parts in one batch. Except L_div, which is not a mean over pixels: it
        becomes the mean of the parts' divergences.
        """
        device = source.images.device
        self.grids.setdefault(image_size(target.images), image_size(pseudo.hard))
        grid = self.grid(source.images)
        on_source = nearest_labels(source.labels, grid)
        rewarded = (on_source != 255).sum() + (pseudo.hard != 255).sum()
        locations = torch.tensor(on_source.numel() + pseudo.hard.numel(), device=device)
        of_source, of_target = (
            torch.tensor(len(batch.images), device=device) for batch in (source, target)
        )
        return {
            "source": (source.labels != 255).sum(),
            "target": pseudo.count(),
            HALVES[0]: of_source,
            HALVES[1]: of_target,
            "regression": rewarded,
            "reward": rewarded,
            "critic": locations,
            "transferability": locations,
            "adversarial": of_target,
            "divergence": torch.ones((), device=device),
        }

    def share(self, pairs: Sequence[Pair]) -> None:
        """Give each part of a step its share in every mean over all parts, of all processes."""
        counts = [self.counts(pair.source, pair.target, pair.pseudo) for pair in pairs]
        for pair, shares in zip(pairs, shares_of(counts, self.processes), strict=True):
            shares["discriminator"] = (shares[HALVES[0]] + shares[HALVES[1]]) / 2
            pair.shares = shares

    def grid(self, images: Tensor) -> tuple[int, int]:
        """(h, w) of F of images [B, 3, H, W]; a size that no forward had so far costs one."""
        size = image_size(images)
        if size not in self.grids:
            # As it is whatever is around it; with --compile one image is not worth a compilation.
            plainly = torch.autocast(images.device.type, enabled=False)
            with evaluating(self.model), plainly, torch.compiler.set_stance("force_eager"):
                self.grids[size] = image_size(self.model.encode(images[:1]).deep)
        return self.grids[size]

    def settle(self) -> None:
        """At the end of a step that updated the model, of all processes: the running centroids."""
        if self.centroids is not None and self.aligns:
            self.centroids.settle()

    # -------------------------------------------------------------------------- for those who watch

    def watch(self, source: View, labels: Tensor, target: View, pseudo: PseudoLabels) -> None:
        """Keep the class centroids (Eq. 11–13) of this step, if `watches_centroids` asks for it."""
        if not self.watches_centroids:
            return
        with torch.no_grad():
            k = self.model.num_classes
            self.watched = (
                *centroids_of_all(self.processes, source.features.deep, labels, k),
                *centroids_of_all(self.processes, target.features.deep, pseudo.soft, k),
            )

    def centroid_distances(self) -> Tensor:
        """[K, K] float32, nats: the divergence of L_div between class i of the source (rows) and
        class j of the target (columns), from the centroids that `watch` kept; nan where the last
        step had no such class."""
        k = self.model.num_classes
        if self.watched is None:
            return torch.full((k, k), torch.nan)
        return centroid_distances(*self.watched, normalise=self.config.normalise)


def mean_transferability(*views: View) -> Tensor:
    """The mean of P over all locations, to be watched: where it is 0 the gate does nothing."""
    gates = [v.transferability for v in views if v.transferability is not None]
    return torch.cat([gate.detach().flatten() for gate in gates]).mean()
