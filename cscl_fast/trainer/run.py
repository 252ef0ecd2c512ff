"""A run from the first check to the last table: source-only training, then CSCL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console

from cscl_fast.config import Config
from cscl_fast.models import build_model, freeze_affine, reestimate_statistics
from cscl_fast.models.weights import load_weights
from cscl_fast.trainer import checkpoint
from cscl_fast.trainer.cscl import CSCL, SourceOnly
from cscl_fast.trainer.environment import deterministic, environment, write_environment
from cscl_fast.trainer.evaluation import Score, evaluate
from cscl_fast.trainer.finish import Adapted, finish
from cscl_fast.trainer.gap import GapMeter
from cscl_fast.trainer.interrupt import StopBetweenSteps
from cscl_fast.trainer.journal import COLUMNS
from cscl_fast.trainer.keeper import Keeper, Place, State
from cscl_fast.trainer.observers import Observer, Observers
from cscl_fast.trainer.optimizers import resolve
from cscl_fast.trainer.players import Batch
from cscl_fast.trainer.prepare import prepare
from cscl_fast.trainer.processes import Processes
from cscl_fast.trainer.progress import Bar
from cscl_fast.trainer.records import Records
from cscl_fast.trainer.rows import ADAPTED, AVERAGED, SOURCE_ONLY, TARGET_STATISTICS
from cscl_fast.trainer.start import affine_for, choose_device, how_to_go_on, require_large_enough
from cscl_fast.trainer.update import DivergedError
from cscl_fast.trainer.world import Stream, World


class Run:
    """One run of one configuration in one folder, which is not touched before the run begins."""

    def __init__(
        self,
        config: Config,
        console: Console | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.config = config
        self.processes = processes or Processes.alone()
        self.console = console or Console(quiet=not self.processes.is_main)
        self.folder = config.run_folder
        self.processes.how_to_go_on = how_to_go_on(self.folder, self.processes)
        self.device = choose_device(config.device, self.processes)
        resolve(config.optimizer.implementation, self.device)  # or refuse it now
        if config.threads:
            torch.set_num_threads(config.threads)
        checkpoint.seed_everything(config.seed)
        rank, count = self.processes.rank, self.processes.count
        self.world = World(config, self.device, rank=rank, count=count)
        self.classes = self.world.classes
        self.model = build_model(config.model.architecture, self.classes.num_classes)
        if config.model.init != "none" and config.resume is None:
            self.say(str(load_weights(self.model, config.model.init)))
        if config.model.batchnorm_affine == "auto":
            config.model.batchnorm_affine = affine_for(config.model.init)
        if config.model.batchnorm_affine == "frozen":
            freeze_affine(self.model)
        prepare(self.model.to(self.device), config, self.processes)
        self.records = Records(self.folder, self.classes)
        self.keeper = Keeper(config, self.world, self.model, self.records, self.processes)
        self.watch = self.keeper.timing.stopwatch
        self.observers = Observers(self._observers(), self.watch)
        self._draw_apart()

    def _observers(self) -> list[Observer]:
        if not self.processes.is_main:
            return []
        observers: list[Observer] = [self.records]
        if self.config.tensorboard:
            from cscl_fast.trainer.tensorboard import TensorBoard

            steps = self.config.warmup.steps
            observers.append(TensorBoard(self.folder, self.classes, steps))
        return observers

    @property
    def place(self) -> Place:
        return self.keeper.place

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    # ---------------------------------------------------------------------------------- the run

    def __call__(self) -> dict[str, Score]:
        """Train, evaluate, record. Returns the score of every row of the final table."""
        with deterministic(self.config.deterministic):
            return self._run()

    def _run(self) -> dict[str, Score]:
        config = self.config
        self.processes.main_does(lambda: self.world.check(self.say))
        if not config.source_only and "transfer" not in config.without:
            require_large_enough(self.world, self.model, config.adaptation)
        try:
            state = self._begin()
            if self.processes.is_main:
                entries = environment(self.device, self.processes.count)
                write_environment(self.folder, entries)
            if self.place.phase == "warmup":
                self.warm_up(state)
                state = None
                self._score_source_only()
                self.place.phase, self.place.step = "adaptation", 0
            adapted = None if config.source_only else self.adapt(state)
            del state
            if self.processes.is_main:
                self.keeper.timing.write(self.folder)
                finish(self.keeper, adapted, self.observers, self.say)
            self.processes.barrier()
            return self.keeper.scores()
        finally:
            self.observers.close()

    def warm_up(self, state: State | None) -> None:
        """Source-only training: cross-entropy at image size."""
        config = self.config.warmup
        self.keeper.timing.begin("warmup")
        if config.steps == 0:
            return
        stream = self.world.stream("source", config.batch_size)
        trainer = SourceOnly(
            self.model, self.config, stopwatch=self.watch, processes=self.processes
        )
        self._go_on(trainer, state, source=stream)

        def content() -> State:
            return {"trainer": trainer.state_dict(), **_positions(source=stream)}

        with self._stop_between_steps(content) as stop, self._bar(SOURCE_ONLY, config.steps) as bar:
            while self.place.step < config.steps:
                batches = self._take(stream)
                with self._naming_files():
                    losses = trainer.step(batches)
                self._step_done(losses, bar)
                if self._due(self.config.save_every) or self.place.step == config.steps:
                    self._save(content)
                stop.check()
        self._report_skipped(trainer)

    def adapt(self, state: State | None) -> Adapted:
        """CSCL: an epoch begins with new thresholds, then steps of the chosen schedule."""
        config = self.config.adaptation
        self.keeper.timing.begin("adaptation")
        cscl = CSCL(self.model, self.config, stopwatch=self.watch, processes=self.processes)
        source = self.world.stream("source", config.batch_size)
        target = self.world.stream("target", config.batch_size)
        self._go_on(cscl, state, source=source, target=target)

        def content() -> State:
            return {"trainer": cscl.state_dict(), **_positions(source=source, target=target)}

        total = config.epochs * config.steps
        evaluate_every = self.config.evaluate_every or config.steps
        measure = GapMeter(self.world) if self.config.gap_batches else None
        if self.place.step == 0:
            self._measure_gap(measure, cscl)
        with self._stop_between_steps(content) as stop, self._bar(ADAPTED, total) as bar:
            while self.place.step < total:
                if self._due(config.steps):
                    self._begin_epoch(cscl, bar)
                batches = self._take(source), self._take(target)
                with self._naming_files():
                    losses = cscl.step(*batches)
                self._step_done(losses, bar, cscl)
                if self._due(evaluate_every) or self.place.step == total:
                    self._score_adapted(cscl, bar)
                    self._measure_gap(measure, cscl)
                if self._due(self.config.save_every) or self._due(config.steps):
                    self._save(content)
                stop.check()
        self._report_skipped(cscl)
        return Adapted(cscl.players, cscl.labeller)

    # ------------------------------------------------------------------------------- its parts

    def _due(self, every: int) -> bool:
        """Whether it is time for what is done every so many steps."""
        return self.place.step % every == 0

    def _take(self, stream: Stream) -> list[Batch]:
        """The batches of one step: one, or `accumulate` micro-batches."""
        with self.watch("wait"):
            return [stream.next() for _ in range(self.config.accumulate)]

    @contextmanager
    def _naming_files(self) -> Iterator[None]:
        """Adds to a loss or gradient that is not finite the step and the files of the batch."""
        try:
            yield
        except DivergedError as error:
            files = "\n  ".join(error.paths)
            error.args = (
                f"{self.place.phase} step {self.place.step + 1}: {error}. "
                f"Files of the batch:\n  {files}",
            )
            raise

    @property
    def epoch(self) -> int:
        """The epoch of the last step, from 0."""
        if self.place.phase == "warmup":
            return 0
        return max(self.place.step - 1, 0) // max(self.config.adaptation.steps, 1)

    def _bar(self, title: str, total: int) -> Bar:
        bar = Bar(title, total=total, done=self.place.step, console=self.console)
        for row in (AVERAGED, ADAPTED, TARGET_STATISTICS, SOURCE_ONLY):
            if row in self.place.scores:  # so far
                score = torch.tensor(self.place.scores[row], dtype=torch.float64)
                bar.show(mIoU=f"{float(score.nanmean()):.1f}")
                break
        return bar

    def _begin_epoch(self, cscl: CSCL, bar: Bar) -> None:
        """Algorithm 1: new thresholds from a pass over the target."""
        config = self.config.adaptation
        epoch = self.place.step // config.steps
        bar.show(epoch=f"{epoch + 1}/{config.epochs}")
        thresholds = cscl.begin_epoch(self.world.target_pass(), epoch)
        portion = cscl.labeller.portion
        self.observers.thresholds(epoch, self.place.step, portion, thresholds)

    def _step_done(self, losses: dict[str, float], bar: Bar, cscl: CSCL | None = None) -> None:
        """Count a step and, when it is time, tell the observers of it."""
        self.place.step += 1
        self.keeper.timing.steps += 1
        bar.show(loss=f"{losses['total']:.3f}")
        if "kept" in losses:
            bar.show(kept=f"{losses['kept']:.0%}")
        bar.advance()
        if not self._due(self.config.log_every) and self.place.step > 1:
            return
        self.observers.log(
            {
                "phase": self.place.phase,
                "epoch": self.epoch,
                "step": self.place.step,
                "speed": bar.speed,
                **{name: value for name, value in losses.items() if name in COLUMNS},
            }
        )
        if cscl is not None:
            self.observers.kept(self.epoch, self.place.step, cscl.kept_by_class())

    def _report_skipped(self, trainer: SourceOnly | CSCL) -> None:
        if trainer.skipped:
            self.say(
                f"{self.place.phase}: {trainer.skipped} updates were skipped, because float16 "
                "losses or gradients were not finite"
            )

    def _score_source_only(self) -> None:
        """Two rows: the network with the source's statistics, and with the target's."""
        self._score(SOURCE_ONLY)
        self.keeper.save_model("source", self.model)
        if self.config.adaptation.bn_batches > 0:
            batches = self.world.target_statistics(self.config.adaptation.bn_batches)
            with self.watch("evaluation"):
                reestimate_statistics(self.model, batches)
            self.processes.copy_from_main(self.model)
        self._score(TARGET_STATISTICS)

    def _score(self, row: str, model: torch.nn.Module | None = None) -> Score:
        with self.watch("evaluation"):
            score = evaluate(
                model or self.model,
                self.world.evaluation_batches(),
                self.classes,
                self.processes,
            )
        self.place.scores[row] = score.iou.tolist()
        self.observers.score(row, self.place.phase, self.place.step, score)
        self.say(f"{self.place.phase} step {self.place.step}: {row}: mIoU {score.mean:.1f}")
        return score

    def _score_adapted(self, cscl: CSCL, bar: Bar) -> None:
        """Score trained and averaged weights; keep the checkpoint of the better best."""
        trained = self._score(ADAPTED)
        averaged = self._score(AVERAGED, cscl.average.module)
        best = max(trained.mean, averaged.mean)
        bar.show(mIoU=f"{best:.1f}")
        if best > self.place.best:
            self.place.best = best
            model = self.model if trained.mean >= averaged.mean else cscl.average.module
            self.keeper.save_model("best", model)
        if self.config.tensorboard:
            self.observers.centroids(self.epoch, self.place.step, cscl.centroid_distances())

    def _measure_gap(self, measure: GapMeter | None, cscl: CSCL) -> None:
        if measure is not None and self.processes.is_main:
            with self.watch("evaluation"):
                gap = measure(cscl.players)
            self.observers.gap(self.epoch, self.place.step, gap)

    # ------------------------------------------------------------------- beginning and going on

    def _begin(self) -> State | None:
        """Make the run folder or, to go on, return what its newest checkpoint holds."""
        if self.config.resume is None:
            self.keeper.start()
            self.observers.start_again()
            return None
        state = self.keeper.resume(self.say)
        self.observers.cut(self.place.done)
        self.say(f"resuming {self.folder}: {self.place.phase} step {self.place.step}")
        return state

    def _go_on(self, trainer: SourceOnly | CSCL, state: State | None, **streams: Stream) -> None:
        """Trainer, samplers and random generators as they were; making players drew numbers."""
        if state is None:
            return
        try:
            trainer.load_state_dict(state.pop("trainer"))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise checkpoint.CheckpointError(
                f"the state in {self.folder / 'checkpoints'} does not fit this configuration "
                f"({reason}); resume without the keys that were changed"
            ) from error
        for name, stream in streams.items():
            stream.seek(state["positions"][name])
        states = [state["random"], *state.get("random_of_others", [])]
        if len(states) == self.processes.count:
            checkpoint.set_random_state(states[self.processes.rank], self.device)
        else:
            self._draw_apart(self.place.step)

    def _draw_apart(self, step: int = 0) -> None:
        """Random numbers of its own for every process (dropout); the first draws as if alone."""
        if step or not self.processes.is_main:
            checkpoint.seed_everything(hash((self.config.seed, step, self.processes.rank)) % 2**31)

    def _save(self, content: Callable[[], State]) -> None:
        with self.watch("checkpoint"):
            self.keeper.save(content())

    def _stop_between_steps(self, content: Callable[[], State]) -> StopBetweenSteps:
        return StopBetweenSteps(
            save=lambda: self._save(content),
            message=lambda: (
                f"Interrupted at {self.place.phase} step {self.place.step}; everything is saved. "
                f"Go on with:\n  {how_to_go_on(self.folder, self.processes)}"
            ),
            processes=self.processes,
        )


def _positions(**streams: Stream) -> State:
    """How many samples of each stream the steps have taken: the samplers' place."""
    return {"positions": {name: stream.position for name, stream in streams.items()}}
