"""CSCL as an object for any training loop; `source_only.py` has the training before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from cscl_fast.config import Config
from cscl_fast.models import SegmentationModel, WeightAverage
from cscl_fast.trainer.batches import Source, Target, as_images, as_parts
from cscl_fast.trainer.kept import KeptShares
from cscl_fast.trainer.labelling import Labeller, PseudoLabels
from cscl_fast.trainer.optimizers import Optimizers, model_optimizer, player_optimizer
from cscl_fast.trainer.players import Batch, Pair, Players
from cscl_fast.trainer.precision import Precision
from cscl_fast.trainer.prepare import checked, compile_network, optimizers, prepare
from cscl_fast.trainer.processes import (
    Processes,
    Shared,
    running_averages,
)
from cscl_fast.trainer.schedules import SCHEDULES, modules_of
from cscl_fast.trainer.source_only import SourceOnly
from cscl_fast.trainer.stopwatch import Stopwatch
from cscl_fast.trainer.update import Arriving, DivergedError, Remembered, Update

__all__ = ["CSCL", "DivergedError", "SourceOnly"]


class CSCL:
    """Critical semantic-consistent learning of one network, a step at a time.

        model = build_model("deeplabv2-resnet101", num_classes=19)  # or an EncoderWithHead
        cscl = CSCL(model.to("cuda"), Config(precision="bfloat16"))
        for epoch in range(4):
            cscl.begin_epoch(all_target_images)  # batches of them: Algorithm 1
            for images, labels, target_images in loader:
                losses = cscl.step((images, labels), target_images)

    The model is trained in place; `cscl.average.module` is the exponential average of its weights.
    Images are normalised as the model wants them, [B, 3, H, W] float32; labels [B, H, W] int64,
    255 where there is none. With a `Batch` the label network sees images of the same geometry
    without photometric augmentation (`clean`); plain tensors it sees as they are.

    Of `config` count the sections `adaptation` (but `batch_size` and `bn_batches`) and `optimizer`,
    and `without`, `precision`, `compile`, `accumulate`, `tensorboard`, `sync_batchnorm`,
    `global_centroids` and `model.activation_checkpointing`; device and weights are the model's.
    The learning rates decay to 0 over `adaptation.epochs * adaptation.steps`. The model is set to
    training mode once, here; layers that are set to evaluation mode afterwards stay in it.

    With `accumulate` above 1 a step takes lists of so many micro-batches. Their gradients and
    losses are those of one batch with all the images, each mean being over the pixels of all of
    them, except that batch normalisation normalises each micro-batch by itself (unless
    `adaptation.bn` is frozen) and that L_div is the mean of the micro-batches' divergences.

    A step that comes to nothing, because it is skipped (float16) or because `DivergedError` or
    anything else was raised before the model's update, leaves no trace but in its count: weights,
    optimizers, running statistics, running centroids, averaged weights and the histograms of
    online thresholds are as before. In the alternating schedule the players before the model keep
    what they learned; each of them is skipped by itself.

    Args:
        model: E and C; on its device already, its weights loaded, frozen what is to stay frozen.
        config: None: the paper's settings, `Config()`.
        stopwatch: counts the parts "labels", "losses", "backward", "optimizer", "thresholds".
        processes: of a run in several processes, each of which gives its own batches.

    Raises:
        ConfigError: a value of `config` cannot be; the message names the key.
    """

    def __init__(
        self,
        model: SegmentationModel,
        config: Config | None = None,
        *,
        stopwatch: Stopwatch | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.config = config = checked(config)
        self.device = next(model.parameters()).device
        self.stopwatch = stopwatch or Stopwatch()
        self.processes = processes or Processes.alone()
        self.precision = Precision(config.precision, self.device)
        prepare(model, config, self.processes)
        self.players = Players(
            model,
            config.adaptation,
            config.without,
            self.processes,
            of_all=config.global_centroids,
        )
        self.players.to(self.device).train()
        self.players.watches_centroids = config.tensorboard
        self.average = WeightAverage(model, config.adaptation.ema_decay)
        self.labeller = Labeller(
            model,
            self.average,
            config.adaptation,
            model.num_classes,
            selects=self.players.selects,
            autocast=self.precision.autocast,
            processes=self.processes,
        )
        compile_network(self.labeller.network, config)
        self.optimizers = self._make_optimizers()
        self.schedule = SCHEDULES[config.adaptation.schedule]
        self.shared = self._make_shared()
        self.statistics = running_averages(model)
        self.steps_done = 0
        self.epochs_begun = 0
        self._before = Remembered(self.players)
        self._kept = KeptShares(model.num_classes, self.device, self.processes)

    def _make_optimizers(self) -> Optimizers:
        config = self.config.adaptation
        rates = {
            "discriminator": config.discriminator_rate,
            "quantizer": config.transfer_rate,
            "critic": config.transfer_rate,
        }
        kind = self.config.optimizer.implementation
        modules = modules_of(self.players)
        players = {
            "model": model_optimizer(
                self.players.model, self.config.optimizer, config.learning_rate
            )
        }
        if self.players.transfer:
            players |= {n: player_optimizer(modules[n], rate, kind) for n, rate in rates.items()}
        return optimizers(players, self.config, config.epochs * config.steps)

    def _make_shared(self) -> dict[str | None, Shared]:
        """What adds up the gradients of each update: of all players, or of one."""
        modules = modules_of(self.players)
        learning = {name: modules[name] for name in self.optimizers.players}
        if self.config.adaptation.schedule == "joint":
            return {None: Shared(self.processes, *learning.values())}
        return {name: Shared(self.processes, module) for name, module in learning.items()}

    @property
    def model(self) -> SegmentationModel:
        """The network that is trained."""
        return self.players.model

    @property
    def skipped(self) -> int:
        """Optimizer steps skipped so far because of float16 values that were not finite."""
        return self.precision.skipped

    def begin_epoch(self, target_images: Iterable[Tensor], epoch: int | None = None) -> Tensor:
        """Algorithm 1: thresholds δ [K] from the label network's view of the target images.

        A snapshot of the model becomes the label network, if that is how labels are given.

        Args:
            target_images: batches [B, 3, H, W], best of the whole target set, not augmented.
            epoch: S_A grows with it; None: the number of calls before this one.

        Raises:
            TypeError, ValueError: `target_images` holds something else than images, or nothing.
        """
        epoch = self.epochs_begun if epoch is None else epoch
        with self.stopwatch("thresholds"):
            images = as_images(target_images, "target_images", self.device)
            thresholds = self.labeller.begin_epoch(epoch, images)
        self.epochs_begun = epoch + 1
        return thresholds

    def step(
        self, source: Source | Sequence[Source], target: Target | Sequence[Target]
    ) -> dict[str, float]:
        """One step of the chosen schedule on a source and a target batch.

        Returns:
            The losses, unweighted, and `total`, their weighted sum (Eq. 14); `kept`, the share of
            the target's locations with a pseudo-label; `reward` and `transferability`, means of R
            and P; `learning_rate` of the encoder; `skipped`, the optimizer steps skipped so far.

        Raises:
            DivergedError: a loss or a gradient is not finite; nothing was updated with it.
            ValueError: the wrong number of micro-batches, images or labels of another type or
                shape, or `begin_epoch` was never called.
            TypeError: source or target is neither a `Batch` nor tensors.
        """
        if self.epochs_begun == 0:
            raise ValueError("call begin_epoch(target_images) first: there are no thresholds yet")
        count = self.config.accumulate
        sources = as_parts(source, "source", count, self.device)
        targets = as_parts(target, "target", count, self.device)
        self.optimizers.set_progress(self.steps_done)
        if not self.model.training:
            self.model.train()
        self._before.save()
        # Algorithm 2, line 3: pseudo-labels by Eq. 10, from the label network.
        with self.stopwatch("labels"):
            pseudo = self.labeller.label_parts([batch.clean for batch in targets])
        try:
            with self.stopwatch("labels"):
                counted = self._kept.count([p.hard for p in pseudo])
                kept = Arriving(counted)
                pairs = self._pairs(sources, targets, pseudo)
            update = Update(
                pairs,
                self.players.objective,
                self.optimizers,
                self.precision,
                self.stopwatch,
                self.processes,
                self.shared,
            )
            # Lines 4–9: D, T_C, T_Q, and E with C, at once or one after the other.
            self.schedule(self.players, update)
        except BaseException as error:
            if not self.processes.several or isinstance(error, DivergedError):  # as in all of them
                self._undo(pseudo)
            raise
        self.steps_done += 1
        with self.stopwatch("optimizer"):
            if "model" in update.updated:
                self.processes.average_(self.statistics)
                self.players.settle()
                self.average.update(self.model)
                self._kept.add(counted)
            else:
                self._undo(pseudo)
        return self._report(update.values, kept.tolist())

    def _pairs(
        self, sources: Sequence[Batch], targets: Sequence[Batch], pseudo: Sequence[PseudoLabels]
    ) -> list[Pair]:
        """The parts of a step, each with its share of every mean, if it is not all of it."""
        pairs = [Pair(s, t, p) for s, t, p in zip(sources, targets, pseudo, strict=True)]
        if len(pairs) > 1 or self.processes.several:
            self.players.share(pairs)
        return pairs

    def _undo(self, pseudo: Sequence[PseudoLabels]) -> None:
        """Take back what the forwards of a step moved."""
        self._before.restore()
        self.labeller.forget(pseudo)

    def _report(self, losses: dict[str, float], kept: list[int]) -> dict[str, float]:
        *by_class, locations = kept
        terms = self.players.terms
        return {
            **losses,
            "kept": sum(by_class) / max(locations, 1),
            "total": sum(terms[name] * losses[name] for name in terms if name in losses),
            "learning_rate": self.optimizers.players["model"].param_groups[0]["lr"],
            "skipped": float(self.skipped),
        }

    # -------------------------------------------------------------------------- for those who watch

    def kept_by_class(self) -> Tensor:
        """[K] float64: the share of the target's locations labelled k, since the last call.

        The shares add up to the mean of `kept` over those steps; 0 where there was none.
        """
        return self._kept.take()

    def centroid_distances(self) -> Tensor:
        """[K, K] float32, nats: how far class i of the source (rows) is from class j of the target.

        The divergence of L_div (Eq. 13) between the class centroids of the last step; nan where
        it had no such class. Steps keep their centroids if `config.tensorboard` is set or
        `cscl.players.watches_centroids` is made True; else everything is nan.
        """
        return self.players.centroid_distances()

    # ------------------------------------------------------------------------------------ its state

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on but its batches and random generators."""
        return {
            "players": self.players.state_dict(),  # with the model
            "average": self.average.state_dict(),
            "labeller": self.labeller.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "precision": self.precision.state_dict(),
            "steps_done": self.steps_done,
            "epochs_begun": self.epochs_begun,
            "kept": self._kept.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.players.load_state_dict(state["players"])
        self.average.load_state_dict(state["average"])
        self.labeller.load_state_dict(state["labeller"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.precision.load_state_dict(state["precision"])
        self.steps_done = state["steps_done"]
        self.epochs_begun = state["epochs_begun"]
        self._kept.load_state_dict(state["kept"])
