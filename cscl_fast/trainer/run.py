"""A run from the first check to the last table: source-only training, then CSCL."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from cscl_fast import ops
from cscl_fast.cli import to_yaml
from cscl_fast.config import Config
from cscl_fast.data import DataError
from cscl_fast.models import WeightAverage, build_model, freeze_affine, reestimate_statistics
from cscl_fast.models.weights import load_weights
from cscl_fast.trained import to_plain
from cscl_fast.trainer import checkpoint
from cscl_fast.trainer.evaluation import Score, evaluate, table
from cscl_fast.trainer.interrupt import StopBetweenSteps
from cscl_fast.trainer.journal import Bar, Journal
from cscl_fast.trainer.labelling import Labeller, evaluating, image_size
from cscl_fast.trainer.optimizers import Optimizers, model_optimizer, player_optimizer
from cscl_fast.trainer.players import Batch, Losses, Players
from cscl_fast.trainer.records import Records
from cscl_fast.trainer.schedules import SCHEDULES, modules_of
from cscl_fast.trainer.start import affine_for, choose_device, how_to_go_on, require_large_enough
from cscl_fast.trainer.world import World

SOURCE_ONLY = "source only"
TARGET_STATISTICS = "source only, target statistics"
ADAPTED = "CSCL"
AVERAGED = "CSCL, averaged weights"


class DivergedError(RuntimeError):
    """A loss is not finite; the message names the step, the term and the files of the batch."""


@dataclass
class Place:
    """Where a run is: what a checkpoint has to remember besides weights."""

    phase: str = "warmup"
    step: int = 0  # within the phase
    best: float = -1.0
    scores: dict[str, list[float]] = field(default_factory=dict)  # row → IoU by class, percent


class Run:
    """One run of one configuration in one folder, which is not touched before the run begins."""

    def __init__(self, config: Config, console: Console | None = None) -> None:
        self.config = config
        self.console = console or Console()
        self.folder = config.run_folder
        self.device = choose_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.world = World(config, self.device)
        self.classes = self.world.classes
        self.model = build_model(config.model.architecture, self.classes.num_classes)
        if config.model.init != "none" and config.resume is None:
            self.say(str(load_weights(self.model, config.model.init)))
        if config.model.batchnorm_affine == "auto":
            config.model.batchnorm_affine = affine_for(config.model.init)
        if config.model.batchnorm_affine == "frozen":
            freeze_affine(self.model)
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.records = Records(self.folder, self.classes)
        self.place = Place()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    # ---------------------------------------------------------------------------------- the run

    def __call__(self) -> dict[str, Score]:
        """Train, evaluate, record. Returns the score of every row of the final table."""
        config = self.config
        self.world.check(self.say)
        if not config.source_only and "transfer" not in config.without:
            require_large_enough(self.world, self.model, config.adaptation)
        state = self._begin()
        source_state: dict[str, Tensor] | None = None
        if self.place.phase == "warmup":
            self.warm_up(state)
            self._score(SOURCE_ONLY)
            source_state = _copy(self.model.state_dict())
            checkpoint.save(self._file("source"), self._content())
            if config.adaptation.bn_batches > 0:
                batches = self.world.target_statistics(config.adaptation.bn_batches)
                reestimate_statistics(self.model, batches)
            self._score(TARGET_STATISTICS)
            self.place.phase, self.place.step = "adaptation", 0
            state = None
        if not config.source_only:
            self.adapt(state)
        return self._finish(source_state)

    def warm_up(self, state: dict[str, Any] | None) -> None:
        """Source-only training: cross-entropy at image size."""
        config = self.config.warmup
        if config.steps == 0:
            return
        stream = self.world.stream("source", config.batch_size)
        players = {
            "model": model_optimizer(self.model, self.config.optimizer, config.learning_rate)
        }
        optimizers = self._optimizers(players, config.steps)
        if state is not None:
            optimizers.load_state_dict(state["optimizers"])
            stream.seek(self.place.step * config.batch_size)
            checkpoint.set_random_state(state["random"])
        self.model.train()

        def content() -> dict[str, Any]:
            return {"optimizers": optimizers.state_dict()}

        with (
            self._stop_between_steps(content) as stop,
            Bar(SOURCE_ONLY, total=config.steps, done=self.place.step, console=self.console) as bar,
        ):
            while self.place.step < config.steps:
                optimizers.set_progress(self.place.step)
                batch = stream.next()
                losses = {
                    "source": ops.upsampled_cross_entropy(self.model(batch.images), batch.labels)
                }
                self._guard(losses, batch)
                optimizers.zero_grad()
                losses["source"].backward()
                optimizers.step()
                self.place.step += 1
                self._log(losses, optimizers, bar)
                last = self.place.step == config.steps
                if last or self.place.step % self.config.save_every == 0:
                    checkpoint.save(self._file("last"), self._content(content()))
                stop.check()

    def adapt(self, state: dict[str, Any] | None) -> None:
        """CSCL: an epoch begins with new thresholds, then steps of the chosen schedule."""
        config = self.config.adaptation
        cscl = Players(self.model, config, self.config.without).to(self.device)
        average = WeightAverage(self.model, config.ema_decay)
        labeller = Labeller(
            self.model, average, config, self.classes.num_classes, selects=cscl.selects
        )
        source = self.world.stream("source", config.batch_size)
        target = self.world.stream("target", config.batch_size)
        optimizers = self._optimizers(self._players(cscl), config.epochs * config.steps)
        if state is not None:
            cscl.load_state_dict(state["cscl"])
            average.load_state_dict(state["average"])
            labeller.load_state_dict(state["labeller"])
            optimizers.load_state_dict(state["optimizers"])
            source.seek(self.place.step * config.batch_size)
            target.seek(self.place.step * config.batch_size)
            checkpoint.set_random_state(state["random"])  # making the players drew from it

        def content() -> dict[str, Any]:
            return {
                "cscl": cscl.state_dict(),
                "average": average.state_dict(),
                "labeller": labeller.state_dict(),
                "optimizers": optimizers.state_dict(),
            }

        total = config.epochs * config.steps
        step = SCHEDULES[config.schedule]
        every = self.config.evaluate_every or config.steps
        cscl.train()
        with (
            self._stop_between_steps(content) as stop,
            Bar(ADAPTED, total=total, done=self.place.step, console=self.console) as bar,
        ):
            while self.place.step < total:
                if self.place.step % config.steps == 0:
                    epoch = self.place.step // config.steps
                    thresholds = labeller.begin_epoch(epoch, self.world.target_pass())
                    self.records.thresholds(epoch, self.place.step, labeller.portion, thresholds)
                optimizers.set_progress(self.place.step)
                batch_s, batch_t = source.next(), target.next()
                pseudo = labeller.label(batch_t.clean, self._feature_grid(batch_t))
                losses = step(
                    cscl,
                    optimizers,
                    batch_s,
                    batch_t,
                    pseudo,
                    partial(self._guard, source=batch_s, target=batch_t),
                )
                average.update(self.model)
                self.place.step += 1
                losses["kept"] = pseudo.kept
                losses["total"] = cscl.objective(losses)
                self._log(losses, optimizers, bar)
                if self.place.step % every == 0 or self.place.step == total:
                    self._score_adapted(average, content)
                if self.place.step % self.config.save_every == 0 or (
                    self.place.step % config.steps == 0
                ):
                    checkpoint.save(self._file("last"), self._content(content()))
                stop.check()

    # ------------------------------------------------------------------------------- its parts

    def _players(self, cscl: Players) -> dict[str, torch.optim.Optimizer]:
        config = self.config.adaptation
        modules = modules_of(cscl)
        players = {
            "model": model_optimizer(self.model, self.config.optimizer, config.learning_rate)
        }
        if cscl.transfer:
            rates = {
                "discriminator": config.discriminator_rate,
                "quantizer": config.transfer_rate,
                "critic": config.transfer_rate,
            }
            players |= {name: player_optimizer(modules[name], rate) for name, rate in rates.items()}
        return players

    def _optimizers(self, players: dict[str, torch.optim.Optimizer], steps: int) -> Optimizers:
        config = self.config.optimizer
        return Optimizers(players, steps=steps, power=config.power, clip_norm=config.clip_norm)

    def _feature_grid(self, batch: Batch) -> tuple[int, int] | None:
        """(h, w) of F where it is coarser than the logits (FCN-8s); None where they agree."""
        if self.config.model.architecture != "fcn8s-vgg16":
            return None
        if not hasattr(self, "_grids"):
            self._grids: dict[tuple[int, ...], tuple[int, int]] = {}
        shape = tuple(batch.clean.shape[-2:])
        if shape not in self._grids:
            with evaluating(self.model):  # no dropout: it would draw random numbers
                self._grids[shape] = image_size(self.model.encode(batch.clean[:1]).deep)
        return self._grids[shape]

    def _guard(self, losses: Losses, source: Batch, target: Batch | None = None) -> None:
        batches = [source] if target is None else [source, target]
        for name, value in losses.items():
            if not math.isfinite(float(value.detach())):
                files = "\n  ".join(path for batch in batches for path in batch.paths)
                raise DivergedError(
                    f"{self.place.phase} step {self.place.step + 1}: the loss '{name}' is "
                    f"{float(value.detach())}; it updated no weight. "
                    f"Files of the batch:\n  {files}"
                )

    def _log(self, losses: Losses, optimizers: Optimizers, bar: Bar) -> None:
        numbers = {name: float(value.detach()) for name, value in losses.items()}
        numbers.setdefault("total", numbers["source"])
        shown = {"loss": numbers["total"]}
        if "kept" in numbers:
            shown["kept"] = numbers["kept"]
        bar.advance(**shown)
        if self.place.step % self.config.log_every == 0 or self.place.step == 1:
            steps = self.config.adaptation.steps
            rate = optimizers.players["model"].param_groups[0]["lr"]
            self.journal.log(
                phase=self.place.phase,
                epoch=(self.place.step - 1) // steps if self.place.phase == "adaptation" else 0,
                step=self.place.step,
                learning_rate=rate,
                speed=bar.speed,
                **numbers,
            )

    def _score(self, row: str, model: torch.nn.Module | None = None) -> Score:
        score = evaluate(model or self.model, self.world.evaluation_batches(), self.classes)
        self.place.scores[row] = score.iou.tolist()
        self.records.score(row, self.place.phase, self.place.step, score)
        self.say(f"{self.place.phase} step {self.place.step}: {row}: mIoU {score.mean:.1f}")
        return score

    def _score_adapted(self, average: WeightAverage, content: Any) -> None:
        """Score trained and averaged weights; keep the checkpoint of the better best."""
        trained = self._score(ADAPTED)
        averaged = self._score(AVERAGED, average.module)
        best = max(trained.mean, averaged.mean)
        if best > self.place.best:
            self.place.best = best
            model = self.model if trained.mean >= averaged.mean else average.module
            checkpoint.save(self._file("best"), self._content(model=model))

    # -------------------------------------------------------------------- checkpoints and the end

    def _file(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.pt"

    def _content(
        self, more: dict[str, Any] | None = None, model: torch.nn.Module | None = None
    ) -> dict[str, Any]:
        """What every checkpoint holds: a model that evaluates, its classes, and the place."""
        return {
            "architecture": self.config.model.architecture,
            "num_classes": self.classes.num_classes,
            "batchnorm_affine": self.config.model.batchnorm_affine,
            "classes": {
                "names": list(self.classes.names),
                "colors": [list(color) for color in self.classes.colors],
            },
            "data": to_plain(self.world.evaluation.config),
            "model": (model or self.model).state_dict(),
            "place": vars(self.place).copy(),
            "random": checkpoint.random_state(),
            **(more or {}),
        }

    def _stop_between_steps(self, content: Callable[[], dict[str, Any]]) -> StopBetweenSteps:
        return StopBetweenSteps(
            save=lambda: checkpoint.save(self._file("last"), self._content(content())),
            message=lambda: (
                f"Interrupted at {self.place.phase} step {self.place.step}; everything is saved. "
                f"Go on with:\n  {how_to_go_on(self.folder)}"
            ),
        )

    def _begin(self) -> dict[str, Any] | None:
        """Make the run folder or, to go on, load its `last.pt` and return it."""
        state = None
        if self.config.resume is None:
            for name in ("source", "last", "best"):  # of a run that is overwritten
                self._file(name).unlink(missing_ok=True)
            self.journal = Journal(self.folder)
            self.records.start_again()
        else:
            state = self._resume()
        (self.folder / "config.yaml").write_text(to_yaml(self.config), encoding="utf-8")
        return state

    def _resume(self) -> dict[str, Any]:
        """Load `last.pt`, and drop from the tables what was written after it."""
        state = checkpoint.load(self._file("last"))
        expected = (self.config.model.architecture, self.classes.num_classes)
        found = (state["architecture"], state["num_classes"])
        if found != expected:
            raise checkpoint.CheckpointError(
                f"{self._file('last')} holds a {found[0]} with {found[1]} classes; this run is a "
                f"{expected[0]} with {expected[1]}"
            )
        self.model.load_state_dict(state["model"])
        self.place = Place(**state["place"])
        done = {"warmup": 10**12 if self.place.phase == "adaptation" else self.place.step}
        if self.place.phase == "adaptation":
            done["adaptation"] = self.place.step
        self.journal = Journal(self.folder, after=done)
        self.records.cut(done)
        self.say(f"resuming {self.folder}: {self.place.phase} step {self.place.step}")
        return state

    def _finish(self, source_state: dict[str, Tensor] | None) -> dict[str, Score]:
        scores = {
            row: Score(self.classes, torch.tensor(iou, dtype=torch.float64))
            for row, iou in self.place.scores.items()
        }
        text = table(scores)
        (self.folder / "results.txt").write_text(text + "\n")
        (self.folder / "results.md").write_text(table(scores, markdown=True) + "\n")
        self.records.curves()
        if self.config.panels and not self.config.source_only:
            self._panels(source_state)
        self.say("\nIoU in percent on the evaluation images of the target:\n" + text)
        if SOURCE_ONLY in scores and ADAPTED in scores:
            before, after = scores[SOURCE_ONLY].mean, scores[ADAPTED].mean
            self.say(
                f"\nmIoU {before:.1f} (source only) -> {after:.1f} (CSCL): {after - before:+.1f}"
            )
        self.say(f"Run folder: {self.folder}")
        return scores

    def _panels(self, source_state: dict[str, Tensor] | None) -> None:
        from cscl_fast.trainer.panels import draw_panels

        if source_state is None:
            source_state = checkpoint.load(self._file("source"))["model"]
        config = self.config.adaptation
        draw_panels(
            self.folder / "panels",
            self.world,
            self.model,
            source_state,
            self.config.panels,
            thresholds=self.records.last_thresholds(self.device),
            gamma=config.gamma,
        )


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


__all__ = ["ADAPTED", "AVERAGED", "SOURCE_ONLY", "TARGET_STATISTICS", "DataError", "Run"]
